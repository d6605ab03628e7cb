"""The regression setting of arXiv 2402.02364 at full scale; README.md beside this says what to expect and the cost.

python experiments/regression/run.py [--out DIR] [--num-draws N]
"""

import argparse
import dataclasses

from llcjax.pipelines.regression import PRESETS, RegressionRun

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="runs/regression-paper", help="folder of the results; resumed if unfinished")
parser.add_argument("--num-draws", type=int, default=900, help="draws a chain (the paper took 5000)")
arguments = parser.parse_args()

preset = PRESETS["paper"]
experiment = dataclasses.replace(preset, sweep=dataclasses.replace(preset.sweep, num_draws=arguments.num_draws))
run = RegressionRun(
    experiment, arguments.out, command=f"python experiments/regression/run.py --num-draws {arguments.num_draws}"
)
run.sweeps()
for seed, (path, _, _) in run.report().items():
    print(f"seed {seed}: {path}")
