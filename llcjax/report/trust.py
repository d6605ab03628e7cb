"""The sections of a report that say whether to believe its curve. Each returns HTML, or "" with nothing to show."""

from __future__ import annotations

import xarray as xr

from llcjax import plots
from llcjax.estimators import running_llc
from llcjax.report import markup
from llcjax.report.formats import number, plus_minus, step_text
from llcjax.report.material import Material
from llcjax.report.summary import curve_sentence
from llcjax.selection import choose_checkpoints, one_setting, setting_label, verdict_counts
from llcjax.sensitivity import curve_sensitivity, stage_sensitivity
from llcjax.verdicts import DISCRETISATION_LIMIT, NOISE_LIMIT, RHAT_LIMIT

VERDICT_MEANINGS = {
    "ok": "no check objected: chains agree, stay local and are precise enough",
    "noisy": f"the standard error is above {NOISE_LIMIT:.0%} of the LLC: more chains or more draws",
    "biased": f"the step size inflates variances by over {DISCRETISATION_LIMIT:.0%}: lower it",
    "not_minimum": "the LLC is negative beyond its error: chains walk downhill from w*, which is no minimum",
    "left_basin": "the chains have lost most of what the model learned: raise the localization or n_beta",
    "not_mixed": f"R-hat is above {RHAT_LIMIT:g}: chains disagree or still drift; more draws, more burn-in",
    "stuck": "the chains had no time to feel the localization: more draws or a larger step size",
    "diverged": "a chain met a loss that is not finite or ran away: lower the step size",
    "failed": "draws are missing, or no chain survived",
}


def health_section(material: Material) -> str:
    """The verdicts with their meaning, where the sampler went, and whether its chains agree."""
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
        "Where the sampler went. The shaded gap, times n_beta, is the LLC. Draws nearer to the dashed line, a trivial "
        "predictor, than to w* have left the basin of what was learned, and the LLC there follows from the loss alone.",
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


def trace_section(material: Material) -> str:
    """Chains of a few checkpoints, draw by draw."""
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


def settings_section(material: Material) -> str:
    """The curve at every setting, where there are several."""
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


def sensitivity_section(material: Material) -> str:
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


def table_section(material: Material) -> str:
    """Every checkpoint with its numbers and its verdict."""
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
