"""The report and its figures on a made-up sweep that is shaped like a real one.

``python tests/test_report.py FOLDER`` writes the example, to be looked at.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("matplotlib")

from llcjax import plots, report
from llcjax.stages import Boundary, CurveFit, Plateau, Stage, Stages

STEPS = np.unique(np.r_[0, np.geomspace(1, 500_000, 46)].round().astype(np.int64))
CHANCE, RIDGE = 4.12, 0.95
ENDS = (
    ("LR1", 1000, "A"),
    ("LR2", 40_000, "A"),
    ("LR3", 126_000, "B"),
    ("LR4", 320_000, "B"),
    ("LR5", 500_000, "-"),
)


def example_llc(steps: np.ndarray) -> np.ndarray:
    """Return an LLC curve with a small rise, a large rise, two falls and a flat end."""
    x = np.log(steps + 1.0)

    def rise(where: float, width: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(x - np.log(where)) / width))

    return 20 * rise(60, 0.9) + 150 * rise(9000, 0.55) - 12 * rise(80_000, 0.15) - 44 * rise(200_000, 0.14)


def example_loss(steps: np.ndarray) -> np.ndarray:
    x = np.log(steps + 1.0)
    return 4.4 - 0.32 / (1 + np.exp(-(x - 4) / 0.9)) - 2.4 / (1 + np.exp(-(x - np.log(9000)) / 0.6))


def example_sweep(steps: np.ndarray = STEPS, num_settings: int = 1) -> xr.Dataset:
    rng, dims = np.random.default_rng(0), ("checkpoint", "setting", "chain", "draw")
    shape, draws = (len(steps), num_settings, 4, 250), np.arange(250) * 4
    n_beta = np.linspace(40, 80, num_settings) if num_settings > 1 else np.asarray([66.67])
    height = (example_llc(steps) + 3)[:, None] / n_beta
    climb = 1 - np.exp(-draws / 60.0)
    noise = rng.normal(size=shape) * 0.08 + np.cumsum(rng.normal(size=shape), -1) * 0.004
    baseline = example_loss(steps)[:, None, None, None] + rng.normal(size=shape) * 0.2
    excess = height[:, :, None, None] * (climb + 0.05 * rng.normal(size=(4, 1))) + noise
    return xr.Dataset(
        {"loss": (dims, baseline + excess), "baseline_loss": (dims, baseline)},
        coords={"checkpoint": steps, "draw": draws, "chain": np.arange(4), **_settings(n_beta)},
        attrs={"chance": CHANCE, "num_burnin_steps": 300},
    )


def _settings(n_beta: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    ones = np.ones(len(n_beta))
    return {
        "n_beta": ("setting", n_beta),
        "localization": ("setting", 6.67 * ones),
        "step_size": ("setting", 0.003 * ones),
    }


def example_estimates(steps: np.ndarray = STEPS, num_settings: int = 1) -> xr.Dataset:
    rng, dims, shape = np.random.default_rng(1), ("checkpoint", "setting"), (len(steps), num_settings)
    n_beta = example_sweep(steps[:1], num_settings)["n_beta"].values
    stderr, loss = rng.uniform(1.0, 3.0, shape), example_loss(steps)[:, None] * np.ones(shape)
    llc = example_llc(steps)[:, None] + 3 + 0.8 * stderr * rng.normal(size=shape) + 10 * np.arange(num_settings)
    variables = {
        "llc": llc,
        "llc_stderr": stderr,
        "rhat": 1.003 + rng.exponential(0.004, shape),
        "ess_bulk": rng.uniform(150, 700, shape),
        "num_chains_used": np.full(shape, 4),
        "init_loss": loss,
        "mean_loss": loss + llc / n_beta,
        "verdict": np.full(shape, "ok", dtype=object),
        "sentence": np.full(shape, "Every check passed.", dtype=object),
    }
    dataset = xr.Dataset({name: (dims, value) for name, value in variables.items()}, attrs={"chance": CHANCE})
    dataset["llc_position"] = ((*dims, "position"), llc[:, :, None] * np.linspace(0.4, 1.3, 8))
    dataset["llc_position_stderr"] = xr.full_like(dataset["llc_position"], 2.0)
    return dataset.assign_coords(checkpoint=steps, position=np.arange(1, 9), **_settings(n_beta))


def troubled_estimates() -> xr.Dataset:
    """Return estimates with a checkpoint of each bad kind, one without a number and one far off the scale."""
    estimates = example_estimates()
    troubles = (
        *((0, "not_minimum", -900.0), (3, "noisy", None), (9, "diverged", np.nan), (22, "not_mixed", None)),
        *((28, "biased", None), (33, "left_basin", None), (34, "left_basin", None), (40, "stuck", 12.0)),
    )
    for index, verdict, value in troubles:
        place = {"checkpoint": index, "setting": 0}
        estimates["verdict"][place] = verdict
        estimates["sentence"][place] = f"This one is {verdict}: the step size 0.003 is too large, try 0.001."
        if value is not None:
            estimates["llc"][place] = value
        if value is not None and not np.isfinite(value):
            for name in ("llc_stderr", "rhat", "ess_bulk", "mean_loss"):
                estimates[name][place] = np.nan
    estimates["rhat"][{"checkpoint": 22}] = 1.4
    return estimates


def example_stages() -> Stages:
    grid = np.expm1(np.linspace(0, np.log(500_001), 300))
    mean, slope = example_llc(grid) + 3, np.gradient(example_llc(grid), np.log(grid + 1))
    bands = {"lower": mean - 3, "upper": mean + 3, "slope_lower": slope - 6, "slope_upper": slope + 6}
    numbers = {
        "amplitude": 60.0,
        "length_scale": 1.2,
        "noise_sd": 1.5,
        "time_scale": 1.0,
        "point_noise_sd": 0 * STEPS,
    }
    kinds = (("plateau", 0.99), ("zero_slope", 0.96), ("least_slope", 0.41), ("plateau", 0.83))
    boundaries = [
        Boundary(step=end, lower=0.8 * end, upper=1.15 * end, kind=kind, probability=probability)
        for (_, end, _), (kind, probability) in zip(ENDS, kinds, strict=False)
    ]
    starts = [0, *(end for _, end, _ in ENDS)]
    changes = np.diff(example_llc(np.asarray(starts)))
    stages = [
        Stage(
            name=name,
            start=start,
            end=end,
            kind=kind,
            delta_value=change,
            delta_value_stderr=2.1,
            delta_loss=-0.07,
        )
        for start, (name, end, kind), change in zip(starts, ENDS, changes, strict=False)
    ]
    plateaus = [Plateau(start=400, end=1500, probability=0.99), Plateau(start=3e5, end=5e5, probability=0.9)]
    fit = CurveFit(step=grid, mean=mean, slope=slope, **bands, **numbers)
    return Stages(
        method="gp",
        fit=fit,
        boundaries=tuple(boundaries),
        plateaus=tuple(plateaus),
        stages=tuple(stages),
        tolerance=3.0,
    )


def example_metrics() -> xr.Dataset:
    loss = example_loss(STEPS)
    named = {
        "test_loss": (loss, "test loss"),
        "ridge_distance": (loss - RIDGE, "distance to ridge regression"),
        "zero_prediction": (4.5 - loss, "mean squared prediction"),
        "icl_1_4": ((loss - 4.4) * 0.5, "in-context learning 1 to 4"),
        "icl_4_8": ((loss - 4.4) * 0.3, "in-context learning 4 to 8"),
        "ood_inputs_3": (loss * 2, "loss on inputs scaled by 3"),
        "ood_inputs_10": (loss**3 * 4, "loss on inputs scaled by 10"),
        "weight_norm": (20 + 2 * np.log1p(STEPS), "weight norm"),
        "test_loss_position": (loss[:, None] * np.linspace(1.2, 0.6, 16), "test loss by position"),
    }
    dims = ("checkpoint", "position")
    metrics = xr.Dataset({name: (dims[: value.ndim], value) for name, (value, _) in named.items()})
    for name, (_, long_name) in named.items():
        metrics[name].attrs = {"long_name": long_name, "units": "squared error"}
    metrics = metrics.assign_coords(checkpoint=STEPS, position=np.arange(1, 17))
    return metrics.assign_attrs(chance=CHANCE, ridge_loss=RIDGE)


def write_example(folder: Path, *, sweep: xr.Dataset | None = None, **changes: object) -> Path:
    fields = {
        "title": "In-context linear regression, seed 1",
        "estimates": troubled_estimates(),
        "metrics": example_metrics(),
        "stages": example_stages(),
        "config": {"sweep": {"num_chains": 4, "n_beta": [66.67]}, "task": {"noise": 0.125}},
        "provenance": {"llcjax": "0.1.0", "devices": {"kind": "cpu", "count": 1}},
        "command": "llcjax run regression --seed 1",
        "notes": ["One seed: spread between training runs is not in the error bars."],
    }
    return report.write_report(folder, sweep=example_sweep() if sweep is None else sweep, **{**fields, **changes})


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch):
    monkeypatch.setattr(plots, "DOTS_PER_INCH", 40)


class Loads(HTMLParser):
    """Collects what a page would load, and checks that tags close in order."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.loads: list[str] = []
        self.images_without_alt = 0

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in self.VOID:
            self.open_tags.append(tag)
        if tag != "a":
            self.loads += [values[name] for name in ("src", "href", "srcset", "data") if name in values]
        self.images_without_alt += tag == "img" and not values.get("alt")

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag


