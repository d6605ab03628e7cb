"""The regression setting of arXiv 2402.02364 at full scale; README.md beside this says what to expect and the cost.

python experiments/regression/run.py [options of `llcjax run regression`]
"""

import sys

from llcjax.cli import main

main(["run", "regression", "--preset", "paper", *sys.argv[1:]])
