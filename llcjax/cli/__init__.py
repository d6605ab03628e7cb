"""The command line: `llcjax run | train | calibrate | sweep | heads | stages | report | rerun | verify | bench`.

Bad input ends with one sentence and exit code 2; Ctrl-C with what to type to go on, and exit code 130;
SIGTERM likewise, with 75.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from llcjax import _compat, processes
from llcjax.cli.arguments import shell
from llcjax.cli.experiment import make_report, rerun_and_compare, run_calibration, run_experiment
from llcjax.cli.pretrained import sweep_all_heads, sweep_pretrained
from llcjax.cli.tools import find_and_print_stages, run_benchmark, run_verification
from llcjax.interrupt import PREEMPTED_EXIT_CODE, Interrupted, Preempted, Terminated, sigterm_raises

OVERVIEW = """\
usage: llcjax COMMAND ...

  run EXPERIMENT      train, sweep, stages and report in one folder; finished steps are skipped
  train EXPERIMENT    only the training
  calibrate EXPERIMENT  a grid of step size, n_beta and localization at a few checkpoints; recommends one setting
  sweep EXPERIMENT    training where it is missing, then the LLC sweep
  sweep --model DIR [DIR ...] --tokens FILE   the LLC sweep of models that others trained
  heads --bank DIR --tokens FILE   the refined LLC of every head of a language model's checkpoints
  stages FILE|STORE   stages of a curve in a CSV file, or of the LLC in a store
  report DIR          estimates, stages and report of a finished sweep again
  rerun STORE         a finished sweep again from what its store says, compared array by array
  verify              known answers: true value, estimate, error and verdict of every case on this machine
  bench               chain-steps a second on this machine, against what its arithmetic can do

EXPERIMENT is regression (in context) or language (an attention-only model of text).
llcjax COMMAND --help explains every field with its unit and default.
--preset quick (2 cores, minutes) or --preset paper (one GPU) chooses the defaults of run, train and sweep;
language also has --preset synthetic (2 cores), a language with known answers.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command line; ends with `SystemExit` on errors."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]] = {
        "run": lambda rest: run_experiment("run", rest),
        "train": lambda rest: run_experiment("train", rest),
        "calibrate": run_calibration,
        "sweep": lambda rest: sweep_pretrained(rest) if "--model" in rest else run_experiment("sweep", rest),
        "heads": sweep_all_heads,
        "stages": find_and_print_stages,
        "report": make_report,
        "rerun": rerun_and_compare,
        "verify": run_verification,
        "bench": run_benchmark,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW, end="")
        return
    command, rest = arguments[0], arguments[1:]
    try:
        if command not in commands:
            raise ValueError(f"command={command!r} is unknown; choose one of {', '.join(commands)}.")
        # Before anything asks for a device.
        if command in ("run", "sweep") and ("--distributed" in rest or processes.launched_by_slurm()):
            processes.join()
        _compat.enable_compilation_cache()
        with sigterm_raises():
            commands[command](rest)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"llcjax: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"\nllcjax: {stop or 'stopped'}. Go on with: {shell(arguments)}", file=sys.stderr)
        raise SystemExit(PREEMPTED_EXIT_CODE if isinstance(stop, Preempted | Terminated) else 130) from None
