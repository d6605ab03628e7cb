"""Results show themselves, every new result has a figure, and the experiments that are written as cells run."""

import os
import runpy
import struct
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import llcjax
from llcjax import SweepConfig, component_masks, estimates, plots, sweep
from llcjax.checkpoints import CheckpointBank

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments" / "pretrained"


def test_own_model(capsys):
    seen = runpy.run_path(str(EXPERIMENTS / "own_model.py"))
    shown = seen["estimate"]._repr_html_()
    assert shown.startswith("<table>") and f"{seen['estimate'].llc:.4g} ± " in shown
    assert "<" not in shown.replace("<table>", "").replace("<tr>", "").replace("<th>", "").replace("<td>", "").replace(
        "</", ""
    )
    assert list(seen["table"]["component"].values) == ["in", "out"]


def run_pretrained(monkeypatch, data, out):
    options = ["--data", str(data), "--out", str(out), "--num-draws", "6", "--num-sequences", "24"]
    monkeypatch.setattr(sys, "argv", ["run.py", *options, "--num-components", "2"])
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    seen = runpy.run_path(str(EXPERIMENTS / "run.py"))
    assert seen["chi"]["susceptibility"].shape == (1, 3, 10) and np.isfinite(seen["chi"]["susceptibility"]).all()
    assert {"components.png", "susceptibilities.png", "kernel.png"} <= set(os.listdir(out / "figures"))
    return seen, (out / "report.html").read_text()


def run_calibration(monkeypatch, data, out):
    """Two step sizes, everything and one head."""
    options = ["--data", str(data), "--out", str(out), "--n-beta", "30", "--localization", "3000", "--step-size",
               "1e-5", "5e-5", "--num-draws", "6", "--num-burnin-steps", "4", "--num-sequences", "16", "--names",
               "full", "block_0/attention/head_0"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["calibrate.py", *options])
    runpy.run_path(str(EXPERIMENTS / "calibrate.py"))
    rows = (out / "plateau.csv").read_text().splitlines()
    assert len(rows) == 5 and rows[0].startswith("component,n_beta,localization,step_size,llc,")
    assert (out / "plateau.png").is_file()


def test_pretrained_model_in_small(tmp_path, monkeypatch, capsys):
    """The whole script on a random model of one layer, whose vocabulary is single bytes."""
    dim, hidden, heads, shared, vocabulary, length = 16, 24, 4, 2, 260, 128
    count = vocabulary * dim + 2 * dim**2 + 2 * dim * dim * shared // heads + 3 * dim * hidden + 3 * dim
    weights = (0.3 * np.random.default_rng(0).normal(size=count)).astype("<f4")
    header = np.array([dim, hidden, 1, heads, shared, vocabulary, length], "<i4")
    (tmp_path / "stories260K.bin").write_bytes(header.tobytes() + weights.tobytes())
    pieces = [b"<unk>", b"<s>", b"</s>", *(bytes([byte]) for byte in range(256)), b"th"]
    packed = b"".join(struct.pack("<fi", float(len(piece)), len(piece)) + piece for piece in pieces)
    (tmp_path / "tok512.bin").write_bytes(struct.pack("<i", 5) + packed)
    seen, page = run_pretrained(monkeypatch, tmp_path, tmp_path / "out")
    assert 2 < seen["own_loss"] < np.log(260)
    assert "Susceptibility of every head" in page
    run_calibration(monkeypatch, tmp_path, tmp_path / "plateau")


@pytest.mark.slow
def test_pretrained_model(shared_data, tmp_path, monkeypatch, capsys):
    """The whole report of the real model with 2 of 40 heads and a few draws."""
    seen, page = run_pretrained(monkeypatch, shared_data, tmp_path)
    assert 0.3 < seen["own_loss"] < 2.0
    assert "Once upon a time, there was a little girl" in page


@pytest.fixture(scope="module")
def facts():
    bank = CheckpointBank(params={"a": np.zeros((3, 2)), "b": np.zeros((3, 1))}, steps=np.array([0, 10, 100]))
    data = (np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), np.zeros(8, np.float32))
    rule = llcjax.integration_rule(50.0, 3)

    def loss(params, batch):
        return (batch[0] @ jnp.concatenate([params["a"], params["b"]]) - batch[1]) ** 2

    config = SweepConfig(n_beta=rule.n_beta, localization=5.0, step_size=5e-3, batch_size=None, num_draws=60)
    parts = component_masks(bank.checkpoint(0), ["a", "full"])
    return rule, sweep(loss, bank, data, config, components=parts, probes={"x": data}, observe=lambda p: p["a"])


def test_every_result_has_a_figure(facts, tmp_path):
    rule, seen = facts
    figures = {
        "components": plots.plot_components(estimates(seen).isel(setting=[0, 3])),
        "bars": plots.plot_components(estimates(seen).isel(setting=[0, 3], checkpoint=[1])),
        "kernel": plots.plot_matrix(llcjax.loss_kernel(seen, "x"), setting=2),
        "bif": plots.plot_matrix(llcjax.bif(seen, "x", "observed"), setting=2, names=("train", "weight")),
        "susceptibilities": plots.plot_susceptibilities(llcjax.susceptibilities(seen, "x", "x", full="full")),
        "temperature": plots.plot_temperature(llcjax.temperature_curve(seen.isel(setting=[0, 1, 2]))),
        "free energy": plots.plot_free_energy(llcjax.free_energy(seen, rule)),
        "covariance": plots.plot_matrix(llcjax.chain_covariance(seen, "observed"), setting=2, chain=1),
        "variance of chains": plots.plot_components_of_variance(
            llcjax.principal_components(seen, "observed", per_chain=True)
        ),
        "variance": plots.plot_components_of_variance(llcjax.principal_components(seen, "observed")),
    }
    for name, figure in figures.items():
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{name}.png")
        assert figure.axes[0].has_data(), name
    lines = [line.get_label() for line in figures["components"].axes[0].get_lines()]
    assert {"a", "full"} <= set(lines)
    with pytest.raises(ValueError, match="has no components"):
        plots.plot_components(estimates(seen).drop_vars("component"))


def test_banks_show_their_parameters():
    bank = CheckpointBank(params={"a<b": np.zeros((3, 2))}, steps=np.array([0, 10, 1000]))
    shown = bank._repr_html_()
    assert "0 to 1,000" in shown and "a&lt;b" in shown and "a<b" not in shown
