#!/usr/bin/env bash
# Runs air_jax.reproduce as several workers that share a sweep's members, then writes its report.
#
#   launch/sweep.sh [--help | --dry-run] --config=FILE [arguments of air_jax.reproduce]
#
# --dry-run prints the commands, for the repository's root, and changes nothing; anywhere but first
# it is the program's own. Worker 0 has this terminal, the others write into files. When a worker
# fails, the others go on, and the report says what is missing; the same command tries it again.
# Stopped by Ctrl-C or SIGTERM, which are passed on to all, it ends without the report, and the same
# command continues.
#
# Environment:
#   GPUS=0,1,2,3              one worker on each of these GPUs; without it: on the CPU
#   WORKERS=N                 default: as many as GPUS, else 1
#   MACHINES=M MACHINE=I      this is machine I, from 0, of M that run this command on the same
#                             --workdir; the last one that ends writes the report of all
#   LOGS                      folder for process-1.log, ... Default: a new one in runs/logs
#   PYTHON, VENV, EXTRAS      see launch/quickstart.sh
#
# Exit status: 0 done; 1 some members failed; 2 an error in the input; 75 or 130 stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
. launch/processes.sh
read_options "" "$@"

IFS=, read -ra gpus <<<"${GPUS:-}"
WORKERS=${WORKERS:-$((${#gpus[@]} > 0 ? ${#gpus[@]} : 1))}
MACHINES=${MACHINES:-1} MACHINE=${MACHINE:-0}
whole_number WORKERS
whole_number MACHINES
if ! [[ $MACHINE =~ ^[0-9]+$ ]] || ((MACHINE >= MACHINES)); then
  fail "MACHINE=$MACHINE: expected a whole number from 0 on, below MACHINES=$MACHINES"
fi
platform=cpu
[ -z "${GPUS:-}" ] || platform=cuda,cpu

# The command of a worker, or of the report, in `command`.
compose() {
  local gpu=$1
  shift
  command=(
    env "JAX_PLATFORMS=$platform" ${gpu:+"CUDA_VISIBLE_DEVICES=$gpu"}
    "$venv/bin/python" -m air_jax.reproduce "${arguments[@]}" --processes=1 "$@"
  )
}

if [ -z "$dry_run" ]; then
  default_extras=
  [ $platform = cpu ] || default_extras=cuda
  make_environment "${EXTRAS:-$default_extras}"
  install_data_extra air_jax.reproduce "${arguments[@]}"
  log_folder sweep
fi
for ((worker = 0; worker < WORKERS; worker++)); do
  gpu=
  ((${#gpus[@]} == 0)) || gpu=${gpus[worker % ${#gpus[@]}]}
  part=$((MACHINE * WORKERS + worker))/$((MACHINES * WORKERS))
  compose "$gpu" "--part=$part" --stages=members
  if [ -n "$dry_run" ]; then
    quote "${command[@]}"
  else
    start "${command[@]}"
  fi
done
if [ -z "$dry_run" ]; then
  wait_for_all
  refused=0
  for status in "${statuses[@]}"; do
    case $status in
      75 | 130) exit "$status" ;;
      2) refused=$((refused + 1)) ;;
    esac
  done
  ((refused < WORKERS)) || exit 2 # the report would be refused, too
fi
compose "${gpus[0]:-}" --stages=report
if [ -n "$dry_run" ]; then
  quote "${command[@]}"
else
  "${command[@]}" || exit
  exit "$first_failure"
fi
