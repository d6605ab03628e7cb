"""The page of a calibration: recommendation, reasons, heat maps, the table of settings, the two-sided bracket."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llcjax import plots
from llcjax.report import markup
from llcjax.report.formats import number, plus_minus, step_text
from llcjax.report.page import PAGE, STYLE
from llcjax.selection import severity

if TYPE_CHECKING:
    from llcjax.calibrate import Bracket, Calibration, WarmUp

HEADER = (
    "setting", "n_beta", "localization", "step size", "LLC", "R-hat, most", "acceptance", "rise, most",
    "of prior's rise", "verdict", "sound", "stable",
)  # fmt: skip


def calibration_rows(calibration: Calibration) -> list[list[str]]:
    """One row a setting, under `HEADER`: measures over the trained checkpoints, the LLC at every checkpoint."""
    table, judged = calibration.table, calibration.judged
    trained = judged["trained"].values
    trained = trained if trained.any() else np.ones_like(trained)
    rows = []
    for setting, stable in enumerate(calibration.stable):
        one, here = table.isel(setting=setting), judged.isel(setting=setting)
        rows.append(
            [
                f"{setting}*" if setting == calibration.chosen else str(setting),
                *(f"{float(one[name]):.4g}" for name in ("n_beta", "localization", "step_size")),
                " ".join(number(value, ".3g") for value in one["llc"].values),
                number(_most(one["rhat"].values[trained]), ".2f"),
                number(_mean(here["acceptance"].values[trained]), ".0%"),
                number(_most(here["lift"].values[trained]), ".0%"),
                number(_most(here["free_share"].values[trained]), ".0%"),
                max(one["verdict"].values[trained].astype(str), key=severity),
                f"{int(here['sound'].values[trained].sum())} of {int(trained.sum())}",
                "yes" if stable else "step size" if here["step_plateau"].values[trained].all() else "no",
            ]
        )
    return rows


def _most(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else math.nan


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def write_calibration(out_dir: Path | str, calibration: Calibration, *, title: str, command: str) -> Path:
    """Write `calibration.html`, which holds its figures, and the figures as PNG files; return its path."""
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sections = (
        ("maps", "LLC over the grid", _llc_maps(folder, calibration)),
        ("health", "Health over the grid", _health_maps(folder, calibration)),
        ("warmup", "Step-size warm-up", _warmup(calibration.warmup)),
        ("settings", "Every setting", _settings(calibration)),
        ("bracket", "From both sides", _bracket(calibration.bracket)),
        ("making", "Made by", markup.preformatted(command)),
    )
    steps = ", ".join(step_text(step) for step in calibration.table["checkpoint"].values)
    found = calibration.recommended is not None
    page = PAGE.substitute(
        title=markup.text(title),
        subtitle=markup.text(f"{calibration.table.sizes['setting']} settings at steps {steps}"),
        summary=f"<p><b>{'Recommended setting' if found else 'No setting is recommended'}</b></p>"
        + "".join(f"<p>{markup.text(reason)}</p>" for reason in calibration.reasons),
        trust="good" if found else "poor",
        notes="",
        contents="".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, body in sections if body),
        sections="\n".join(
            f'<section id="{anchor}"><h2>{heading}</h2>{body}</section>' for anchor, heading, body in sections if body
        ),
        style=STYLE,
    )
    path = folder / "calibration.html"
    path.write_text(page, encoding="utf-8")
    return path


def _save(folder: Path, name: str, figure: plots.Figure, alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    (folder / f"{name}.png").write_bytes(buffer.getvalue())
    return markup.image(buffer.getvalue(), alt, caption)


def _llc_maps(folder: Path, calibration: Calibration) -> str:
    return _save(
        folder,
        "calibration_llc",
        plots.plot_llc_maps(calibration.table, calibration.judged, calibration.chosen),
        "LLC at each checkpoint over step size and localization",
        "LLC with its standard error. Hatched: chains are dead, far, biased or not mixed. Dotted: sound, but no "
        "neighboring step size agrees. Red frame: the recommended setting. Colours are scaled in each panel.",
    )


def _health_maps(folder: Path, calibration: Calibration) -> str:
    return _save(
        folder,
        "calibration_health",
        plots.plot_health_maps(calibration.table, calibration.judged, calibration.chosen),
        "R-hat, acceptance, rise of the loss and verdict over step size and localization",
        "Over the trained checkpoints (loss below 0.9 of chance). Rise towards chance: how far the mean sampled loss "
        "has gone from L(w*) to that of a trivial predictor; at most 20% counts as local. Hatched: not sound.",
    )


def _settings(calibration: Calibration) -> str:
    verdict = HEADER.index("verdict")
    words = (0, HEADER.index("LLC"), *range(verdict, len(HEADER)))
    body = markup.table(HEADER, calibration_rows(calibration), text_columns=words, verdict_column=verdict)
    return (
        body + "<p class='small'>* recommended. LLCs are in the order of the steps above. Of prior's rise: the rise of "
        "the loss as a share of that of draws from the localization prior alone; near 100% the loss does not hold the "
        "chains, and the LLC is a sharpness at the scale of the localization.</p>"
    )


def _warmup(warmup: WarmUp | None) -> str:
    """The least acceptance over the checkpoints at each step size that was tried, and the step that was taken."""
    if warmup is None:
        return ""
    least = warmup.acceptance.min("checkpoint")
    steps = np.unique(least["step_size"].values)
    rows = [
        [
            f"{one.n_beta:.4g}",
            f"{one.localization:.4g}",
            *(number(float(value), ".0%") for value in least.values.reshape(-1, len(steps))[index]),
            f"{one.step_size:.3g}",
        ]
        for index, one in enumerate(warmup.found)
    ]
    header = ["n_beta", "localization", *(f"{step:.2g}" for step in steps), f"step size at {warmup.target:.0%}"]
    words = "MALA acceptance of short chains at the hardest checkpoint, by step size, and the step size taken from it."
    return f"<p>{words}</p>" + markup.table(header, rows)


def _bracket(bracket: Bracket | None) -> str:
    if bracket is None:
        return ""
    columns = (
        bracket.step,
        bracket.from_prior,
        bracket.from_anchor,
        bracket.difference,
        bracket.stderr,
        bracket.closed,
    )
    rows = [
        [step_text(step), number(prior, ".4g"), number(anchor, ".4g"), plus_minus(difference, error, sign=True),
         "yes" if closed else "no"]
        for step, prior, anchor, difference, error, closed in zip(*columns, strict=True)
    ]  # fmt: skip
    words = "<p>Chains from a draw of the localization prior and from the checkpoint must end at the same LLC.</p>"
    return words + markup.table(["step", "LLC from the prior", "from the checkpoint", "difference", "the same"], rows)
