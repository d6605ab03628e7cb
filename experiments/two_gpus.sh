#!/usr/bin/env bash
# An experiment on two GPUs of one machine, its parts side by side, each in a process of its own:
#
#     experiments/two_gpus.sh language|regression OUT [OPTION OF `llcjax run` ...]
#
# The first GPU has the first part. The second one has those that train models of their own, then those that sweep the
# models of the first; whichever is free takes the next. `heads` are those of the language model, in OUT/heads. At the
# end come the tables. Given again, every part goes on where it stopped. Logs are in OUT/logs.
set -u
experiment=$1 out=$2
shift 2
options=("$@")
case $experiment in
  language) first=two_layers others="one_layer wait dip calibrated heads later" ;;
  regression)
    first=published others="finite_tasks no_layer_norm weight_decay gradient_noise wait calibrated relative" ;;
  *) echo "$experiment is no experiment; choose language or regression." >&2; exit 2 ;;
esac
mkdir -p "$out/logs"
taken=$(mktemp -d)
trap 'rm -rf "$taken"' EXIT

tokens() {
  local before=
  for word in "${options[@]}"; do
    if [ "$before" = --tokens ]; then echo "$word"; fi
    before=$word
  done
}

make() { # GPU NAME
  local started=$SECONDS command=(run "$experiment" --preset paper --out "$out" --part "$2" "${options[@]}")
  if [ "$2" = heads ]; then
    command=(heads --bank "$out/banks/seed_0" --tokens "$(tokens)" --activations bfloat16 --sweep.precision bf16
      --out "$out/heads")
  fi
  CUDA_VISIBLE_DEVICES=$1 python3 -m llcjax "${command[@]}" >> "$out/logs/$2.log" 2>&1
  echo "$2: exit code $? after $((SECONDS - started)) s"
}

trained() { [ -f "$out/banks/seed_0/bank.json" ] && [ ! -d "$out/training" ]; }

work() { # GPU
  for part in $others; do
    if [ "$part" = wait ]; then
      until trained || [ -e "$taken/$first-ended" ]; do sleep 1; done
    elif mkdir "$taken/$part" 2> /dev/null; then
      make "$1" "$part"
    fi
  done
}

(make 0 $first; touch "$taken/$first-ended"; work 0) &
work 1
wait
CUDA_VISIBLE_DEVICES=0 python3 -m llcjax report "$out" > "$out/logs/tables.log" 2>&1
echo "tables: exit code $?"