def parse(path: Path) -> Loads:
    page = Loads()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open_tags == []
    return page


def test_the_report_is_one_file_that_loads_nothing(tmp_path):
    path = write_example(tmp_path)
    page = parse(path)
    assert len(page.loads) == 8 and all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert page.images_without_alt == 0
    assert "url(" not in path.read_text() and "@import" not in path.read_text() and "<script" not in path.read_text()
    names = {file.stem for file in (tmp_path / "figures").glob("*.png")}
    assert names == {"curve", "slope", "metrics", "positions", "mean_loss", "health", "traces", "running_llc"}


def test_whatever_comes_from_a_file_is_escaped(tmp_path):
    evil = "<script>alert('$x^')</script>"
    estimates, stages = example_estimates(), example_stages()
    estimates["sentence"][:] = estimates["verdict"][2] = evil
    metrics = example_metrics()
    metrics["test_loss"].attrs.update(long_name=evil, units=evil)
    first = replace(stages.stages[0], name=evil, kind=evil)
    end = replace(stages.boundaries[0], kind=evil, lower=np.nan, upper=np.nan)
    stages = replace(stages, method=evil, stages=(first, *stages.stages[1:]), boundaries=(end, *stages.boundaries[1:]))
    words = {"title": evil, "command": evil, "notes": [evil], "chance_name": evil}
    tables = {"config": {evil: {"a": evil}}, "provenance": {evil: {evil: [evil]}}}
    path = write_example(tmp_path, estimates=estimates, stages=stages, metrics=metrics, **words, **tables)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text and text.count("&lt;script&gt;") > 10
    parse(path)


