"""The report and its figures."""

from __future__ import annotations

import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from llcjax import plots, report
from llcjax.curve_verdict import curve_verdict
from llcjax.plots import style
from llcjax.selection import interval
from tests.report_example import (
    STEPS,
    example_estimates,
    example_metrics,
    example_stages,
    example_sweep,
    troubled_estimates,
    write_example,
)

FEW = STEPS[::9]


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch):
    monkeypatch.setattr(style, "DOTS_PER_INCH", 40)


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
    estimates, stages = example_estimates(FEW).drop_vars("llc_position"), example_stages()
    estimates["sentence"][:] = estimates["verdict"][2] = evil
    metrics = example_metrics()[["test_loss"]]
    metrics["test_loss"].attrs.update(long_name=evil, units=evil)
    first = replace(stages.stages[0], name=evil, kind=evil)
    end = replace(stages.boundaries[0], kind=evil, lower=np.nan, upper=np.nan)
    stages = replace(stages, method=evil, stages=(first, *stages.stages[1:]), boundaries=(end, *stages.boundaries[1:]))
    data = {"estimates": estimates, "stages": stages, "metrics": metrics, "sweep": example_sweep(FEW)}
    words = {"title": evil, "command": evil, "notes": [evil], "chance_name": evil}
    tables = {"config": {evil: {"a": evil}}, "provenance": {evil: {evil: [evil]}}}
    path = write_example(tmp_path, **data, **words, **tables)
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page and page.count("&lt;script&gt;") > 10
    parse(path)


def test_the_page_opens_with_the_verdict_on_the_curve_and_links_to_others(tmp_path):
    links = {"how the setting was chosen": "calibration/calibration.html", "<b>": '"><script>'}
    path = write_example(tmp_path, links=links)
    parse(path)
    page = path.read_text(encoding="utf-8")
    verdict = curve_verdict(troubled_estimates().isel(setting=0))
    assert f'<div class="summary {verdict.name}"><p><b>Can I trust it?</b> {verdict.sentence}' in page
    assert '<a href="calibration/calibration.html">how the setting was chosen</a>' in page
    assert "<script>" not in page and "See also" not in write_example(tmp_path).read_text(encoding="utf-8")


def test_the_summary_answers_in_plain_words():
    lines = dict(report.summary_lines(troubled_estimates(), example_stages()))
    assert next(iter(lines)) == "Can I trust it?"
    assert lines["What is the curve?"].count("at step") == 3 and "maximum" in lines["What is the curve?"]
    stages = lines["Where are the stages?"]
    assert stages.startswith("5 stages") and "LR2 (type A) up to 40,000" in stages
    assert "2 left basin" in lines["Can I trust it?"] and "1 diverged" in lines["Can I trust it?"]
    assert lines["Did the sampler stay local?"].startswith("Not everywhere: at ")
    doubtful = troubled_estimates()
    doubtful["verdict"][5:] = "left_basin"
    assert "taken at face value, the LLC goes from" in report.summary_lines(doubtful)[1][1]
    local = example_estimates().assign(mean_loss=example_estimates()["init_loss"] + 0.1)
    assert report.summary_lines(local)[3][1].startswith("Yes, by this test: ")


@pytest.mark.parametrize("steps", [[0], [700], [0, 100], [5, 50_000]])
def test_few_checkpoints_without_stages_or_metrics(tmp_path, steps):
    steps = np.asarray(steps)
    data = {"sweep": example_sweep(steps), "estimates": example_estimates(steps)}
    path = write_example(tmp_path, **data, metrics=None, stages=None)
    parse(path)
    assert "Stages were not looked for" in path.read_text()


def test_every_number_missing(tmp_path):
    estimates = example_estimates(FEW)
    for name in ("llc", "llc_stderr", "rhat", "ess_bulk", "mean_loss", "init_loss", "llc_position"):
        estimates[name][:] = np.nan
    estimates["verdict"][:] = "failed"
    del estimates.attrs["chance"]
    path = write_example(tmp_path, estimates=estimates, sweep=example_sweep(FEW) * np.nan, metrics=None)
    assert "No checkpoint has a finite LLC" in path.read_text()


