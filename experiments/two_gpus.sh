#!/usr/bin/env bash
# An experiment on two GPUs of one machine, its parts side by side, each in a process of its own:
#
#     experiments/two_gpus.sh language|regression OUT [OPTION OF `llcjax run` ...]
#
# The first GPU has the first part, the second one the others, those that train models of their own before those that
# sweep the models of the first. Given again, every part goes on where it stopped. Logs are in OUT/logs.
set -u
experiment=$1 out=$2
shift 2
case $experiment in
  language) first=two_layers second="one_layer wait dip calibrated later" ;;
  regression)
    first=published second="finite_tasks no_layer_norm weight_decay gradient_noise wait calibrated relative" ;;
  *) echo "$experiment is no experiment; choose language or regression." >&2; exit 2 ;;
esac
mkdir -p "$out/logs"

run() { # GPU NAME [OPTION ...]
  local started=$SECONDS
  CUDA_VISIBLE_DEVICES=$1 python3 -m llcjax run "$experiment" --preset paper --out "$out" "${options[@]}" "${@:3}" \
    >> "$out/logs/$2.log" 2>&1
  echo "$2: exit code $? after $((SECONDS - started)) s"
}
options=("$@")
run 0 $first --part $first &
for part in $second; do
  if [ $part = wait ]; then
    # Other parts sweep the models of the first one, which are there once it has trained.
    until { [ -f "$out/banks/seed_0/bank.json" ] && [ ! -d "$out/training" ]; } || ! kill -0 $! 2> /dev/null; do sleep 1; done
  else
    run 1 $part --part $part
  fi
done
wait
run 0 tables
