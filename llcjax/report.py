"""The report of a sweep: one HTML file that works offline, its figures as PNG files, its tables as CSV files.

The page answers three questions in this order: what is the LLC curve, where are the stages, can I trust it?
Everything that comes from a file (names, sentences, config, command) is escaped before it enters the page,
and a content security policy in the page forbids it to load or run anything.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from llcjax import plots
from llcjax.diagnostics import DISCRETISATION_LIMIT, NOISE_LIMIT, RHAT_LIMIT
from llcjax.estimators import running_llc

if TYPE_CHECKING:
    from llcjax.stages import Stages

MEANINGS = {
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
KINDS = {"A": "A (rises)", "B": "B (falls)", "-": "neither"}
STAGE_MEANINGS = "A: the LLC rises. B: it falls. Neither: the change is within 2 standard errors of 0."


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
    setting: int = 0,
    chance_name: str = "zero predictor",
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
        setting: index of the hyperparameter setting that the page shows.
        chance_name: what the predictor is called whose loss is the attribute ``chance`` of ``estimates``.

    Returns:
        The path of ``report.html``.

    Raises:
        ValueError: ``setting`` is not one of those in ``estimates``.
    """
    folder = Path(out_dir)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    estimates = estimates.assign_attrs(chance_name=chance_name)
    curve = plots.one_setting(estimates, setting)
    figure = _Figures(folder / "figures")
    sections = [
        _curve_section(figure, estimates, metrics, stages, setting),
        _stage_section(figure, stages),
        _position_section(figure, estimates, stages, setting),
        _metric_section(figure, metrics, stages),
        _health_section(figure, estimates, stages, curve, setting),
        _trace_section(figure, sweep, estimates, curve, setting),
        _settings_section(figure, estimates, stages),
        _table_section(curve),
        _reading_section(),
        _making_section(config, provenance, command),
    ]
    page = PAGE.substitute(
        title=_text(title),
        subtitle=_text(_subtitle(sweep, curve)),
        summary=_summary(curve, stages),
        trust=_trust_level(curve),
        notes=_notes(notes),
        contents=_contents(sections),
        sections="\n".join(_section(*section) for section in sections if section[2]),
        style=STYLE,
    )
    write_tables(folder, estimates, metrics, stages)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def write_tables(
    out_dir: str | Path,
    estimates: xr.Dataset,
    metrics: xr.Dataset | None = None,
    stages: Stages | None = None,
) -> list[Path]:
    """Write ``llc.csv`` and, where there are any, ``stages.csv`` and ``metrics.csv``; return their paths."""
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"llc.csv": _llc_rows(estimates)}
    if stages is not None:
        tables["stages.csv"] = _stage_rows(stages)
    if metrics is not None:
        tables["metrics.csv"] = _metric_rows(metrics)
    for name, rows in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return [folder / name for name in tables]


# ---- the summary -----------------------------------------------------------------------------------------


def summary_lines(estimates: xr.Dataset, stages: Stages | None = None, *, setting: int = 0) -> list[tuple[str, str]]:
    """Return the answers at the top of the page as (question, sentence) pairs in plain text."""
    return _summary_lines(plots.one_setting(estimates, setting), stages)


def _summary_lines(curve: xr.Dataset, stages: Stages | None) -> list[tuple[str, str]]:
    return [
        ("What is the curve?", _curve_sentence(curve)),
        ("Where are the stages?", _stage_sentence(stages)),
        ("Can I trust it?", _trust_sentence(curve)),
        ("Did the sampler stay local?", _basin_sentence(curve)),
    ]