def test_several_settings_are_compared(tmp_path):
    estimates, sweep = example_estimates(FEW, num_settings=3), example_sweep(FEW, num_settings=3)
    page = write_example(tmp_path, estimates=estimates, sweep=sweep, metrics=None, setting=2).read_text()
    assert "Settings compared" in page and (tmp_path / "figures" / "settings.png").exists()
    assert "n_beta 80" in page
    with pytest.raises(ValueError, match=r"setting=3.*0 to 2"):
        write_example(tmp_path, estimates=estimates, setting=3)


def test_tables_hold_every_checkpoint_setting_and_position(tmp_path):
    report.write_tables(tmp_path, example_estimates(num_settings=2), example_metrics(), example_stages())
    rows = (tmp_path / "llc.csv").read_text().splitlines()
    header = "step,n_beta,localization,step_size,llc,llc_stderr,rhat,ess_bulk,mean_loss,init_loss,verdict"
    assert rows[0] == header
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
    assert np.allclose(interval(curve)[1] - curve["llc"], 1.96 * curve["llc_stderr"])
    wide = curve.assign(llc_lower=curve["llc"] - 9, llc_upper=curve["llc"] + 9)
    assert np.allclose(interval(wide)[0], curve["llc"] - 9)


def test_a_control_tells_whether_the_loss_holds_the_chains():
    table = example_estimates()
    assert "Does the loss hold the chains?" not in dict(report.summary_lines(table))
    rise = table["mean_loss"] - table["init_loss"]
    for factor, answer in ((1.05, "Hardly: "), (4.0, "Yes: ")):
        lines = dict(report.summary_lines(table.assign(prior_loss=table["init_loss"] + factor * abs(rise))))
        assert lines["Does the loss hold the chains?"].startswith(answer)
    factor = xr.where(table["checkpoint"] >= STEPS[-3], 1.0, 4.0)
    mixed = table.assign(prior_loss=table["init_loss"] + factor * abs(rise))
    answer = dict(report.summary_lines(mixed))["Does the loss hold the chains?"]
    assert answer.startswith("In part: ") and "at 3 of " in answer and "a sharpness" in answer
    (control,) = [line for line in plots.plot_mean_loss(mixed).axes[0].get_lines() if "prior" in str(line.get_label())]
    assert control.get_ydata().tolist() == mixed["prior_loss"].values[:, 0].tolist()
    lines = dict(report.summary_lines(table.assign(prior_loss=table["init_loss"] - 1)))
    assert "cannot be told" in lines["Does the loss hold the chains?"]


def test_figures_leave_the_global_state_alone():
    plots.plot_curve(example_estimates(), example_metrics(), example_stages())
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_a_legend_is_never_wider_than_its_figure():
    table = example_estimates()
    names = {f"a regime with quite a long name, number {number}": table for number in range(4)}
    figure = plots.plot_regimes(names)
    (legend,) = figure.legends
    assert 0 < legend.get_window_extent().width <= figure.bbox.width
    assert len(legend.get_texts()) >= 5


def test_regimes_share_a_figure_with_colours_for_regimes_and_shapes_for_verdicts():
    tables = {"published $x$": troubled_estimates(), "local": example_estimates(FEW).isel(setting=0)}
    figure = plots.plot_regimes(tables, example_metrics())
    llc, loss = figure.axes
    (line,) = loss.get_lines()
    assert line.get_label() == "test loss (right axis)" and len(line.get_xdata()) == len(STEPS)
    labels = dict(zip(*reversed(llc.get_legend_handles_labels()), strict=True))
    assert {r"published \$x\$", "local", "left basin (2)", "diverged (1)"} <= set(labels)
    assert labels["local"].get_color() != labels[r"published \$x\$"].get_color()
    assert labels["left basin (2)"].get_marker() == "s"
    shown = [line for line in llc.get_lines() if line.get_marker() == "s" and len(line.get_xdata())]
    assert [len(line.get_xdata()) for line in shown] == [2]
    figure.canvas.draw()
    without = plots.plot_regimes(tables).axes[1].get_lines()[0]
    assert without.get_label() == "loss at w* (right axis)"
    with pytest.raises(ValueError, match="has 3 settings"):
        plots.plot_regimes({"a": example_estimates(FEW, num_settings=3)})
    with pytest.raises(ValueError, match="has 0 curves"):
        plots.plot_regimes({})


