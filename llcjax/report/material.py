"""What a report is made from."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xarray as xr

from llcjax import plots
from llcjax.report import markup
from llcjax.selection import one_setting

if TYPE_CHECKING:
    from llcjax.stages import Stages


class Extra(NamedTuple):
    """A figure of the caller's own."""

    name: str
    """Of its file."""
    figure: plots.Figure
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a report is made from (see `llcjax.report.write_report`), and the folder of its figures."""

    figures: Path
    sweep: xr.Dataset | None
    estimates: xr.Dataset
    metrics: xr.Dataset | None
    further: Mapping[str, xr.Dataset]
    paths: xr.Dataset | None
    curvature: xr.Dataset | None
    stages: Stages | None
    setting: int
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    command: str
    extra: Sequence[Extra] = ()

    @property
    def curve(self) -> xr.Dataset:
        """The estimates at the setting that the report shows, sorted by checkpoint."""
        return one_setting(self.estimates, self.setting)

    def save(self, name: str, figure: plots.Figure, alt: str, caption: str) -> str:
        """Save a figure as PNG and return the HTML that holds the same bytes."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        (self.figures / f"{name}.png").write_bytes(buffer.getvalue())
        return markup.image(buffer.getvalue(), alt, caption)
