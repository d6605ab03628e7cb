"""Known answers: runs the samplers where the truth is a theorem, a closed form or an integral, and compares.

This is what tells on a new machine whether an installation can be trusted: `llcjax verify`.
"""

from llcjax.verify.rows import Row, Verification
from llcjax.verify.run import SUITES, verify
from llcjax.verify.table import print_verification

__all__ = ["SUITES", "Row", "Verification", "print_verification", "verify"]
