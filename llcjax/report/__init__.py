"""The report of a sweep: one HTML file that works offline, its figures as PNG files, its tables as CSV files.

The page answers three questions in this order: can I trust the LLC curve, what is it, where are the stages?
Everything that comes from a file (names, sentences, config, command) is escaped before it enters the page,
and a content security policy in the page forbids it to load or run anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from llcjax.curve_verdict import curve_verdict
from llcjax.report.formats import plus_minus
from llcjax.report.markup import text
from llcjax.report.material import Extra, Material
from llcjax.report.page import PAGE, STYLE
from llcjax.report.sections import SECTIONS
from llcjax.report.summary import subtitle, summary_lines
from llcjax.report.tables import write_tables

if TYPE_CHECKING:
    from llcjax.stages import Stages

__all__ = ["Extra", "plus_minus", "summary_lines", "write_report", "write_tables"]


def write_report(
    out_dir: str | Path,
    *,
    title: str,
    sweep: xr.Dataset | None,
    estimates: xr.Dataset,
    metrics: xr.Dataset | None,
    stages: Stages | None,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    command: str,
    notes: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
    further: Mapping[str, xr.Dataset] | None = None,
    paths: xr.Dataset | None = None,
    curvature: xr.Dataset | None = None,
    setting: int = 0,
    chance_name: str = "zero predictor",
    extra: Sequence[Extra] = (),
) -> Path:
    """Write ``report.html``, ``figures/*.png`` and the CSV tables.

    Args:
        out_dir: folder, made if missing.
        title: heading of the page.
        sweep: what ``llcjax.open_sweep`` returns; None, or one without ``loss``, leaves the traces out.
        estimates: what ``llcjax.estimates`` returns.
        metrics: measures of each checkpoint, or None.
        stages: what ``llcjax.find_stages`` returns for the LLC at ``setting``, or None.
        config: the whole configuration; anything JSON can write, the rest is written as text.
        provenance: versions, machine, seeds, dates.
        command: the command line that makes this report again.
        notes: sentences that a reader must know, shown under the summary.
        links: further pages, as words and a path relative to ``out_dir``; shown under the summary.
        further: more measures of each checkpoint, a figure and a table ``NAME.csv`` each.
        paths: what ``llcjax.trajectory.path_metrics`` returns: essential dynamics.
        curvature: what ``llcjax.curvature.curvature`` returns, shown under the LLC.
        setting: index of the hyperparameter setting that the page shows.
        extra: further figures with their captions.
        chance_name: what the predictor is called whose loss is the attribute ``chance`` of ``estimates``.

    Returns:
        The path of ``report.html``.

    Raises:
        ValueError: ``setting`` is not one of those in ``estimates``.
    """
    material = Material(
        figures=Path(out_dir) / "figures",
        sweep=sweep,
        estimates=estimates.assign_attrs(chance_name=chance_name),
        metrics=None if metrics is None else metrics.assign_attrs(chance_name=chance_name),
        further=further or {},
        paths=paths,
        curvature=curvature,
        stages=stages,
        setting=setting,
        config=config,
        provenance=provenance,
        command=command,
        extra=extra,
    )
    curve = material.curve
    material.figures.mkdir(parents=True, exist_ok=True)
    made = [(anchor, heading, make(material)) for anchor, heading, make in SECTIONS]
    sections = [section for section in made if section[2]]
    answers = summary_lines(material.estimates, stages, setting=setting)
    page = PAGE.substitute(
        title=text(title),
        subtitle=text(subtitle(sweep, curve)),
        summary="".join(f"<p><b>{text(question)}</b> {text(answer)}</p>" for question, answer in answers),
        trust=curve_verdict(curve).name,
        notes=_notes(notes) + _links(links or {}),
        contents="".join(f'<a href="#{anchor}">{text(heading)}</a>' for anchor, heading, _ in sections),
        sections="\n".join(
            f'<section id="{anchor}"><h2>{text(heading)}</h2>{body}</section>' for anchor, heading, body in sections
        ),
        style=STYLE,
    )
    measured = {"paths": paths, "curvature": curvature}
    tables = {**material.further, **{name: measures for name, measures in measured.items() if measures is not None}}
    write_tables(out_dir, material.estimates, metrics, stages, tables)
    path = Path(out_dir) / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f'<aside class="notes"><b>Notes</b><ul>{items}</ul></aside>' if notes else ""


def _links(links: Mapping[str, str]) -> str:
    items = " ".join(f'<a href="{text(path)}">{text(words)}</a>' for words, path in links.items())
    return f'<p class="small">See also: {items}</p>' if links else ""
