"""The sections of a report in their order. Each returns HTML, or "" where it has nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from llcjax import plots
from llcjax.report import markup, trust
from llcjax.report.formats import number, plus_minus, step_text
from llcjax.report.material import Material
from llcjax.report.page import GLOSSARY

STAGE_KINDS = {"A": "A (rises)", "B": "B (falls)", "-": "neither"}


def _curve_section(material: Material) -> str:
    bands = (
        " Blue bands are stages of type A, orange ones of type B, grey ones neither; dashed lines are "
        "boundaries and the dark strips on them their 90% intervals."
    )
    return material.save(
        "curve",
        plots.plot_curve(material.estimates, material.metrics, material.stages, setting=material.setting),
        "LLC with error bars above the loss, both against the training step, with bands for the stages",
        "LLC (top) and loss (bottom). Bars are 95% intervals; shape and colour of a marker are its verdict."
        + ("" if material.stages is None else bands),
    )


def _component_section(material: Material) -> str:
    if "component" not in material.estimates.coords:
        return ""
    return material.save(
        "components",
        plots.plot_components(material.estimates),
        "Refined LLC of every component",
        "The refined LLC of every component: its own parameters are sampled, all others stay at the checkpoint. "
        "Bars and bands are 95% intervals.",
    )


def _extra_section(material: Material) -> str:
    return "".join(material.save(one.name, one.figure, one.caption, one.caption) for one in material.extra)


def _stage_section(material: Material) -> str:
    if material.stages is None:
        return ""
    header = ["stage", "from step", "to step", "90% interval", "boundary, prob.", "type"]
    header += ["change of LLC", "change of loss"]
    rows = [_stage_cells(row) for row in material.stages.table()]
    meanings = "A: the LLC rises. B: it falls. Neither: the change is within 2 standard errors of 0."
    body = markup.table(header, rows, text_columns=(0, 4, 5))
    body += f"<p class='small'>{meanings} Method: {markup.text(material.stages.method)}.</p>"
    return body + material.save(
        "slope",
        plots.plot_slope(material.stages),
        "Slope of the fitted LLC curve against the training step, with its band",
        "Slope of the fitted LLC against ln(step + 1), with its band. Stages end where it is zero or, "
        "at dotted lines, where it is merely least. A band that never leaves zero means that the "
        "boundary is not certain.",
    )


def _stage_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one row of ``Stages.table``; numbers that are NaN stay empty."""
    known = math.isfinite(row["end_lower"])
    return [
        row["name"],
        step_text(row["start"]),
        step_text(row["end"]),
        f"{step_text(row['end_lower'])} to {step_text(row['end_upper'])}" if known else "",
        row["end_kind"].replace("_", " ") + (f", {row['end_probability']:.2g}" if known else ""),
        STAGE_KINDS.get(row["kind"], row["kind"]),
        plus_minus(row["delta_value"], row["delta_value_stderr"], sign=True),
        "" if row["delta_loss"] is None else number(row["delta_loss"], "+.3g"),
    ]


def _position_section(material: Material) -> str:
    if "llc_position" not in material.estimates:
        return ""
    return material.save(
        "positions",
        plots.plot_positions(material.estimates, material.stages, setting=material.setting),
        "LLC of single positions in the context against the training step",
        "LLC of the loss at single positions of the context, with 95% intervals.",
    )


def _metric_section(material: Material) -> str:
    if material.metrics is None:
        return ""
    return material.save(
        "metrics",
        plots.plot_metrics(material.metrics, material.stages),
        "Behavioural and structural metrics against the training step, one panel each",
        "Measures of the same checkpoints under the same bands. A stage of the LLC that is real should "
        "coincide with a change in some of them.",
    )


def _further_section(material: Material) -> str:
    return "".join(
        material.save(
            name,
            plots.plot_metrics(measures, material.stages),
            f"Measures of {name} against the training step, one panel each",
            f"Measures of {name} at the same checkpoints under the same bands.",
        )
        for name, measures in material.further.items()
    )


def _path_section(material: Material) -> str:
    if material.paths is None:
        return ""
    shown = material.paths.drop_vars(
        [name for name in material.paths if "evolute" in str(name) or "vertex" in str(name)]
    )
    body = material.save(
        "paths",
        plots.plot_metrics(shown, material.stages),
        "Principal components of outputs and hidden activations, and CKA, against the training step",
        "Principal components over checkpoints of the outputs and of the last residual stream on fixed inputs, and "
        "linear CKA between successive checkpoints at each place of the residual stream.",
    )
    if material.paths.sizes["component"] < 2:
        return body
    return body + material.save(
        "essential_dynamics",
        plots.plot_path(material.paths, material.stages),
        "The path of the outputs in the plane of their first two principal components",
        "Essential dynamics: grey dots are checkpoints, the blue line is their smoothed path, circles are osculating "
        "circles where the curvature is largest or least nearby (cusps of the evolute), with their training steps.",
    )


def _curvature_section(material: Material) -> str:
    if material.curvature is None:
        return ""
    return material.save(
        "curvature",
        plots.plot_curvature(material.estimates, material.curvature, material.stages, setting=material.setting),
        "LLC, trace of the Hessian and its top eigenvalues against the training step",
        "The LLC above the trace of the Hessian and its top eigenvalues at the same checkpoints, with 95% intervals. "
        "Curvature sees directions in which the loss bends; the LLC also flatter ones.",
    )


def _reading_section(_: Material) -> str:
    entries = "".join(f"<dt>{markup.text(name)}</dt><dd>{meaning}</dd>" for name, meaning in GLOSSARY.items())
    return f"<dl>{entries}</dl>"


def _making_section(material: Material) -> str:
    rows = [[key, value] for key, value in markup.flatten(material.provenance)]
    provenance = markup.table(["what", "value"], rows, text_columns=(0, 1)) if rows else "<p>None.</p>"
    return (
        f"<p>The command that makes this report again:</p>{markup.preformatted(material.command)}"
        + markup.details("Provenance", provenance)
        + markup.details("Configuration", markup.preformatted(material.config))
    )


SECTIONS: tuple[tuple[str, str, Callable[[Material], str]], ...] = (
    ("curve", "LLC and loss", _curve_section),
    ("components", "Components", _component_section),
    ("extra", "Further results", _extra_section),
    ("stages", "Stages", _stage_section),
    ("positions", "LLC by position", _position_section),
    ("metrics", "Metrics", _metric_section),
    ("further", "Structure", _further_section),
    ("paths", "Essential dynamics", _path_section),
    ("curvature", "Curvature", _curvature_section),
    ("health", "Can I trust it?", trust.health_section),
    ("traces", "Traces and running LLC", trust.trace_section),
    ("settings", "Settings compared", trust.settings_section),
    ("sensitivity", "Sensitivity", trust.sensitivity_section),
    ("table", "Every checkpoint", trust.table_section),
    ("reading", "How to read this", _reading_section),
    ("making", "Made by", _making_section),
)
"""(anchor, heading, maker of the HTML)."""