def test_the_summary_answers_in_plain_words():
    lines = dict(report.summary_lines(troubled_estimates(), example_stages()))
    assert lines["What is the curve?"].count("at step") == 3 and "maximum" in lines["What is the curve?"]
    assert (
        lines["Where are the stages?"].startswith("5 stages")
        and "LR2 (type A) up to 40,000" in lines["Where are the stages?"]
    )
    assert "2 left basin" in lines["Can I trust it?"] and "1 diverged" in lines["Can I trust it?"]
    assert lines["Did the sampler stay local?"].startswith("Not everywhere: at ")
    doubtful = troubled_estimates()
    doubtful["verdict"][5:] = "left_basin"
    assert "taken at face value, the LLC goes from" in report.summary_lines(doubtful)[0][1]
    local = example_estimates().assign(mean_loss=example_estimates()["init_loss"] + 0.1)
    assert report.summary_lines(local)[3][1].startswith("Yes, by this test: ")


@pytest.mark.parametrize("steps", [[0], [700], [0, 100], [5, 50_000]])
def test_few_checkpoints_without_stages_or_metrics(tmp_path, steps):
    steps = np.asarray(steps)
    path = write_example(
        tmp_path, sweep=example_sweep(steps), estimates=example_estimates(steps), metrics=None, stages=None
    )
    parse(path)
    assert "Stages were not looked for" in path.read_text()