def _curve_sentence(curve: xr.Dataset) -> str:
    finite, fine = np.isfinite(curve["llc"].values), _credible(curve)
    if not finite.any():
        return "No checkpoint has a finite LLC: the verdicts below say what to change."
    known = curve.isel(checkpoint=fine)
    all_ok = (known["verdict"].values.astype(str) == "ok").all()
    subject = "The LLC" if all_ok else "Most estimates are not ok; taken at face value, the LLC"
    top, end = int(np.argmax(known["llc"].values)), known.sizes["checkpoint"] - 1
    places = [_llc_at(known, 0)] if top > 0 else []
    places.append(("a maximum of " if end else "") + _llc_at(known, top))
    places += [_llc_at(known, end)] if top < end else []
    verb = "is" if end == 0 else "goes from" if top > 0 else "starts at"
    note = ", over the checkpoints that are ok" if all_ok and not fine.all() else ""
    path = ", then ".join(places).replace(", then", " to", int(top > 0))
    return f"{subject} {verb} {path}{note} (± one standard error)."


def _llc_at(curve: xr.Dataset, index: int) -> str:
    one = curve.isel(checkpoint=index)
    return f"{plus_minus(float(one['llc']), float(one['llc_stderr']))} at step {int(one['checkpoint']):,}"


def _credible(curve: xr.Dataset) -> np.ndarray:
    """Return which checkpoints the summary is about: the ok ones, or all finite ones if those are few."""
    finite = np.isfinite(curve["llc"].values)
    fine = finite & (curve["verdict"].values.astype(str) == "ok")
    return fine if 2 * fine.sum() >= finite.sum() else finite


def _largest(curve: xr.Dataset) -> int:
    """Return the step of the largest LLC that the summary speaks of."""
    values = np.where(_credible(curve), curve["llc"].values, -np.inf)
    return int(curve["checkpoint"].values[np.argmax(values)])


def _stage_sentence(stages: Stages | None) -> str:
    if stages is None:
        return "Stages were not looked for."
    if len(stages.stages) < 2:
        return "No boundary was found: the curve is one stage."
    kinds = {"A": "type A", "B": "type B", "-": "neither"}
    parts = [
        f"{stage.name} ({kinds.get(stage.kind, stage.kind)}) up to {round(stage.end):,}" for stage in stages.stages
    ]
    return f"{len(parts)} stages, by steps at which they end: {', '.join(parts)}."


def _trust_sentence(curve: xr.Dataset) -> str:
    counts, total = _counts(curve), curve.sizes["checkpoint"]
    if counts.get("ok") == total:
        return f"The verdict is ok at all {total} checkpoints." if total > 1 else "The verdict of the checkpoint is ok."
    others = ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in counts.items() if verdict != "ok")
    return f"The verdict is ok at {counts.get('ok', 0)} of {total} checkpoints; the others: {others}."


def _counts(curve: xr.Dataset) -> dict[str, int]:
    """Return how many checkpoints have each verdict, the best verdict first."""
    counts = Counter(str(verdict) for verdict in curve["verdict"].values)
    return {verdict: counts[verdict] for verdict in sorted(counts, key=plots.severity)}


def _basin_sentence(curve: xr.Dataset) -> str:
    chance, name = curve.attrs.get("chance"), curve.attrs.get("chance_name", "zero predictor")
    if chance is None:
        return f"The loss of the {name} is not known, so this cannot be told from the loss."
    drawn, start, name = curve["mean_loss"].values, curve["init_loss"].values, f"{name} (loss {chance:.4g})"
    learned = np.isfinite(drawn) & (start < 0.9 * float(chance))
    if not learned.any():
        return f"No checkpoint beats the {name} by a tenth, so the question is open."
    away = learned & (drawn >= float(chance))
    share = np.median((drawn - start)[learned] / (float(chance) - start)[learned])
    middle = f"at the median checkpoint, sampling undid {share:.0%} of the network's lead over it"
    middle = middle if share > 0 else "at the median checkpoint, the draws have lower loss than w*"
    if not away.any():
        return f"Yes, by this test: wherever w* clearly beats the {name}, so do the sampler's draws; {middle}."
    steps = curve["checkpoint"].values[away]
    return (
        f"Not everywhere: at {away.sum()} of the {learned.sum()} checkpoints that clearly beat the {name}, "
        f"the draws no longer do (between steps {steps[0]:,} and {steps[-1]:,}), so the LLC there mostly "
        f"restates the loss; {middle}."
    )


