"""The bands of the stages behind the data, their boundaries, and their names above the axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from llcjax.plots.style import INK, WIDTH, plain

if TYPE_CHECKING:
    from llcjax.stages import Stages

# Stage kind -> two tints, so that neighbours of one kind can be told apart.
TINTS = {"A": ("#E3EFF8", "#D2E5F3"), "B": ("#FDEDD8", "#FAE2C3"), "-": ("#EFEFEF", "#E4E4E4")}
_LETTER_POINTS = 5.4  # mean width of a letter of a label


def draw_stages(axes: Axes, stages: Stages | None, *, names: str = "") -> int:
    """Draw bands and boundaries; ``names`` above the axes are "full" (with the type), "short" or "" (none).

    Returns:
        The number of lines that the names take.
    """
    if stages is None:
        return 0
    left, right = axes.get_xlim()
    for index, stage in enumerate(stages.stages):
        start, end = np.clip([stage.start, stage.end], left, right)
        axes.axvspan(start, end, color=TINTS.get(stage.kind, TINTS["-"])[index % 2], lw=0, zorder=0)
    for index, boundary in enumerate(stages.boundaries):
        line_style = ":" if boundary.kind == "least_slope" else "--"
        axes.axvline(boundary.step, color=INK, lw=0.9, ls=line_style, zorder=1)
        ends = np.clip([boundary.lower, boundary.upper], left, right)
        strip: dict[str, Any] = {"color": INK, "lw": 3.5, "alpha": 0.8, "solid_capstyle": "butt", "zorder": 4}
        strip["label"] = "boundary, 90% interval" if names == "full" and index == 0 else None
        if np.isfinite(ends).all():
            axes.plot(ends, [0.02, 0.02], transform=axes.get_xaxis_transform(), **strip)
    axes.set_xlim(left, right)
    return _name_stages(axes, stages, full=names == "full") if names else 0


def _name_stages(axes: Axes, stages: Stages, *, full: bool) -> int:
    """Write names of stages over their bands, on a higher line where the one before is in the way."""
    spec = axes.get_subplotspec()
    width = 72 * 0.88 * WIDTH / (spec.get_gridspec().ncols if spec else 1)
    size, letter = (9, _LETTER_POINTS * 1.1) if full else (7.5, _LETTER_POINTS * 0.9)
    line_ends: list[float] = []
    for stage in stages.stages:
        text = f"{stage.name} · {stage.kind}" if full and stage.kind in ("A", "B") else str(stage.name)
        half = letter * (len(text) + 1) / 2
        middle = min(_fraction(axes, stage.start, stage.end) * width, width - half)
        line = next((i for i, end in enumerate(line_ends) if middle - half > end), len(line_ends))
        line_ends[line : line + 1] = [middle + half]
        axes.annotate(
            plain(text),
            xy=(middle / width, 1),
            xycoords="axes fraction",
            xytext=(0, 3 + 1.2 * size * line),
            textcoords="offset points",
            ha="center",
            fontsize=size,
            color="#444444",
            weight="bold" if full else None,
        )
    return len(line_ends)


def _fraction(axes: Axes, start: float, end: float) -> float:
    """Return where the middle of a band lies, as a fraction of the width of the axes."""
    transform = axes.get_xaxis_transform() + axes.transAxes.inverted()
    ends = [transform.transform((step, 0))[0] for step in np.clip([start, end], *axes.get_xlim())]
    return float(np.mean(ends))
