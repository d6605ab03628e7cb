"""Numbers in words: values with their errors, steps, and a real minus sign."""

from __future__ import annotations

import math


def plus_minus(value: float, error: float, *, sign: bool = False) -> str:
    """Return a value with its standard error, both to two digits of the error.

    >>> plus_minus(123.456, 2.34), plus_minus(0.5, 0.012, sign=True), plus_minus(12345.6, 210.0)
    ('123.5 ± 2.3', '+0.500 ± 0.012', '12,350 ± 210')
    """
    plus = "+" if sign else ""
    if not math.isfinite(value):
        return "none"
    if not math.isfinite(error) or error <= 0:
        return number(value, f"{plus}.4g")
    digits = 1 - math.floor(math.log10(error))
    places = max(digits, 0)
    rounded = number(round(value, digits), f"{plus},.{places}f")
    return f"{rounded} ± {round(error, digits):,.{places}f}"


def step_text(step: float) -> str:
    """Return a training step with separators: ``step_text(40292.3)`` is ``'40,292'``."""
    return f"{round(step):,}" if math.isfinite(step) else "none"


def number(value: float, form: str) -> str:
    """Return a formatted number with a minus sign, not a hyphen; "none" if it is not finite."""
    return format(value, form).replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "none"