def _trust_level(curve: xr.Dataset) -> str:
    share = _counts(curve).get("ok", 0) / max(curve.sizes["checkpoint"], 1)
    return "good" if share >= 0.9 else "mixed" if share >= 0.5 else "poor"


def _subtitle(sweep: xr.Dataset | None, curve: xr.Dataset) -> str:
    sizes = {"checkpoint": curve.sizes["checkpoint"]}
    if sweep is not None:
        sizes |= {dim: sweep.sizes[dim] for dim in ("chain", "draw") if dim in sweep.sizes}
    parts = [f"{size} {dim}" + "s" * (size != 1) for dim, size in sizes.items()]
    return ", ".join([*parts, plots.setting_label(curve)])


# ---- sections: (anchor, heading, html) -------------------------------------------------------------------


class _Figures:
    """Saves a figure as PNG and returns the HTML that holds the same bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, make: Callable[[], plots.Figure], alt: str, caption: str) -> str:
        buffer = io.BytesIO()
        make().savefig(buffer, format="png", metadata={"Software": None})
        (self.folder / f"{name}.png").write_bytes(buffer.getvalue())
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{_text(alt)}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )


Section = tuple[str, str, str]


def _curve_section(
    figure: _Figures, estimates: xr.Dataset, metrics: xr.Dataset | None, stages: Stages | None, setting: int
) -> Section:
    bands = (
        " Blue bands are stages of type A, orange ones of type B, grey ones neither; dashed lines are "
        "boundaries and the dark strips on them their 90% intervals."
    )
    body = figure(
        "curve",
        lambda: plots.plot_curve(estimates, metrics, stages, setting=setting),
        "LLC with error bars above the loss, both against the training step, with bands for the stages",
        "LLC (top) and loss (bottom). Bars are 95% intervals; shape and colour of a marker are its verdict."
        + ("" if stages is None else bands),
    )
    return "curve", "LLC and loss", body


def _position_section(figure: _Figures, estimates: xr.Dataset, stages: Stages | None, setting: int) -> Section:
    if "llc_position" not in estimates:
        return "positions", "LLC by position", ""
    body = figure(
        "positions",
        lambda: plots.plot_positions(estimates, stages, setting=setting),
        "LLC of single positions in the context against the training step",
        "LLC of the loss at single positions of the context, with 95% intervals.",
    )
    return "positions", "LLC by position", body


def _stage_section(figure: _Figures, stages: Stages | None) -> Section:
    if stages is None:
        return "stages", "Stages", ""
    header = [
        "stage",
        "from step",
        "to step",
        "90% interval",
        "boundary, prob.",
        "type",
        "change of LLC",
        "change of loss",
    ]
    body = _table(header, [_stage_cells(row) for row in stages.table()], text_columns=(0, 4, 5))
    body += f"<p class='small'>{_text(STAGE_MEANINGS)} Method: {_text(stages.method)}.</p>"
    if stages.fit is not None:
        body += figure(
            "slope",
            lambda: plots.plot_slope(stages),
            "Slope of the fitted LLC curve against the training step, with its band",
            "Slope of the fitted LLC against ln(step + 1), with its band. Stages end where it is zero or, "
            "at dotted lines, where it is merely least. A band that never leaves zero means that the "
            "boundary is not certain.",
        )
    return "stages", "Stages", body


def _stage_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one row of ``Stages.table``; numbers that are NaN stay empty."""
    known = math.isfinite(row["end_lower"])
    return [
        row["name"],
        step_text(row["start"]),
        step_text(row["end"]),
        f"{step_text(row['end_lower'])} to {step_text(row['end_upper'])}" if known else "",
        row["end_kind"].replace("_", " ") + (f", {row['end_probability']:.2g}" if known else ""),
        KINDS.get(row["kind"], row["kind"]),
        plus_minus(row["delta_value"], row["delta_value_stderr"], sign=True),
        "" if row["delta_loss"] is None else _minus(f"{row['delta_loss']:+.3g}"),
    ]


