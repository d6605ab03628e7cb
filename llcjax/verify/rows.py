"""Rows of the table, and what counts as passed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import scipy.stats

from llcjax import show

LARGEST_Z = 4.0
"""No row that has an exact expectation may be further off, in standard errors."""
CHANCE_OF_TOO_MANY = 1e-3
"""Probability with which right code has more rows beyond 2 standard errors than are allowed."""
CLOSE_POSTERIOR, CLOSE_ESTIMATE = 0.05, 0.10
"""Where the exact expectation is within the first of lambda, the estimate must be within the second."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One estimate beside what is known."""

    group: str
    case: str
    sampler: str
    llc: float | None
    """lambda."""
    posterior: float | None
    """Exact expectation under the local posterior (closed form or quadrature)."""
    expected: float | None
    """The same under the law of the chain, with the bias of the step size where the sampler has one."""
    estimate: float
    stderr: float
    """Standard error over chains."""
    num_chains: int
    """Chains that were whole."""
    tolerance: float | None
    """Relative distance from lambda that is allowed, where nothing exact is known."""
    verdict: str
    """What llcjax says of the estimate."""
    peers: str
    note: str
    seconds: float
    """Share of the time of its sweep, compilation included."""

    @property
    def relative_error(self) -> float:
        """Of the estimate against what is expected, or against lambda."""
        known = self.llc if self.expected is None else self.expected
        return math.nan if not known else (self.estimate - known) / abs(known)

    @property
    def z(self) -> float | None:
        """The deviation in standard errors: Student's t of these chains as the normal score of equal probability."""
        if self.expected is None:
            return None
        if not self.stderr > 0 or self.num_chains < 2:
            return math.nan
        t = (self.estimate - self.expected) / self.stderr
        score = scipy.stats.norm.isf(scipy.stats.t.sf(abs(t), self.num_chains - 1))
        return math.copysign(float(score), t)

    @property
    def claims_llc(self) -> bool:
        """Whether the estimate must be near lambda: what it should be is, and its error is small enough to tell."""
        if self.posterior is None or self.expected is None or not self.llc:
            return False
        off = max(abs(self.posterior / self.llc - 1), abs(self.expected / self.llc - 1))
        return off <= CLOSE_POSTERIOR and 2 * self.stderr <= (CLOSE_ESTIMATE - CLOSE_POSTERIOR) * self.llc

    @property
    def passed(self) -> bool | None:
        """Whether the row is as it should be; None for a row that is only shown."""
        if self.expected is None and self.tolerance is None:
            return None
        if self.expected is None:
            return abs(self.relative_error) <= (self.tolerance or 0)
        near = abs(self.estimate / self.llc - 1) <= CLOSE_ESTIMATE if self.llc and self.claims_llc else True
        return near and abs(self.z if self.z is not None else math.nan) <= LARGEST_Z


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """All rows of a suite."""

    suite: str
    rows: Sequence[Row]
    seconds: float

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        names = [field.name for field in dataclasses.fields(self.rows[0])] if self.rows else []
        return show.grid(names, [[getattr(row, name) for name in names] for row in self.rows])

    @property
    def judged(self) -> list[Row]:
        """Rows that pass or fail."""
        return [row for row in self.rows if row.passed is not None]

    @property
    def z_scores(self) -> list[float]:
        """Of all rows that have an exact expectation."""
        return [row.z for row in self.rows if row.z is not None]

    @property
    def num_beyond_two(self) -> int:
        """Rows further than 2 standard errors off; 1 in 22 is expected."""
        return sum(not abs(z) <= 2 for z in self.z_scores)

    @property
    def most_beyond_two(self) -> int:
        """How many of these right code exceeds with a probability below `CHANCE_OF_TOO_MANY`."""
        probability = 2 * scipy.stats.norm.sf(2)
        return int(scipy.stats.binom.isf(CHANCE_OF_TOO_MANY, len(self.z_scores), probability))

    @property
    def passed(self) -> bool:
        """Every judged row passes, and not too many are beyond 2 standard errors."""
        return all(row.passed for row in self.judged) and self.num_beyond_two <= self.most_beyond_two

    def summary(self) -> list[str]:
        """What it comes to, in sentences."""
        failed = [f"{row.case} ({row.sampler})" for row in self.judged if not row.passed]
        scores, count = self.z_scores, len(self.judged)
        lines = [f"{count - len(failed)} of {count} rows passed, {len(self.rows) - count} are only shown."]
        if scores:
            worst = max((abs(z) for z in scores), key=lambda z: (math.isnan(z), z))
            lines.append(
                f"Of {len(scores)} rows with an exact expectation {self.num_beyond_two} are beyond 2 standard errors "
                f"(chance gives {0.0455 * len(scores):.1f}; up to {self.most_beyond_two} pass) and the largest is "
                f"{worst:.2f} (up to {LARGEST_Z:g} passes)."
            )
        claims = sum(row.claims_llc for row in self.rows)
        if claims:
            lines.append(
                f"In {claims} rows posterior and bias are within {CLOSE_POSTERIOR:.0%} of lambda and the error is "
                f"small enough to tell: there the estimate must be within {CLOSE_ESTIMATE:.0%} of lambda too."
            )
        if failed:
            lines.append("Failed: " + ", ".join(failed) + ".")
        elif not self.passed:
            lines.append("Failed: too many rows beyond 2 standard errors.")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes None."""
        rows = [
            {**dataclasses.asdict(row), "relative_error": row.relative_error, "z": row.z, "passed": row.passed}
            for row in self.rows
        ]
        plain = [{name: _finite(value) for name, value in row.items()} for row in rows]
        return {
            "suite": self.suite,
            "passed": self.passed,
            "num_rows": len(self.rows),
            "num_beyond_two": self.num_beyond_two,
            "most_beyond_two": self.most_beyond_two,
            "seconds": self.seconds,
            "rows": plain,
        }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