def test_every_number_missing(tmp_path):
    estimates = example_estimates()
    for name in ("llc", "llc_stderr", "rhat", "ess_bulk", "mean_loss", "init_loss", "llc_position"):
        estimates[name][:] = np.nan
    estimates["verdict"][:] = "failed"
    del estimates.attrs["chance"]
    path = write_example(tmp_path, estimates=estimates, sweep=example_sweep() * np.nan)
    assert "No checkpoint has a finite LLC" in path.read_text()


def test_several_settings_are_compared(tmp_path):
    estimates, sweep = example_estimates(num_settings=3), example_sweep(num_settings=3)
    text = write_example(tmp_path, estimates=estimates, sweep=sweep, setting=2).read_text()
    assert "Settings compared" in text and (tmp_path / "figures" / "settings.png").exists()
    assert "n_beta 80" in text
    with pytest.raises(ValueError, match=r"setting=3.*0 to 2"):
        write_example(tmp_path, estimates=estimates, setting=3)


def test_tables_hold_every_checkpoint_setting_and_position(tmp_path):
    report.write_tables(tmp_path, example_estimates(num_settings=2), example_metrics(), example_stages())
    rows = (tmp_path / "llc.csv").read_text().splitlines()
    assert rows[0].startswith(
        "step,n_beta,localization,step_size,llc,llc_stderr,rhat,ess_bulk,mean_loss,init_loss,verdict"
    )
    assert len(rows) == 1 + 2 * len(STEPS)
    assert "test_loss_position[16]" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert len((tmp_path / "stages.csv").read_text().splitlines()) == 6


def test_numbers_are_rounded_to_their_error():
    assert report.plus_minus(123.456, 2.34) == "123.5 ± 2.3"
    assert report.plus_minus(12345.6, 210.0) == "12,350 ± 210"
    assert report.plus_minus(np.nan, 1.0) == "none"
    assert report.plus_minus(4.0, np.nan, sign=True) == "+4"


def test_intervals_of_the_estimates_win_over_the_standard_error():
    curve = example_estimates().isel(setting=0)
    assert np.allclose(plots.interval(curve)[1] - curve["llc"], 1.96 * curve["llc_stderr"])
    wide = curve.assign(llc_lower=curve["llc"] - 9, llc_upper=curve["llc"] + 9)
    assert np.allclose(plots.interval(wide)[0], curve["llc"] - 9)


def test_figures_leave_the_global_state_alone():
    plots.plot_curve(example_estimates(), example_metrics(), example_stages())
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_figures_say_what_is_missing():
    with pytest.raises(ValueError, match="llc_position"):
        plots.plot_positions(example_estimates().drop_vars("llc_position"))
    with pytest.raises(ValueError, match=re.escape("stages.fit is None")):
        plots.plot_slope(SimpleNamespace(fit=None))
    with pytest.raises(ValueError, match="metrics has no numeric variable"):
        plots.plot_metrics(example_metrics()[[]])


if __name__ == "__main__":
    print(write_example(Path(sys.argv[1])))