def _metric_section(figure: _Figures, metrics: xr.Dataset | None, stages: Stages | None) -> Section:
    if metrics is None:
        return "metrics", "Metrics", ""
    body = figure(
        "metrics",
        lambda: plots.plot_metrics(metrics, stages),
        "Behavioural and structural metrics against the training step, one panel each",
        "Measures of the same checkpoints under the same bands. A stage of the LLC that is real should "
        "coincide with a change in some of them.",
    )
    return "metrics", "Metrics", body


def _health_section(
    figure: _Figures, estimates: xr.Dataset, stages: Stages | None, curve: xr.Dataset, setting: int
) -> Section:
    rows = [
        [
            verdict,
            str(count),
            "" if verdict == "ok" else _first_steps(curve, verdict),
            MEANINGS.get(verdict, ""),
        ]
        for verdict, count in _counts(curve).items()
    ]
    body = _table(["verdict", "checkpoints", "steps", "meaning"], rows, text_columns=(0, 2, 3), verdict_column=0)
    body += figure(
        "mean_loss",
        lambda: plots.plot_mean_loss(estimates, stages=stages, setting=setting),
        "Mean loss of the sampler's draws, loss at w* and loss of a trivial predictor against the training step",
        "Where the sampler went. The shaded gap, times n_beta, is the LLC. Draws at or above the dashed "
        "line know no more than a trivial predictor: they have left the basin, and the LLC there follows "
        "from the loss alone.",
    )
    body += figure(
        "health",
        lambda: plots.plot_health(estimates, stages, setting=setting),
        "R-hat and effective sample size against the training step",
        "R-hat near 1 means that the chains agree. The effective sample size is how many independent draws "
        "the chains are worth together.",
    )
    return "health", "Can I trust it?", body


def _first_steps(curve: xr.Dataset, verdict: str, most: int = 6) -> str:
    steps = curve["checkpoint"].values[curve["verdict"].values.astype(str) == verdict]
    return ", ".join(f"{step:,}" for step in steps[:most]) + (", ..." if len(steps) > most else "")


def _trace_section(
    figure: _Figures, sweep: xr.Dataset | None, estimates: xr.Dataset, curve: xr.Dataset, setting: int
) -> Section:
    if sweep is None or "loss" not in sweep:
        return "traces", "Traces and running LLC", ""
    chosen = choose_checkpoints(curve)
    # Only what is drawn is read: a whole sweep may not fit in memory.
    part = sweep.sel(checkpoint=list(chosen)).isel(setting=[setting]).load()
    burnin = estimates.attrs.get("num_burnin_steps", sweep.attrs.get("num_burnin_steps", 0))
    part = part.assign_attrs(num_burnin_steps=burnin)
    body = figure(
        "traces",
        lambda: plots.plot_traces(part, chosen),
        "Loss of every chain above the loss at w* against the sampler step, one panel a checkpoint",
        "One colour a chain: faint lines are draws, strong ones moving averages; burn-in is grey. Healthy "
        "chains reach one common level above zero before the burn-in ends and stay there.",
    )
    final = estimates.isel(setting=[setting])
    body += figure(
        "running_llc",
        lambda: plots.plot_running_llc(running_llc(part), chosen, estimates=final),
        "LLC from the draws so far against the sampler step, one panel a checkpoint",
        "LLC from the draws so far: grey lines are chains, the blue line is their mean, the green band the "
        "final estimate with its 95% interval. A line that still climbs at the right edge needs a longer "
        "run.",
    )
    return "traces", "Traces and running LLC", body


