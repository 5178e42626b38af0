#!/usr/bin/env bash
# Everything that a GPU should measure, in under 9 minutes: one JSON for each benchmark, and a
# table.
#
#   benchmarks/gpu_suite.sh OUT [--quick]    OUT: folder for the JSON files and table.md
#
# Environment: PYTHON=interpreter with JAX and PyTorch (default python3). A benchmark that fails or
# runs past its share of the time is named at the end, and the others are kept.
set -uo pipefail
if [ $# -lt 1 ] || [ "$1" = --help ]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  exit $(($# < 1))
fi
out=$1
shift
cd "$(dirname "$0")/.." || exit
case $out in /*) ;; *) out=$OLDPWD/$out ;; esac
mkdir -p "$out" || exit
python=${PYTHON:-python3}
failed=()

# measure SECONDS NAME BENCHMARK [arguments]
measure() {
  local limit=$1 name=$2 benchmark=$3
  shift 3
  echo "== $name"
  timeout "$limit" "$python" "benchmarks/$benchmark.py" --json="$out/$name.json" "$@" ||
    failed+=("$name")
}

measure 120 train_40_torch train_throughput --peer=torch --depths 40 --dtype=bfloat16 \
  --batches 600 --steps-per-call 1 50 "$@"
measure 120 train_40 train_throughput --depths 40 --dtype=bfloat16 --batches 150 2400 "$@"
measure 45 train_10 train_throughput --depths 10 --dtype=bfloat16 --batches 150 2400 "$@"
measure 45 train_10_float32 train_throughput --depths 10 --batches 150 "$@"
measure 45 remat train_throughput --depths 60 --dtype=bfloat16 --batches 600 --variants unpooled \
  --remat off on "$@"
measure 60 encode encode_throughput --images=60000 --dtypes float32 bfloat16 "$@"
measure 45 input input_pipeline --width=64 --batch=2400 --steps=20 "$@"
measure 60 compile compile_time "$@"

"$python" benchmarks/table.py "$out" >"$out/table.md" && cat "$out/table.md"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed or out of time: ${failed[*]}" >&2
  exit 1
fi
