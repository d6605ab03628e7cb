#!/usr/bin/env bash
# The figures of this folder that a GPU makes, one step after another, each stopped at a limit of its own:
#
#     LLCJAX_PEER_PYTHON=/path/to/python benchmarks/gpu.sh [STEP ...]
#
# Steps, in the order of their worth: bank precision language peers efficiency_peers breakdown throughput paired scaling.
# `bank` trains the transformer of the regression paper (one seed, 4 minutes) into $LLCJAX_BENCH_BANK, where precision,
# efficiency_peers and paired look for it; `scaling` wants two GPUs or more. Results are written step by step.
set -u
cd "$(dirname "$0")/.."
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
export LLCJAX_BENCH_BANK=${LLCJAX_BENCH_BANK:-$PWD/runs/bench/banks/seed_0}
step() { # SECONDS COMMAND...
  local started=$SECONDS
  echo "+ ${*:2}"
  timeout "$1" "${@:2}" || echo "! ended with $? after $((SECONDS - started)) s"
  echo "= $((SECONDS - started)) s"
}
steps=${*:-bank precision language peers efficiency_peers breakdown throughput paired scaling}
for one in $steps; do
  case $one in
    bank) step 600 python3 -m llcjax train regression --preset paper --train.num-seeds 1 --sweep-seeds 0 \
      --out runs/bench ;;
    language)
      step 300 python3 -m benchmarks.peers --only language
      step 120 python3 -m benchmarks.breakdown --only language-bf16 language ;;
    throughput) step 300 python3 -m benchmarks.throughput --only toy mlp regression-pallas-fp16 language-bf16 ;;
    peers) step 300 python3 -m benchmarks.peers --only regression ;;
    breakdown) step 300 python3 -m benchmarks.breakdown --only regression regression-pallas regression-pallas-fp16 \
      regression-pallas-bf16 language-bf16 ;;
    paired) step 300 python3 -m benchmarks.paired_baseline --only transformer ;;
    *) step 400 python3 -m "benchmarks.$one" ;;
  esac
done
