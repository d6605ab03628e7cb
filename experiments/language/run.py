"""The language model of arXiv 2402.02364 at full scale; README.md beside this says what to expect and the cost.

python experiments/language/run.py --tokens english.u16.xz [further options of `llcjax run language`]
"""

import sys

from llcjax.cli import main

main(["run", "language", "--preset", "paper", *sys.argv[1:]])
