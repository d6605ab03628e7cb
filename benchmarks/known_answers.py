"""Known answers, as a table with provenance: `python -m benchmarks.known_answers`.

The full suite of `llcjax verify` on a CPU, its gpu suite on a GPU; `--only` takes groups of rows. At toy size the
quadratics of the quick suite.
"""

from __future__ import annotations

import math

import jax

from benchmarks.harness import Measured, Options, Row, run
from llcjax.verify import Row as VerifyRow
from llcjax.verify import verify
from llcjax.verify.table import LEGEND


def measure(options: Options) -> Measured:
    """Runs the suite that suits the device."""
    suite = "quick" if options.toy else "full" if jax.default_backend() == "cpu" else "gpu"
    groups = options.only or (("quadratic",) if options.toy else ())
    result = verify(suite, groups=groups, report=print)
    rows = [_row(row) for row in result.rows]
    return Measured(
        title=f"Known answers, suite {suite}",
        rows=rows,
        settings={"suite": suite, "groups": list(groups), "seed": 0, "passed": result.passed,
                  "seconds": round(result.seconds, 1)},
        notes=[*result.summary(), " ".join(LEGEND)],
    )  # fmt: skip


def _row(row: VerifyRow) -> Row:
    return {
        "case": row.case,
        "sampler": row.sampler,
        "lambda": row.llc,
        "posterior": row.posterior,
        "expected": row.expected,
        "estimate": row.estimate,
        "s.e.": row.stderr,
        "error (%)": None if math.isnan(row.relative_error) else 100 * row.relative_error,
        "z": None if row.z is None or math.isnan(row.z) else row.z,
        "verdict": row.verdict,
        "peers": row.peers or None,
        "passed": {True: "yes", False: "NO", None: "only shown"}[row.passed],
        "time (s)": row.seconds,
        "note": row.note or None,
    }


if __name__ == "__main__":
    run("known_answers", measure)
