#!/usr/bin/env bash
# An experiment on several GPUs of one machine, its parts side by side, each in a process of its own:
#
#     experiments/on_gpus.sh NUM_GPUS language|regression OUT [OPTION OF `llcjax run` ...]
#
# The first part has all GPUs but the last, whose chains it spreads over them, and trains on GPU 0. Meanwhile the others
# take the parts that train models of their own; the last GPU goes on with those that sweep the models of the first part,
# and so do the rest when that part has ended. `heads` are those of the language model, in OUT/heads. At the end come the
# tables. Given again, every part goes on where it stopped. Logs are in OUT/logs.
set -u
gpus=$1 experiment=$2 out=$3
shift 3
options=("$@")
case $experiment in
  language) first=two_layers training="one_layer" sweeping="dip calibrated heads later relative held_out" ;;
  regression)
    first=published training="finite_tasks no_layer_norm weight_decay gradient_noise" sweeping="calibrated relative" ;;
  *) echo "$experiment is no experiment; choose language or regression." >&2; exit 2 ;;
esac
if ! [ "$gpus" -ge 2 ] 2> /dev/null; then
  echo "NUM_GPUS=$gpus must be a number from 2; on one GPU, use \`llcjax run\`." >&2
  exit 2
fi
last=$((gpus - 1))
mkdir -p "$out/logs"
taken=$(mktemp -d)
trap 'rm -rf "$taken"' EXIT

option() { # NAME DEFAULT: its value among the options
  local before= value=${2-}
  for word in "${options[@]}"; do
    if [ "$before" = "$1" ]; then value=$word; fi
    before=$word
  done
  echo "$value"
}

make() { # GPUS NAME
  local started=$SECONDS command=(run "$experiment" --preset paper --out "$out" --part "$2" "${options[@]}")
  if [ "$2" = heads ]; then
    command=(heads --bank "$out/banks/seed_0" --tokens "$(option --tokens)" --start "$(option --start 0)"
      --activations bfloat16 --sweep.precision bf16 --out "$out/heads")
  fi
  CUDA_VISIBLE_DEVICES=$1 python3 -m llcjax "${command[@]}" >> "$out/logs/$2.log" 2>&1
  echo "$2 on GPU $1: exit code $? after $((SECONDS - started)) s"
}

trained() { [ -f "$out/banks/seed_0/bank.json" ] && [ ! -d "$out/training" ]; }

work() { # GPU PARTS: those of the parts that no other GPU has taken
  for part in $2; do
    if mkdir "$taken/$part" 2> /dev/null; then make "$1" "$part"; fi
  done
}

(
  make "$(seq -s, 0 $((last - 1)))" $first
  touch "$taken/first-ended"
  for gpu in $(seq 0 $((last - 1))); do work "$gpu" "$training $sweeping" & done
  wait
) &
for gpu in $(seq 1 $((last - 1))); do work "$gpu" "$training" & done
(
  # With more GPUs than two it has one training at most, so as to sweep as soon as there are models.
  if [ "$gpus" -eq 2 ]; then work 1 "$training"; else work "$last" "${training##* }"; fi
  until trained || [ -e "$taken/first-ended" ]; do sleep 1; done
  work "$last" "$sweeping"
) &
wait
CUDA_VISIBLE_DEVICES=0 python3 -m llcjax report "$out" > "$out/logs/tables.log" 2>&1
echo "tables: exit code $?"
