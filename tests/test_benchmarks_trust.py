"""The benchmarks of trust: that they run, and that what they compare against is right."""

import dataclasses
import io
import json
import os
import sys
import warnings

import jax
import numpy as np
import pytest

import llcjax
from benchmarks import (
    adaptive_bias,
    coverage,
    deep_linear,
    deep_linear_peers,
    efficiency_peers,
    harness,
    paired_baseline,
    peers,
    readme,
)
from benchmarks.peer import PYTHONS, Peer, PeerError, stored
from benchmarks.worker import serve
from llcjax import reference
from llcjax.bench import WORKLOADS
from llcjax.checkpoints import CheckpointBank, save_bank
from llcjax.config import SweepConfig
from llcjax.keys import as_key
from llcjax.models.icl_transformer import icl_transformer


def toy_rows(module, out, only):
    name = module.__name__.removeprefix("benchmarks.")
    path = harness.run(name, module.measure, ["--toy", "--out", str(out), "--only", only])
    return json.loads(path.read_text())["rows"]


def test_paired_baseline_runs_and_gives_the_same_draws_two_baselines(tmp_path):
    rows = toy_rows(paired_baseline, tmp_path, "deep_linear")
    assert [row["n_beta"] for row in rows] == [100, 1000, 10_000]
    for row in rows:
        assert row["factor from"] < row["factor"] < row["factor to"]
        assert row["factor"] == pytest.approx(row["s.d. dataset"] / row["s.d. paired"])
        assert min(row["step paired (us)"], row["step dataset (us)"]) > 0
    case = paired_baseline.deep_linear(True)
    # Every chain is told from the paired sweep what a sweep with the dataset baseline says of it.
    exact = paired_baseline.dataset_losses(case)
    facts = llcjax.sweep(case.loss_fn, case.bank, case.data, case.at(100.0))
    paired, dataset = (trace.mean(-1) for trace in paired_baseline.traces(facts, exact))
    np.testing.assert_allclose(paired, llcjax.estimates(facts)["llc_per_chain"].values[:, 0], rtol=1e-5)
    facts = llcjax.sweep(case.loss_fn, case.bank, case.data, case.at(100.0, baseline="dataset"))
    np.testing.assert_allclose(dataset, llcjax.estimates(facts)["llc_per_chain"].values[:, 0], rtol=1e-3)


def test_factor_is_the_ratio_of_standard_deviations():
    rng = np.random.default_rng(1)
    paired = rng.normal(size=64)
    assert paired_baseline.factor(3 * paired, paired) == pytest.approx((3, 3, 3))
    ratio, low, high = paired_baseline.factor(paired + 2 * rng.normal(size=64), paired)
    assert low < ratio < high and low < np.sqrt(5) < high


def test_notes_count_the_rows_in_which_the_pair_does_not_pay():
    row = {"factor": 1.1, "factor from": 0.9, "factor to": 1.3, "variance cut a second": 0.9}
    below = {"factor": 0.8, "factor from": 0.7, "factor to": 0.9, "variance cut a second": 1.2}
    first, second = paired_baseline.notes([row, below])
    assert "lies below 1 in 1 of 2 rows, and holds 1 in 1" in first and "in 1 of 2 rows" in second


def test_paired_baseline_takes_the_bank_of_the_environment(tmp_path, monkeypatch):
    small = dataclasses.replace(paired_baseline.PRESETS["paper"], num_examples=64)
    monkeypatch.setitem(paired_baseline.PRESETS, "paper", small)
    init, _ = icl_transformer(small.model, small.task.num_tokens, small.task.token_width)
    params = jax.vmap(init)(jax.random.split(as_key(0), 3))
    save_bank(CheckpointBank(params=params, steps=np.array([0, 10_000, 499_000])), tmp_path / "bank")
    monkeypatch.setenv(paired_baseline.BANK, str(tmp_path / "bank"))
    case = paired_baseline.transformer(False)
    assert case.model == "transformer, 51,717 parameters" and case.bank.steps.tolist() == [10_000, 499_000]
    config = case.at(66.67)
    assert config.num_chains >= 64 and config.localization == (1000.0,) and config.step_size == (5e-5,)
    assert case.at(300.0).localization[0] / 300 == pytest.approx(config.localization[0] / 66.67)


