#!/usr/bin/env bash
# Runs the main job on one host's NVIDIA GPUs, or on those of several hosts; they share each batch.
#
#   launch/gpu.sh [--help | --dry-run] [arguments of air_jax.main]
#
# --dry-run prints the command, for the repository's root, and changes nothing; anywhere but first
# it is the program's own. Without --config: configs/depth40.py.
#
# Environment:
#   GPUS=0,1                            only these; they must divide the batches; or all
#   COORDINATOR=HOST:PORT PROCESSES=N PROCESS=I
#                                       this is process I, from 0, of a run of N: on every host the
#                                       same command, but for I. HOST is the host of process 0, PORT
#                                       free there, and --workdir a folder that all of them see. On
#                                       one host several processes, too, each with its own GPUS
#   XLA_PYTHON_CLIENT_MEM_FRACTION=.9   share of each GPU's memory that JAX takes
#   XLA_FLAGS                           kept
#   EXTRAS=cuda                         what to install (see setup.py)
#   PYTHON                              see launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
read_options configs/depth40.py "$@"

if [ -n "${COORDINATOR:-}${PROCESSES:-}${PROCESS:-}" ]; then
  for name in COORDINATOR PROCESSES PROCESS; do
    [ -n "${!name:-}" ] || fail "$name is not set; of several processes each needs all three"
  done
  arguments+=("--coordinator=$COORDINATOR" "--processes=$PROCESSES" "--process=$PROCESS")
fi
variables=(
  "EXTRAS=${EXTRAS:-cuda}"
  "JAX_PLATFORMS=cuda,cpu"
  "XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.9}"
)
[ -z "${GPUS:-}" ] || variables+=("CUDA_VISIBLE_DEVICES=$GPUS")
# No XLA flags for speed: no GPU was at hand, so none was measured to be faster yet. One that was
# belongs here, before what the caller gave: xla_flags="--xla_gpu_... ${XLA_FLAGS:-}".
xla_flags=${XLA_FLAGS:-}
[ -z "$xla_flags" ] || variables+=("XLA_FLAGS=$xla_flags")
launch env "${variables[@]}" launch/quickstart.sh "${arguments[@]}"
