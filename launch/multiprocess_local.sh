#!/usr/bin/env bash
# Runs the main job as several processes on this machine's CPU, as it is run on several hosts: their
# devices share each batch. To try such runs, and for their tests; faster than launch/cpu.sh it is
# not.
#
#   launch/multiprocess_local.sh [--help | --dry-run] [arguments of air_jax.main]
#
# --dry-run prints the commands, for the repository's root, and changes nothing; anywhere but first
# it is the program's own. Without --config: configs/quickstart.py. Process 0 has this terminal, the
# others write into files. SIGINT and SIGTERM are passed on to all. When one fails, the others
# notice, or are killed after 50 seconds. The exit status is the first that is not 0.
#
# Environment:
#   PROCESSES=2       processes
#   DEVICES=2         devices of each; PROCESSES x DEVICES must divide the batches
#   PORT              of process 0, by which they find each other. Default: a free one
#   LOGS              folder for process-1.log, ... Default: a new one in runs/logs
#   PROGRAM           air_jax.main, or air_jax.reproduce
#   XLA_FLAGS         kept
#   PYTHON, VENV      see launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
. launch/processes.sh
PROGRAM=${PROGRAM:-air_jax.main}
default=configs/quickstart.py
[ "$PROGRAM" = air_jax.main ] || default=
read_options "$default" "$@"

PROCESSES=${PROCESSES:-2} DEVICES=${DEVICES:-2}
whole_number PROCESSES
whole_number DEVICES
if [ -z "$dry_run" ]; then
  make_environment "${EXTRAS:-}"
  install_data_extra "$PROGRAM" "${arguments[@]}"
  free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
  PORT=${PORT:-$("$venv/bin/python" -c "$free_port")}
  log_folder multiprocess_local
fi
flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$DEVICES"
for ((process = 0; process < PROCESSES; process++)); do
  # JAX_NUM_CPU_DEVICES would win over the flag.
  command=(
    env -u JAX_NUM_CPU_DEVICES JAX_PLATFORMS=cpu "XLA_FLAGS=$flags"
    "$venv/bin/python" -m "$PROGRAM" "${arguments[@]}"
    "--coordinator=127.0.0.1:${PORT:-PORT}" "--processes=$PROCESSES" "--process=$process"
  )
  if [ -n "$dry_run" ]; then
    quote "${command[@]}"
  else
    start "${command[@]}"
  fi
done
[ -z "$dry_run" ] || exit 0
wait_for_all 50
exit "$first_failure"
