"""The sections of a report in their order. Each returns HTML, or "" where it has nothing to show."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xarray as xr

from llcjax import plots
from llcjax.estimators import running_llc
from llcjax.report import markup
from llcjax.report.formats import number, plus_minus, step_text
from llcjax.report.page import GLOSSARY
from llcjax.report.summary import curve_sentence
from llcjax.selection import choose_checkpoints, one_setting, setting_label, verdict_counts
from llcjax.sensitivity import curve_sensitivity, stage_sensitivity
from llcjax.verdicts import DISCRETISATION_LIMIT, NOISE_LIMIT, RHAT_LIMIT

if TYPE_CHECKING:
    from llcjax.stages import Stages

VERDICT_MEANINGS = {
    "ok": "no check objected: chains agree, stay local and are precise enough",
    "noisy": f"the standard error is above {NOISE_LIMIT:.0%} of the LLC: more chains or more draws",
    "biased": f"the step size inflates variances by over {DISCRETISATION_LIMIT:.0%}: lower it",
    "not_minimum": "the LLC is negative beyond its error: chains walk downhill from w*, which is no minimum",
    "left_basin": "the draws are no better than a trivial predictor: raise the localization or n_beta",
    "not_mixed": f"R-hat is above {RHAT_LIMIT:g}: chains disagree or still drift; more draws, more burn-in",
    "stuck": "the chains had no time to feel the localization: more draws or a larger step size",
    "diverged": "a chain met a loss that is not finite or ran away: lower the step size",
    "failed": "draws are missing, or no chain survived",
}
STAGE_KINDS = {"A": "A (rises)", "B": "B (falls)", "-": "neither"}


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


def _health_section(material: Material) -> str:
    rows = [
        [verdict, str(count), _first_steps(material.curve, verdict), VERDICT_MEANINGS.get(verdict, "")]
        for verdict, count in verdict_counts(material.curve).items()
    ]
    header = ["verdict", "checkpoints", "steps", "meaning"]
    body = markup.table(header, rows, text_columns=(0, 2, 3), verdict_column=0)
    body += material.save(
        "mean_loss",
        plots.plot_mean_loss(material.estimates, stages=material.stages, setting=material.setting),
        "Mean loss of the sampler's draws, loss at w* and loss of a trivial predictor against the training step",
        "Where the sampler went. The shaded gap, times n_beta, is the LLC. Draws at or above the dashed "
        "line know no more than a trivial predictor: they have left the basin, and the LLC there follows "
        "from the loss alone.",
    )
    return body + material.save(
        "health",
        plots.plot_health(material.estimates, material.stages, setting=material.setting),
        "R-hat and effective sample size against the training step",
        "R-hat near 1 means that the chains agree. The effective sample size is how many independent draws "
        "the chains are worth together.",
    )


def _first_steps(curve: xr.Dataset, verdict: str, most: int = 6) -> str:
    """Return the first steps with a verdict that asks for a look."""
    if verdict == "ok":
        return ""
    steps = curve["checkpoint"].values[curve["verdict"].values.astype(str) == verdict]
    return ", ".join(f"{step:,}" for step in steps[:most]) + (", ..." if len(steps) > most else "")


def _trace_section(material: Material) -> str:
    if material.sweep is None or "loss" not in material.sweep:
        return ""
    chosen = choose_checkpoints(material.curve)
    # Only what is drawn is read: a whole sweep may not fit in memory.
    part = material.sweep.sel(checkpoint=list(chosen)).isel(setting=[material.setting]).load()
    body = material.save(
        "traces",
        plots.plot_traces(part, chosen),
        "Loss of every chain above the loss at w* against the sampler step, one panel a checkpoint",
        "One colour a chain: faint lines are draws, strong ones moving averages; burn-in is grey. Healthy "
        "chains reach one common level above zero before the burn-in ends and stay there.",
    )
    return body + material.save(
        "running_llc",
        plots.plot_running_llc(
            running_llc(part), chosen, estimates=material.estimates.isel(setting=[material.setting])
        ),
        "LLC from the draws so far against the sampler step, one panel a checkpoint",
        "LLC from the draws so far: grey lines are chains, the blue line is their mean, the green band the "
        "final estimate with its 95% interval. A line that still climbs at the right edge needs a longer "
        "run.",
    )


def _settings_section(material: Material) -> str:
    if material.estimates.sizes["setting"] < 2:
        return ""
    rows = []
    for index in range(material.estimates.sizes["setting"]):
        curve = one_setting(material.estimates, index)
        num_ok = f"{verdict_counts(curve).get('ok', 0)} of {curve.sizes['checkpoint']}"
        rows.append([str(index), setting_label(curve), num_ok, curve_sentence(curve)])
    body = markup.table(["setting", "hyperparameters", "ok", "curve"], rows, text_columns=(1, 3))
    if "component" in material.estimates.coords:  # drawn in a section of their own
        return body
    return body + material.save(
        "settings",
        plots.plot_settings(material.estimates, material.stages),
        "LLC against the training step, one curve for each hyperparameter setting",
        "The same curve at every setting, with 95% intervals. Features that all of them share can be believed first.",
    )


def _sensitivity_section(material: Material) -> str:
    """The boundaries again from parts of the chains and draws, and bands over neighboring settings."""
    body = _bands(material)
    measured = "llc_per_chain_half" in material.estimates
    if not measured or material.stages is None or material.stages.method != "gp":
        return body
    loss = None
    if material.metrics is not None and "test_loss" in material.metrics:
        loss = material.metrics["test_loss"].sel(checkpoint=material.estimates["checkpoint"]).values
    variants = stage_sensitivity(material.estimates, setting=material.setting, loss=loss)
    whole = variants[0].boundaries
    if not whole:
        return body
    header = ["from", "boundaries", *(f"boundary {index + 1}" for index in range(len(whole)))]
    rows = [
        [
            variant.name,
            variant.problem or str(len(variant.boundaries)),
            *("none" if step is None else step_text(step) for step in variant.matched),
        ]
        for variant in variants
    ]
    words = (
        "Boundaries found again from parts of the stored draws, and at neighboring settings where there are any. "
        "A boundary that every row has, at about the same step, does not depend on these choices."
    )
    return body + f"<p>{words}</p>" + markup.table(header, rows, text_columns=(0,))


def _bands(material: Material) -> str:
    bands = curve_sensitivity(material.estimates, material.setting)
    if not bands.sizes["hyperparameter"]:
        return ""
    return material.save(
        "sensitivity",
        plots.plot_sensitivity(bands),
        "LLC with bands from the least to the largest LLC of neighboring settings",
        "The LLC of this setting, with a band for each hyperparameter: from the least to the largest LLC of this "
        "setting and its neighbors in the grid.",
    )


def _table_section(material: Material) -> str:
    curve = material.curve
    header = ["step", "LLC", "R-hat", "ESS", "chains", "verdict", "why"]
    rows = _checkpoint_rows(curve)
    body = markup.table(header, rows, text_columns=(5, 6), verdict_column=5)
    return markup.details(f"Table of {len(rows)} checkpoints (also in llc.csv)", body)


def _checkpoint_rows(curve: xr.Dataset) -> list[list[str]]:
    names = ("checkpoint", "llc", "llc_stderr", "rhat", "ess_bulk", "verdict", "sentence")
    used = curve["num_chains_used"].values.tolist() if "num_chains_used" in curve else [""] * curve.sizes["checkpoint"]
    return [
        [
            step_text(step),
            plus_minus(llc, error),
            number(rhat, ".3f"),
            number(ess, ",.0f"),
            str(chains),
            str(verdict),
            str(sentence),
        ]
        for step, llc, error, rhat, ess, verdict, sentence, chains in zip(
            *(curve[name].values.tolist() for name in names), used, strict=True
        )
    ]


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
    ("health", "Can I trust it?", _health_section),
    ("traces", "Traces and running LLC", _trace_section),
    ("settings", "Settings compared", _settings_section),
    ("sensitivity", "Sensitivity", _sensitivity_section),
    ("table", "Every checkpoint", _table_section),
    ("reading", "How to read this", _reading_section),
    ("making", "Made by", _making_section),
)
"""(anchor, heading, maker of the HTML)."""
