#!/usr/bin/env bash
# Runs the main job on one host's CPU, its cores made devices that share each batch.
#
#   launch/cpu.sh [--help | --dry-run] [arguments of air_jax.main]
#
# --dry-run prints the command, for the repository's root, and changes nothing; anywhere but first
# it is the program's own. Without --config: configs/cifar100_small.py.
#
# Environment:
#   DEVICES=N       devices; they must divide the batches. Default: the physical cores that may be
#                   used, rounded down to 1, 2, 4, 8, 16 or 32, which divide those of the configs
#   XLA_FLAGS       kept; a number of devices in it counts where DEVICES is not given
#   PYTHON, EXTRAS  see launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
read_options configs/cifar100_small.py "$@"

default_devices() {
  local cores usable devices=1
  usable=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
  # Two threads of a core count once; a container may use fewer cores than the host shows.
  cores=$(lscpu --parse=CORE,SOCKET 2>/dev/null | grep -v '^#' | sort -u | wc -l) || cores=$usable
  ((cores < usable)) || cores=$usable
  while ((devices < 32 && 2 * devices <= cores)); do
    devices=$((2 * devices))
  done
  echo "$devices"
}

flag=--xla_force_host_platform_device_count
xla_flags=${XLA_FLAGS:-}
if [ -n "${DEVICES:-}" ] || [[ $xla_flags != *"$flag"* ]]; then
  DEVICES=${DEVICES:-$(default_devices)}
  whole_number DEVICES
  xla_flags+="${xla_flags:+ }$flag=$DEVICES" # of two, XLA takes the last
fi
# JAX_NUM_CPU_DEVICES would win over the flag.
launch env -u JAX_NUM_CPU_DEVICES JAX_PLATFORMS=cpu "XLA_FLAGS=$xla_flags" \
  launch/quickstart.sh "${arguments[@]}"
