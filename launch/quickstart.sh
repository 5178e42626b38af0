#!/usr/bin/env bash
# Sets up .venv and runs the main job: on the embedded digits, or on what the arguments say.
#
#   launch/quickstart.sh [arguments of air_jax.main]
#
# Environment: PYTHON=interpreter, VENV=its environment (.venv), EXTRAS=cuda or tpu for an
# accelerator.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment "app${EXTRAS:+,$EXTRAS}" # as demo.sh, which then starts at once
default_config configs/quickstart.py "$@"
install_data_extra air_jax.main "${arguments[@]}"
exec "$venv/bin/python" -m air_jax.main "${arguments[@]}"
