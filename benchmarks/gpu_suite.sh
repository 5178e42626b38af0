#!/usr/bin/env bash
# What a GPU should measure, in under nine minutes, the most important part first.
#
#   benchmarks/gpu_suite.sh OUT [--quick]    OUT: folder for a JSON file of each part and table.md
#
# Parts: a whole run on random images, the tests that are marked gpu, training against PyTorch,
# training by views, retrieval, simulated feedback, a profile of training steps, encoding. A part
# that fails or runs past its own time limit is named at the end, and the results of the other parts
# are kept. --quick tries every part at a small size, with longer limits: some minutes on two idle
# cores.
#
# Environment: PYTHON=interpreter with air_jax installed (default python3). On a machine without a
# network `ln -s ../configs air_jax/configs` does instead of installing air_jax. Without PyTorch
# nothing is compared with it; without pytest and hypothesis no test runs.
set -uo pipefail
if [ $# -lt 1 ] || [ "$1" = --help ]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  exit $(($# < 1))
fi
out=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.." && mkdir -p "$out" || exit
python=${PYTHON:-python3}
"$python" -c 'import air_jax.configs' || exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()

count=60000 depth=40 slack=1 sizes=() train=(--steps-per-call 1 50)
if [ "${1:-}" = --quick ]; then
  count=600 depth=10 slack=5 # a CPU may be slow
  sizes=(--config.model.width=8 --config.train.batch=10 --config.data.queries_per_class=1)
  train=(--steps-per-call 1 2 --width=8)
fi
torch=() peers=(numpy)
if "$python" -c 'import torch' 2>/dev/null; then
  torch=(--peer=torch) peers+=(torch)
fi

# part SECONDS NAME COMMAND...
part() {
  local limit=$(($1 * slack)) name=$2
  shift 2
  echo "== $name"
  timeout --kill-after=5 "$limit" "$python" "$@" || failed+=("$name")
}

# measure SECONDS NAME BENCHMARK [arguments]
measure() {
  part "$1" "$2" "benchmarks/$3.py" "--json=$out/$2.json" "${@:4}"
}

# run SECONDS NAME [arguments]: air_jax.main on random images
run() {
  part "$1" "$2" -m air_jax.main "--config=configs/depth$depth.py" "--workdir=$work/$2" \
    --config.data.name=arrays "--config.data.dir=$work/images.npz" --config.train.epochs=1 \
    --config.train.dtype=bfloat16 "${sizes[@]}" "${@:3}"
}

"$python" - "$work/images.npz" "$count" <<'END'
import sys
import numpy as np
random, count = np.random.default_rng(0), int(sys.argv[2])
images = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
np.savez(sys.argv[1], image=images, label=np.arange(count) % 100)
END

run 100 everything '--config.retrieval.baselines=("random","untrained")' \
  '--config.feedback.learners=("none","svc","discriminant")'
mkdir -p "$out/everything" && cp "$work/everything/results.json" "$out/everything/"

if "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
  part 60 tests -m pytest -q -m gpu tests
else
  echo "pytest or hypothesis is missing: the tests that are marked gpu are left out"
fi

train+=(--depths "$depth" --dtype=bfloat16)
measure 100 train_600 train_throughput "${train[@]}" --batches 600 "${torch[@]}" "$@"
measure 50 train train_throughput "${train[@]}" --batches 160 2400 "$@"
measure 35 views views_throughput --config=contrastive --dtype=bfloat16 --parts "$@"
measure 60 retrieval retrieval --peers "${peers[@]}" --largest=2000000 "$@"
measure 60 feedback feedback --sample=12 --processes 1 "$@"

run 45 profile --stages=train --config.profile --config.train.steps_per_call=5 \
  --config.data.train_images=$((count / 5))
cp -r "$work/profile/profile" "$out/"

measure 30 encode encode_throughput --depths "$depth" --images=60000 --batch=2048 \
  --dtypes float32 bfloat16 "$@"

"$python" benchmarks/table.py "$out" >"$out/table.md" && cat "$out/table.md"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed or out of time: ${failed[*]}" >&2
  exit 1
fi