def test_an_initialisation_far_below_leaves_the_scale_of_regimes_alone():
    low = example_estimates(FEW).isel(setting=0).copy(deep=True)
    low["llc"][0], low["verdict"][0] = -1000.0, "not_minimum"
    axes = plots.plot_regimes({"low": low}).axes[0]
    assert axes.get_ylim()[0] > -100
    (arrow,) = [line for line in axes.get_lines() if line.get_label() == "off the scale"]
    assert arrow.get_xdata().tolist() == [float(low["checkpoint"][0])] and arrow.get_marker() == "v"


def test_names_of_components_stand_apart_at_the_ends_of_their_lines():
    """One that broke at the end has no name there; fifty take the height of the axes, in the order of their values."""
    steps, count = [0, 10], 50
    llc = np.stack([np.zeros(count), np.r_[np.linspace(1, 1.1, count - 1), np.nan]])
    names = [f"block_{index // 25}/head_{index % 25}" for index in range(count)]
    table = xr.Dataset(
        {"llc": (("checkpoint", "setting"), llc), "llc_stderr": (("checkpoint", "setting"), 0 * llc)},
        coords={"checkpoint": steps, "component": ("setting", names)},
    )
    (axes,) = plots.plot_components(table).axes
    written = [(text.get_text(), text.xy[1]) for text in axes.texts]
    assert [name for name, _ in written] == [name.partition("/")[2] for name in names[:-1]]
    heights = np.array([height for _, height in written])
    low, high = axes.get_ylim()
    assert (np.diff(heights) > 0.9 * (high - low) / count).all() and heights.min() >= low and heights.max() <= high
    assert set(axes.get_legend_handles_labels()[1]) == {"block_0", "block_1"}


def test_measures_lie_beside_the_llc_on_a_linear_axis():
    metrics = example_metrics()
    lines = {"loss": metrics["test_loss"], "again": metrics["test_loss"] + 1}
    figure = plots.plot_beside(
        example_estimates(), {"nats": lines, "more": {"loss": metrics["test_loss"]}}, example_stages()
    )
    llc, nats, more = figure.axes
    assert llc.get_xscale() == "linear" and llc.get_xlim() == more.get_xlim()
    drawn = {line.get_label(): line.get_ydata() for line in nats.get_lines()}
    np.testing.assert_allclose(drawn["again"], metrics.sortby("checkpoint")["test_loss"].values + 1)
    assert more.get_xlabel() == "training step" and llc.get_ylabel() == "LLC"
    with pytest.raises(ValueError, match=r"panels\['none'\] has 0 lines"):
        plots.plot_beside(example_estimates(), {"none": {}})


def test_figures_say_what_is_missing():
    with pytest.raises(ValueError, match="llc_position"):
        plots.plot_positions(example_estimates().drop_vars("llc_position"))
    with pytest.raises(ValueError, match="metrics has no numeric variable"):
        plots.plot_metrics(example_metrics()[[]])


def test_metrics_of_a_family_share_a_panel_with_a_readable_title():
    metrics = example_metrics().drop_vars(["zero_prediction", "ridge_distance", "test_loss_position"])
    for name in ("icl_1_4", "icl_4_8"):
        del metrics[name].attrs["long_name"]
    metrics["weight_norm"].attrs["long_name"] = "weight norm"
    metrics = metrics.rename(ood_inputs_3="ood_inputs_100")
    figure = plots.plot_metrics(metrics)
    shown = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison}
    assert list(shown) == ["test loss", "in-context learning", "loss on inputs scaled by", "weight norm"]
    labels = [text.get_text() for text in shown["loss on inputs scaled by"].get_legend().get_texts()]
    assert labels == ["10", "100"]
    assert len(shown["test loss"].get_legend().get_texts()) == 2  # the losses of reference


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_lowest_panel_of_each_column_names_the_training_step(count):
    metrics = example_metrics()
    names = [name for name in metrics.data_vars if not name.startswith(("icl", "ood"))]
    figure = plots.plot_metrics(metrics[names[:count]])
    labels = [axes.get_xlabel() for axes in figure.axes[:count]]
    assert labels == [""] * (count - 2) + ["training step"] * min(count, 2)