def choose_checkpoints(curve: xr.Dataset) -> dict[int, str]:
    """Return {step: why it is worth a look}, sorted: first, middle, last, largest LLC and the worst verdict.

    Args:
        curve: the estimates at one setting, sorted by checkpoint.
    """
    steps = [int(step) for step in curve["checkpoint"].values]
    verdicts = [str(verdict) for verdict in curve["verdict"].values]
    worst = max(range(len(steps)), key=lambda index: plots.severity(verdicts[index]))
    reasons: dict[int, list[str]] = {steps[0]: ["first"], steps[len(steps) // 2]: [], steps[-1]: ["last"]}
    if np.isfinite(curve["llc"].values).any():
        reasons.setdefault(_largest(curve), []).append("largest LLC")
    reasons.setdefault(steps[worst], [])
    remarks = {step: [*reason, verdicts[steps.index(step)].replace("_", " ")] for step, reason in reasons.items()}
    return {step: ", ".join(remarks[step]) for step in sorted(remarks)}


def _settings_section(figure: _Figures, estimates: xr.Dataset, stages: Stages | None) -> Section:
    if estimates.sizes["setting"] < 2:
        return "settings", "Settings", ""
    curves = [plots.one_setting(estimates, index) for index in range(estimates.sizes["setting"])]
    rows = [
        [
            str(index),
            plots.setting_label(curve),
            f"{_counts(curve).get('ok', 0)} of {curve.sizes['checkpoint']}",
            _curve_sentence(curve),
        ]
        for index, curve in enumerate(curves)
    ]
    body = _table(["setting", "hyperparameters", "ok", "curve"], rows, text_columns=(1, 3))
    body += figure(
        "settings",
        lambda: plots.plot_settings(estimates, stages),
        "LLC against the training step, one curve for each hyperparameter setting",
        "The same curve at every setting, with 95% intervals. Features that all of them share can be believed first.",
    )
    return "settings", "Settings compared", body


def _table_section(curve: xr.Dataset) -> Section:
    header = ["step", "LLC", "R-hat", "ESS", "chains", "verdict", "why"]
    rows = [_checkpoint_cells(curve.isel(checkpoint=index)) for index in range(curve.sizes["checkpoint"])]
    table = _table(header, rows, text_columns=(5, 6), verdict_column=5)
    return "table", "Every checkpoint", _details(f"Table of {len(rows)} checkpoints (also in llc.csv)", table)


def _checkpoint_cells(one: xr.Dataset) -> list[str]:
    return [
        step_text(float(one["checkpoint"])),
        plus_minus(float(one["llc"]), float(one["llc_stderr"])),
        _number(float(one["rhat"]), ".3f"),
        _number(float(one["ess_bulk"]), ",.0f"),
        str(int(one["num_chains_used"])) if "num_chains_used" in one else "",
        str(one["verdict"].values),
        str(one["sentence"].values),
    ]


def _reading_section() -> Section:
    entries = "".join(f"<dt>{_text(name)}</dt><dd>{meaning}</dd>" for name, meaning in GLOSSARY.items())
    return "reading", "How to read this", f"<dl>{entries}</dl>"


def _making_section(config: Mapping[str, Any], provenance: Mapping[str, Any], command: str) -> Section:
    rows = [[key, value] for key, value in _flatten(provenance)]
    body = f"<p>The command that makes this report again:</p><pre>{_text(command)}</pre>"
    body += _details("Provenance", _table(["what", "value"], rows, text_columns=(0, 1)) if rows else "<p>None.</p>")
    return "making", "Made by", body + _details("Configuration", f"<pre>{_text(_json(config))}</pre>")


# ---- text and HTML ---------------------------------------------------------------------------------------


def plus_minus(value: float, error: float, *, sign: bool = False) -> str:
    """Return a value with its standard error, both to two digits of the error.

    >>> plus_minus(123.456, 2.34), plus_minus(0.5, 0.012, sign=True), plus_minus(12345.6, 210.0)
    ('123.5 ± 2.3', '+0.500 ± 0.012', '12,350 ± 210')
    """
    plus = "+" if sign else ""
    if not math.isfinite(value):
        return "none"
    if not math.isfinite(error) or error <= 0:
        return _minus(f"{value:{plus}.4g}")
    digits = 1 - math.floor(math.log10(error))
    places = max(digits, 0)
    return _minus(f"{round(value, digits):{plus},.{places}f} ± {round(error, digits):,.{places}f}")


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def step_text(step: float) -> str:
    """Return a training step with separators: ``step_text(40292.3)`` is ``'40,292'``."""
    return f"{round(step):,}" if math.isfinite(step) else "none"


def _number(value: float, form: str) -> str:
    return _minus(format(value, form)) if math.isfinite(value) else "none"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: Sequence[int] = (),
    verdict_column: int | None = None,
) -> str:
    """Return a table; cells are escaped here, columns not in ``text_columns`` are set as numbers."""

    def cell(tag: str, index: int, value: str) -> str:
        kind = "" if index in text_columns else ' class="number"'
        inner = _pill(value) if tag == "td" and index == verdict_column else _text(value)
        return f"<{tag}{kind}>{inner}</{tag}>"

    head = "".join(cell("th", index, value) for index, value in enumerate(header))
    lines = ["".join(cell("td", index, value) for index, value in enumerate(row)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"


def _pill(verdict: str) -> str:
    level = "good" if verdict == "ok" else "mixed" if verdict in ("noisy", "biased") else "poor"
    return f'<span class="pill {level}">{_text(verdict.replace("_", " "))}</span>'


def _details(heading: str, body: str) -> str:
    return f"<details><summary>{_text(heading)}</summary>{body}</details>"


def _summary(curve: xr.Dataset, stages: Stages | None) -> str:
    lines = _summary_lines(curve, stages)
    return "".join(f"<p><b>{_text(question)}</b> {_text(answer)}</p>" for question, answer in lines)


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f'<aside class="notes"><b>Notes</b><ul>{items}</ul></aside>' if notes else ""


def _contents(sections: Sequence[Section]) -> str:
    return "".join(f'<a href="#{anchor}">{_text(heading)}</a>' for anchor, heading, body in sections if body)


def _section(anchor: str, heading: str, body: str) -> str:
    return f'<section id="{anchor}"><h2>{_text(heading)}</h2>{body}</section>'


# ---- tables ----------------------------------------------------------------------------------------------


def _llc_rows(estimates: xr.Dataset) -> list[list[Any]]:
    settings = [name for name in ("n_beta", "localization", "step_size") if name in estimates.coords]
    wanted = ("llc", "llc_stderr", "rhat", "ess_bulk", "mean_loss", "init_loss", "verdict")
    names = [name for name in wanted if name in estimates]
    rows: list[list[Any]] = [["step", *settings, *names]]
    for index in range(estimates.sizes["setting"]):
        curve = plots.one_setting(estimates, index)
        fixed = [float(curve[name]) for name in settings]
        columns = [curve[name].values.tolist() for name in names]
        rows += [[step, *fixed, *cells] for step, *cells in zip(curve["checkpoint"].values, *columns, strict=True)]
    return rows


def _stage_rows(stages: Stages) -> list[list[Any]]:
    table = stages.table()
    return [list(table[0]), *(list(row.values()) for row in table)]


def _metric_rows(metrics: xr.Dataset) -> list[list[Any]]:
    columns: dict[str, list[Any]] = {}
    for name, variable in metrics.data_vars.items():
        if "checkpoint" not in variable.dims:
            continue
        others = [dim for dim in variable.dims if dim != "checkpoint"]
        flat = variable.transpose("checkpoint", *others).values.reshape(metrics.sizes["checkpoint"], -1)
        labels = [[str(label) for label in variable[dim].values] for dim in others]
        for index, place in enumerate(np.ndindex(*(len(one) for one in labels))):
            where = ",".join(one[number] for one, number in zip(labels, place, strict=True))
            columns[f"{name}[{where}]" if where else str(name)] = flat[:, index].tolist()
    rows = zip(metrics["checkpoint"].values.tolist(), *columns.values(), strict=True)
    return [["step", *columns], *(list(row) for row in rows)]


# ---- the page --------------------------------------------------------------------------------------------

GLOSSARY = {
    "LLC": "The local learning coefficient, n&beta; (E[L(w)] &minus; L(w*)): how quickly good weights become "
    "rare as one moves away from the weights w*. Small means degenerate (many directions leave the loss as "
    "it is), large means that the weights must be just so. It has no units. Compare it along a curve at "
    "fixed hyperparameters rather than between settings. Lau et al., "
    '<a href="https://arxiv.org/abs/2308.12108" rel="noreferrer">arXiv 2308.12108</a>.',
    "stage, type A, type B": "A stretch of training between two resting points of the LLC. In type A the LLC "
    "rises while the loss falls: the network becomes more complex. In type B it falls: it becomes simpler. "
    "Hoogland "
    'et al., <a href="https://arxiv.org/abs/2402.02364" rel="noreferrer">arXiv 2402.02364</a>.',
    "n_beta, localization, step size": "n_beta is the number of examples times the inverse temperature; the "
    "localization (&gamma;) is the strength of the pull back to w*; the step size (&epsilon;) is the "
    "sampler's.",
    "error bar": "A 95% interval from the spread between chains. It covers the noise of the sampler, neither "
    "a bias of its hyperparameters nor the difference between training runs.",
    "R-hat, ESS": "R-hat compares the spread between chains with that within them and is 1 where they agree; "
    "ESS is the number of independent draws that the chains are worth together.",
    "verdict": "The worst thing that a check found at a checkpoint; ok if none objected. What each means is "
    'in the table under <a href="#health">Can I trust it?</a>.',
}

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5b636d; --page: #fbfbfa; --card: #fff;
  --line: #dcdfe3; --link: #0062a3; --good: #00734f; --mixed: #8a5a00; --poor: #b23a00; --code: #f1f3f5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a3abb5; --page: #16191d;
  --card: #1e2227; --line: #363c44; --link: #6db9ee; --good: #4cc79b; --mixed: #e5b04c; --poor: #f28a57;
  --code: #282d34; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 980px; padding: 2rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
a { color: var(--link); }
nav { margin: 1.1rem 0 0; font-size: .9rem; }
nav a { display: inline-block; margin-right: 1.1rem; }
.subtitle, .small, figcaption { color: var(--soft); font-size: .875rem; }
.subtitle { margin: .35rem 0 1.3rem; }
.summary, .notes, details, figure img { border: 1px solid var(--line); border-radius: 6px; }
.summary { background: var(--card); border-left: 6px solid var(--soft); padding: .35rem 1.1rem; }
.summary.good { border-left-color: var(--good); }
.summary.mixed { border-left-color: var(--mixed); }
.summary.poor { border-left-color: var(--poor); }
.summary p { margin: .55rem 0; }
.summary b { margin-right: .3em; }
.notes { margin: 1rem 0 0; padding: .6rem 1.1rem; font-size: .92rem; }
.notes ul { margin: .3rem 0; padding-left: 1.2rem; }
figure { margin: 1.1rem 0 1.6rem; }
figure img { display: block; width: 100%; height: auto; background: #fff; padding: 10px; }
figcaption { margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.4; }
th, td { text-align: left; vertical-align: top; padding: .38rem .6rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { overflow-wrap: break-word; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.pill { display: inline-block; padding: 0 .55em; border: 1px solid currentColor; border-radius: 1em;
  font-size: .8rem; font-weight: 600; white-space: nowrap; }
.pill.good { color: var(--good); }
.pill.mixed { color: var(--mixed); }
.pill.poor { color: var(--poor); }
details { padding: .5rem 1rem; margin: .7rem 0; background: var(--card); }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--code); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; font-size: .82rem;
  line-height: 1.45; }
dt { font-weight: 600; margin-top: .9rem; }
dd { margin: .15rem 0 0; }
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="subtitle">$subtitle</p>
<div class="summary $trust">$summary</div>
$notes
<nav aria-label="Contents">$contents</nav>
</header>
<main>
$sections
</main>
</body>
</html>
""")