def test_coverage_runs(tmp_path):
    (row, *_) = rows = toy_rows(coverage, tmp_path, "mala")
    assert len(rows) == 2 and row["replicates"] == 16
    for row in rows:
        assert abs(row["mean estimate"] - row["expected LLC"]) < 5 * row["its error"]
        assert row["coverage (%)"] >= row["coverage of +- 1.96 errors (%)"] and row["coverage (%)"] > 70
        assert 0.4 < row["true / stated error"] < 2


def test_expectation_on_minibatches_tends_to_that_on_the_full_batch():
    x = np.random.default_rng(2).normal(size=(50, 3))
    config = SweepConfig(
        n_beta=20.0, localization=1.0, step_size=0.02, num_draws=10, num_burnin_steps=2000, batch_size=10**9
    )
    exact = reference.quadratic_llc(np.linalg.eigvalsh(2 * x.T @ x / 50), n_beta=20.0, localization=1.0, step_size=0.02)
    assert coverage.regression_expectation(x, np.ones(50), config) == pytest.approx(exact, rel=1e-6)


def test_expectation_on_minibatches_equals_chains_in_numpy():
    """20,000 chains of 40 steps on batches of 4: the error of their mean is 0.5%."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=30)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    config = SweepConfig(n_beta=10.0, localization=1.0, step_size=0.03, num_draws=30, num_burnin_steps=10, batch_size=4)
    w, llc = np.tile(best, (20_000, 1)), []
    for _ in range(40):
        llc.append(10 * np.mean((w @ x.T - y) ** 2 - (best @ x.T - y) ** 2, 1))
        rows = rng.integers(30, size=(20_000, 4))
        error = np.einsum("cbi,ci->cb", x[rows], w) - y[rows]
        gradient = 2 * np.einsum("cb,cbi->ci", error, x[rows]) / 4
        w = w - 0.015 * (10 * gradient + w - best) + np.sqrt(0.03) * rng.normal(size=w.shape)
    per_chain = np.mean(llc[10:], 0)
    z = (per_chain.mean() - coverage.regression_expectation(x, y - x @ best, config)) / (per_chain.std() / np.sqrt(2e4))
    assert abs(z) < 4, z


def test_adaptive_bias_runs_and_agrees_with_numpy(tmp_path):
    rows = toy_rows(adaptive_bias, tmp_path, "rmsprop_sgld")
    assert len(rows) == 9 and all(abs(row["z of the difference"]) < 4.5 for row in rows)
    largest = [row["variance / target"] for row in rows if row["step size"] == 1e-2]
    assert min(largest) > 1.1


def test_friction_at_rest_gives_the_variance_that_the_text_says():
    """SGNHT in NumPy, diffusion 0.1: 1 - 0.1 / 2 of the target, and a little less, at any step size; 1,024 chains."""
    hessian, mask = adaptive_bias.gaussians()["isotropic"]
    case = adaptive_bias.Case("sgnht", {}, hessian, mask, 0)
    draws = adaptive_bias.recursion(case, adaptive_bias.Counts(chains=1024, draws=8, burnin=500))
    ratio, error = adaptive_bias.mean_square(draws, np.eye(3) * 42 / 3)
    assert np.all(error < 0.01) and np.all(np.abs(ratio - 0.945) < 0.04), ratio


def test_deep_linear_runs_and_keeps_every_network(tmp_path):
    path = harness.run("deep_linear", deep_linear.measure, ["--toy", "--out", str(tmp_path), "--only", "1k-aligned"])
    facts = json.loads(path.read_text())
    (row,), details = facts["rows"], facts["details"]
    assert row["networks"] == len(details) == 2 and row["lambda"] == "108 to 336"
    errors = [abs(one["error (%)"]) for one in details]
    assert row["largest (%)"] == max(errors) < 20
    assert details[0]["LLC"] == pytest.approx(108 * (1 + details[0]["error (%)"] / 100))


def test_a_part_of_a_benchmark_has_a_file_of_its_own(tmp_path):
    measured = harness.Measured(title="t", rows=[{"a": 1}], settings={})
    paths = [
        harness.run("b", lambda options: measured, ["--out", str(tmp_path), *only]).name
        for only in ([], ["--only", "x", "y"])
    ]
    assert paths == ["b-cpu.json", "b-x-y-cpu.json"]


def test_the_peer_gets_the_chains_that_ours_runs(monkeypatch):
    """The job holds what our side reads from the config; the worker itself needs torch, which is no dependency."""
    case = reference.random_deep_linear(np.random.default_rng(0), "1k", aligned=True)
    config, asked = deep_linear_peers.shared_config(case, toy=False), {}

    def ask(self, **job):
        stored = np.load(job["file"])
        asked.update(job, shapes={name: stored[name].shape for name in stored})
        return {"llc": 1.0, "seconds": 2.0}

    monkeypatch.setattr(Peer, "ask", ask)
    arrays = {**case.params, "inputs": np.zeros((7, 34)), "targets": np.zeros((7, 8))}
    assert Peer.__new__(Peer).estimate("deep_linear", arrays, config, seed=5) == (1.0, 2.0)
    setting = config.settings[0]
    wanted = (setting.step_size, setting.n_beta, setting.localization, 4, 1000, 1000, 500, 5, "deep_linear", True)
    names = ("step_size", "n_beta", "localization", "num_chains", "num_draws", "num_burnin_steps", "batch_size", "seed",
             "model", "sliced")  # fmt: skip
    assert tuple(asked[name] for name in names) == wanted
    assert asked["shapes"]["layer00"] == (34, 28) and asked["shapes"]["targets"] == (7, 8)
    thermostat = deep_linear_peers.thermostat_config(case, toy=False)
    assert (thermostat.num_draws, thermostat.num_burnin_steps, thermostat.num_chains) == (1000, 1000, 4)


def test_without_the_peer_there_is_a_sentence(monkeypatch, tmp_path):
    for variable in PYTHONS.values():
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SystemExit, match="skipped: LLCJAX_PEER_PYTHON must name a Python that has the peer"):
        harness.run("deep_linear_peers", deep_linear_peers.measure, ["--toy", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="skipped: one of LLCJAX_PEER_PYTHON, .* must name a Python"):
        harness.run("peers", peers.measure, ["--toy", "--out", str(tmp_path)])


class FakePeer:
    """Answers at once, for the toy workload; one of the variants fails, as an option of a library may."""

    loss = 1.7439623

    def __init__(self, worker):
        self.versions = {worker.removesuffix("_worker"): "1", "device": "cpu"}

    def answer(self, model, file, config, *, seed, **choices):
        assert (model, np.load(file)["targets"].dtype, config.precision) == ("perceptron", np.int64, "highest")
        if choices.get("sliced") is False:
            raise PeerError("no workers\nat all")
        return {"llc": 1.0, "seconds": 4.0, "loss at start": self.loss}

    def close(self):
        pass


def test_peers_that_are_there_become_rows_and_the_others_a_sentence(monkeypatch, tmp_path):
    for variable in PYTHONS.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(PYTHONS["devinterp_worker"], "python")
    monkeypatch.setattr(peers, "Peer", FakePeer)
    path = harness.run("peers", peers.measure, ["--toy", "--out", str(tmp_path), "--only", "toy"])
    facts = json.loads(path.read_text())
    ours, theirs = facts["rows"]
    assert (ours["library"], theirs["library"]) == ("llcjax", "devinterp 1, sliced")
    assert theirs["chain-steps a second"] == 4 * 10 / 4 and ours["llcjax is faster by"] == 1
    assert theirs["llcjax is faster by"] == pytest.approx(ours["chain-steps a second"] / 10)
    missing = "LLCJAX_PEER_DEVINTERP2, LLCJAX_PEER_CANONICAL, LLCJAX_PEER_BLACKJAX"
    assert facts["notes"][1:] == [
        "toy, devinterp 1, DataLoader failed: no workers",
        f"Left out, as no Python is named for them: {missing}.",
    ]
    monkeypatch.setattr(FakePeer, "loss", 1.8)
    with pytest.raises(ValueError, match="of devinterp 1 is 1.8, not 1.74396"):
        peers.measure(harness.Options(toy=True, out=tmp_path, only=("toy",)))


class FakeChains(FakePeer):
    """16 chains whose LLCs are 10 with a standard deviation of 2, at 40 s in all."""

    def answer(self, model, file, config, *, seed, exact_start):
        assert exact_start and {"inputs", "targets"} <= set(np.load(file))
        spread = np.array([-1.0, 1.0] * 8)
        return {"llc of chains": (10 + 2 * spread / spread.std(ddof=1)).tolist(), "seconds": 40.0}


@pytest.mark.parametrize("case", efficiency_peers.CASES)
def test_seconds_to_five_percent_are_chains_times_seconds_of_a_chain(case, monkeypatch, tmp_path):
    monkeypatch.setattr(efficiency_peers, "Peer", FakeChains)
    ours, theirs = toy_rows(efficiency_peers, tmp_path, case)
    # A chain knows the LLC to 2 / 10; four squared of them know it to 5%, at 40 / 16 seconds each.
    assert theirs["chains to 5%"] == pytest.approx(16) and theirs["seconds to 5%"] == pytest.approx(40)
    chain = 1e-6 * ours["time a chain step (us)"] * ours["steps of a chain"]
    wanted = (ours["s.d. of a chain"] / (0.05 * abs(ours["LLC"]))) ** 2 * chain
    assert ours["seconds to 5%"] == pytest.approx(wanted) and ours["llcjax is faster by"] == 1
    assert theirs["llcjax is faster by"] == pytest.approx(40 / wanted)
    assert theirs["from"] < theirs["llcjax is faster by"] < theirs["to"]


ASKED = [(name, worker) for name in ("regression", "language") for worker in peers.variants(name)]


@pytest.mark.parametrize(("name", "worker"), ASKED)
def test_the_peers_compute_our_transformers(name, worker):
    if not os.environ.get(PYTHONS[worker]):
        pytest.skip(f"{PYTHONS[worker]} is not set")
    work, examples, batch = WORKLOADS[name](), *((4, 2) if name == "language" else (64, 8))
    small = work._replace(data=jax.tree.map(lambda part: part[:examples], work.data), batch_size=batch)
    model, arrays = peers.network_of(name, small)
    peer, config = Peer(worker), peers.config_of(small, num_draws=2)
    try:
        with stored(arrays) as file:
            answer = peer.answer(model, file, config, seed=0, compile=False)
    finally:
        peer.close()
    assert answer["loss at start"] == pytest.approx(peers.loss_at_start(small), rel=1e-5)
    assert np.isfinite(answer["llc"]) and answer["seconds"] > 0


def test_a_worker_answers_each_job_and_says_what_went_wrong(monkeypatch):
    answers = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"by": 2}\n{"by": 0}\n'))
    monkeypatch.setattr(sys, "stdout", answers)
    with warnings.catch_warnings():
        serve(lambda job: {"half": 1 / job["by"]}, ["numpy"], device="cpu")
    hello, *found = map(json.loads, answers.getvalue().splitlines())
    assert hello == {"numpy": np.__version__, "device": "cpu"}
    assert found[0] == {"half": 0.5} and found[1]["error"].startswith("ZeroDivisionError: ")


def test_tables_of_the_readme_are_those_of_the_results():
    text = readme.README.read_text()
    assert readme.rendered(text) == text, "run `python -m benchmarks.readme`"
