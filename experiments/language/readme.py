"""Puts the tables of runs into README.md beside this, as experiments/regression/readme.py does.

python experiments/language/readme.py [tables=RUN] [quick=RUN] [paper=RUN]

The tables of a run go to `results/NAME/`: `tables` are those of `--preset synthetic`.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

from regression.readme import fill  # noqa: E402

if __name__ == "__main__":
    fill(HERE, [(name, Path(run)) for name, run in (word.split("=", 1) for word in sys.argv[1:])])
