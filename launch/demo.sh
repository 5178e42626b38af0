#!/usr/bin/env bash
# From a fresh clone to the page: trains the quickstart's net if it is not there, indexes digits and
# drawn shapes with it, and opens the page in the browser. Ctrl-C ends it.
#
#   launch/demo.sh [arguments of air_jax.serve]
#
# Environment: PYTHON=interpreter, VENV=its environment (.venv), EXTRAS=cuda or tpu for an
# accelerator.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
make_environment "app${EXTRAS:+,$EXTRAS}"
"$venv/bin/python" -m air_jax.main --config=configs/quickstart.py --stages=train
"$venv/bin/python" -m air_jax.demo_images runs/demo/images
"$venv/bin/python" -m air_jax.index \
  --images=runs/demo/images --model=runs/quickstart --out=runs/demo/index
exec "$venv/bin/python" -m air_jax.serve --index=runs/demo/index --open "$@"
