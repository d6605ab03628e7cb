"""A sweep's numbers do not depend on how it was batched, cut, sharded, stopped or resumed."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llcjax
from llcjax import cli
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.models import TransformerConfig, icl_transformer
from llcjax.program import Program
from llcjax.store import open_sweep
from llcjax.sweep import make_job, sweep
from llcjax.tasks.regression import RegressionTask, squared_error

CURVATURE = jnp.linspace(0.1, 2.0, 7)
CONFIG = SweepConfig(
    n_beta=(100.0, 200.0),
    localization=(1.0, 5.0),
    step_size=1e-3,
    num_chains=3,
    num_draws=40,
    num_burnin_steps=13,
    num_steps_between_draws=2,
    batch_size=None,
)


def quadratic(w, _):
    return 0.5 * jnp.sum(CURVATURE * w**2)


def assert_same(a, b):
    assert set(a.data_vars) == set(b.data_vars)
    for name in a.data_vars:
        if name == "distance":  # jax 0.10.1 rounds this sum differently at some widths: one unit in the last place
            np.testing.assert_allclose(a[name].values, b[name].values, rtol=1e-6)
        else:
            np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=name)


@pytest.fixture(scope="module")
def bank():
    params = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * 0.1
    return CheckpointBank(params=params, steps=np.arange(5) * 10)


@pytest.fixture(scope="module")
def monolithic(bank):
    config = dataclasses.replace(CONFIG, draws_per_chunk=1000, runs_per_launch=1000)
    return sweep(quadratic, bank, None, config, devices=jax.local_devices()[:1])


@pytest.mark.parametrize(
    "cut", [{"draws_per_chunk": 7}, {"draws_per_chunk": 1}, {"runs_per_launch": 3}, {"runs_per_launch": 13}]
)
def test_any_cut_is_bitwise_the_same(bank, monolithic, one_device, cut):
    assert_same(monolithic, sweep(quadratic, bank, None, dataclasses.replace(CONFIG, **cut), devices=one_device))


@pytest.mark.parametrize("runs", [None, 13])
def test_sharded_over_four_devices_is_bitwise_the_same(bank, monolithic, runs):
    assert len(jax.local_devices()) == 4
    assert_same(monolithic, sweep(quadratic, bank, None, dataclasses.replace(CONFIG, runs_per_launch=runs)))


def test_a_checkpoint_alone_is_bitwise_the_same(bank, monolithic, one_device):
    alone = sweep(quadratic, bank[[2]], None, CONFIG, devices=one_device)
    assert_same(monolithic.isel(checkpoint=[2]), alone)


def test_a_run_alone_is_bitwise_the_same(bank, monolithic, one_device):
    alone = dataclasses.replace(CONFIG, n_beta=100.0, localization=5.0, num_chains=1)
    expected = monolithic.isel(checkpoint=[2], setting=[1], chain=[0])
    assert_same(expected, sweep(quadratic, bank[[2]], None, alone, devices=one_device))


def test_run_chain_is_a_run_of_the_sweep(bank, monolithic):
    def run(key, anchor, n_beta, localization, step_size):
        posterior = llcjax.LocalPosterior(quadratic, anchor, n_beta, localization)
        return llcjax.run_chain(
            key,
            llcjax.sgld(posterior, step_size),
            posterior,
            lambda _: (),
            num_draws=40,
            num_burnin_steps=13,
            num_steps_between_draws=2,
            chain=1,
        )[1]

    key = jax.random.key(0, impl="threefry2x32")
    two = jax.vmap(run, in_axes=(None, 0, None, None, None))
    draws = jax.jit(two)(key, bank.params[[2, 3]], 100.0, 5.0, 1e-3)
    expected = monolithic.isel(checkpoint=[2, 3], setting=1, chain=1)
    # Another program than the sweep's, so the last digits may differ.
    np.testing.assert_allclose(draws.loss, expected["loss"], rtol=1e-5)
    np.testing.assert_array_equal(draws.baseline_loss, expected["baseline_loss"])
    draws = jax.jit(run)(key, bank.checkpoint(2), 100.0, 5.0, 1e-3)
    np.testing.assert_allclose(draws.loss, expected["loss"][0], rtol=1e-5)
    np.testing.assert_allclose(draws.distance, expected["distance"][0], rtol=1e-5)


def test_draws_sit_at_their_steps_and_start_at_the_anchor(bank, monolithic):
    assert monolithic["draw"].values[:3].tolist() == [0, 2, 4]
    assert np.sum(monolithic["draw"].values >= 13) == 40
    assert np.all(monolithic["distance"].isel(draw=0) == 0)
    np.testing.assert_array_equal(monolithic["loss"].isel(draw=0), monolithic["baseline_loss"].isel(draw=0))


def test_common_keys_share_noise_and_batches_as_they_say(bank, one_device):
    x = np.random.default_rng(1).normal(size=(64, 7)).astype(np.float32)

    def loss(w, batch):
        return jnp.square(batch @ w)

    same = CheckpointBank(params=np.repeat(bank.params[:1], 3, 0), steps=np.array([0, 5, 9]))
    base = dataclasses.replace(CONFIG, n_beta=50.0, localization=1.0, batch_size=8, num_chains=2)
    traces = {}
    for common in ("all", "batches", "none"):
        result = sweep(loss, same, x, dataclasses.replace(base, common=common), devices=one_device)
        traces[common] = result["loss"].values[:, 0], result["baseline_loss"].values[:, 0]
    for common, (moved, anchored) in traces.items():
        assert np.array_equal(moved[0], moved[1]) == (common == "all")
        assert np.array_equal(anchored[0], anchored[1]) == (common != "none")
        assert not np.array_equal(anchored[0, 0], anchored[0, 1]), "chains must see different batches"
    # The checkpoint enters by its step, not by its index in the bank.
    part = sweep(loss, same[[0, 2]], x, dataclasses.replace(base, common="none"), devices=one_device)
    np.testing.assert_allclose(part["loss"].values[1, 0], traces["none"][0][2], rtol=1e-5)


@pytest.fixture(scope="module")
def transformer():
    task = RegressionTask(dimension=2, num_pairs=4)
    init, apply = icl_transformer(
        TransformerConfig(num_heads=2, model_width=16, mlp_width=16), task.num_tokens, task.token_width
    )
    params = jax.vmap(init)(jax.random.split(jax.random.key(0), 3))
    bank = CheckpointBank(params=jax.tree.map(np.asarray, params), steps=np.arange(3))
    return squared_error(apply), bank, task.sample(jax.random.key(1), 256)


def test_transformer_agrees_between_cuts(transformer):
    loss, bank, data = transformer
    config = SweepConfig(n_beta=50.0, localization=100.0, step_size=1e-4, num_chains=4, num_draws=60, batch_size=32)
    devices = jax.local_devices()
    whole = sweep(loss, bank, data, config, devices=devices[:1])
    for other in (
        sweep(loss, bank, data, dataclasses.replace(config, draws_per_chunk=10), devices=devices[:1]),
        sweep(loss, bank, data, dataclasses.replace(config, runs_per_launch=4), devices=devices[:1]),
        sweep(loss, bank, data, config, devices=devices),
    ):
        first = slice(0, 10)
        np.testing.assert_allclose(other["loss"][..., first], whole["loss"][..., first], rtol=1e-5)
        ours, theirs = llcjax.estimates(whole), llcjax.estimates(other)
        assert np.all(np.abs(ours["llc"] - theirs["llc"]) <= 0.01 * ours["llc_stderr"])


def test_transformer_chunks_are_bitwise(transformer):
    loss, bank, data = transformer
    config = SweepConfig(n_beta=50.0, localization=100.0, step_size=1e-4, num_chains=4, num_draws=12, batch_size=32)
    devices = jax.local_devices()[:1]
    whole = sweep(loss, bank, data, dataclasses.replace(config, draws_per_chunk=12), devices=devices)
    chunked = sweep(loss, bank, data, dataclasses.replace(config, draws_per_chunk=6), devices=devices)
    for name in whole.data_vars:
        np.testing.assert_array_equal(whole[name], chunked[name], err_msg=name)


SCRIPT = textwrap.dedent(
    """
    import sys, time, numpy as np, jax.numpy as jnp
    from llcjax.checkpoints import CheckpointBank
    from llcjax.config import SweepConfig
    from llcjax.sweep import sweep
    from tests.test_sweep import quadratic
    bank = CheckpointBank(
        params=np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * 0.1, steps=np.arange(5) * 10
    )
    config = SweepConfig(n_beta=100.0, step_size=1e-3, num_chains=2, num_draws=400, batch_size=None,
                         draws_per_chunk=20, runs_per_launch=4)
    def slow(stats):
        print(stats.draws_done, flush=True)
        time.sleep(0.02)
    sweep(quadratic, bank, None, config, out=sys.argv[1], on_chunk=slow, save_every_seconds=0.1)
    print("finished", flush=True)
    """
)


def _start(out):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, text=True, env=environment
    )


def _finish(out):
    process = _start(out)
    lines = process.communicate(timeout=120)[0].splitlines()
    assert process.returncode == 0 and lines[-1] == "finished"
    return lines


# tests/faults kills sweeps at random moments in the quick suite too.
@pytest.mark.parametrize("moment", [26, *(pytest.param(one, marks=pytest.mark.slow) for one in (3, 55))])
def test_killed_and_resumed_is_bitwise_uninterrupted(tmp_path, moment):
    whole = tmp_path / "whole"
    _finish(whole)
    killed = tmp_path / "killed"
    process = _start(killed)
    for _ in range(moment):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = llcjax.open_sweep(killed)["num_draws_done"].values.sum()
    assert 0 < before < 5 * 400
    first_line = int(_finish(killed)[0])
    assert first_line > 40, "what was done must not be done again"
    a, b = llcjax.open_sweep(whole), llcjax.open_sweep(killed)
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=name)
    assert not (tmp_path / "killed.resume.npz").exists()


def _interrupt_once(after):
    asked = []

    def on_chunk(stats):
        if stats.draws_done > after and not asked:
            asked.append(True)
            signal.raise_signal(signal.SIGINT)

    return on_chunk


def test_interrupt_leaves_a_resumable_store(tmp_path, one_device, bank):
    config = dataclasses.replace(CONFIG, draws_per_chunk=5)

    interrupt = _interrupt_once(after=100)

    with pytest.raises(llcjax.Interrupted, match="stopped at"):
        sweep(quadratic, bank, None, config, out=tmp_path / "s", on_chunk=interrupt, devices=one_device)
    assert (tmp_path / "s.resume.npz").exists()
    done = sweep(quadratic, bank, None, config, out=tmp_path / "s", devices=one_device)
    assert_same(done, sweep(quadratic, bank, None, config, devices=one_device))


def test_sigterm_saves_and_the_command_line_ends_with_75(tmp_path, one_device, bank, monkeypatch, capsys):
    config = dataclasses.replace(CONFIG, draws_per_chunk=5)
    asked = []

    def terminate(stats):
        if stats.draws_done > 100 and not asked:
            asked.append(True)
            signal.raise_signal(signal.SIGTERM)

    def swept(_):
        sweep(quadratic, bank, None, config, out=tmp_path / "s", on_chunk=terminate, devices=one_device)

    monkeypatch.setattr("llcjax.cli.make_report", swept)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", "x"])
    assert ended.value.code == 75 and "Go on with" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before and (tmp_path / "s.resume.npz").exists()
    done = sweep(quadratic, bank, None, config, out=tmp_path / "s", devices=one_device)
    assert_same(done, sweep(quadratic, bank, None, config, devices=one_device))


def test_a_torn_state_is_redone(tmp_path, one_device, bank):
    config = dataclasses.replace(CONFIG, draws_per_chunk=5)

    interrupt = _interrupt_once(after=0)
    with pytest.raises(llcjax.Interrupted):
        sweep(quadratic, bank, None, config, out=tmp_path / "s", on_chunk=interrupt, devices=one_device)
    state = tmp_path / "s.resume.npz"
    state.write_bytes(state.read_bytes()[:200])
    done = sweep(quadratic, bank, None, config, out=tmp_path / "s", devices=one_device)
    assert_same(done, sweep(quadratic, bank, None, config, devices=one_device))


def test_a_state_left_behind_by_another_sweep_is_not_used(tmp_path, one_device, bank):
    config = dataclasses.replace(CONFIG, draws_per_chunk=5)
    with pytest.raises(llcjax.Interrupted):
        sweep(quadratic, bank, None, config, out=tmp_path / "s", on_chunk=_interrupt_once(after=0), devices=one_device)
    assert (tmp_path / "s.resume.npz").exists()
    shutil.rmtree(tmp_path / "s")
    other = dataclasses.replace(config, seed=5)
    found = sweep(quadratic, bank, None, other, out=tmp_path / "s", devices=one_device)
    assert_same(found, sweep(quadratic, bank, None, other, devices=one_device))


def test_the_surplus_of_the_last_chunk_breaks_no_chain(one_device):
    """The loss is infinite beyond a distance that some chains reach only in the surplus draws."""

    def wall(w, _):
        return jnp.where(jnp.sum(w**2) > 0.3, jnp.inf, 0.0 * jnp.sum(w))

    config = SweepConfig(
        n_beta=1.0, localization=0.0, step_size=0.01, num_chains=8, num_draws=16, batch_size=None, draws_per_chunk=16
    )
    still = CheckpointBank(params=np.zeros((1, 2), np.float32), steps=np.array([0]))
    whole = sweep(wall, still, None, config, devices=one_device)
    surplus = sweep(wall, still, None, dataclasses.replace(config, draws_per_chunk=6), devices=one_device)
    np.testing.assert_array_equal(whole["first_nonfinite_step"], surplus["first_nonfinite_step"])
    assert (whole["first_nonfinite_step"].values >= 0).any() and (whole["first_nonfinite_step"].values < 0).any()


def test_other_data_of_the_same_sum_are_other_data(tmp_path, one_device, bank):
    x = np.random.default_rng(1).normal(size=(64, 7)).astype(np.float32)
    config = dataclasses.replace(CONFIG, batch_size=8, num_draws=2)

    def run(data):
        sweep(lambda w, b: jnp.square(b @ w), bank, data, config, out=tmp_path / "s", devices=one_device)

    run(x)
    run(x)
    with pytest.raises(ValueError, match="another config, bank or data"):
        run(x[::-1])


def test_observables_may_not_take_the_names_of_the_sweep(one_device, bank):
    with pytest.raises(ValueError, match="observe returns 'loss'|name 'loss'"):
        sweep(quadratic, bank, None, CONFIG, observe=lambda w: {"loss": jnp.sum(w)}, devices=one_device)


def test_a_finished_sweep_is_returned_and_another_config_refused(tmp_path, one_device, bank):
    first = sweep(quadratic, bank, None, CONFIG, out=tmp_path / "s", devices=one_device)
    calls = []
    start = time.monotonic()
    again = sweep(quadratic, bank, None, CONFIG, out=tmp_path / "s", devices=one_device, on_chunk=calls.append)
    assert_same(first, again)
    assert not calls and time.monotonic() - start < 10
    other = dataclasses.replace(CONFIG, num_draws=41)
    with pytest.raises(ValueError, match="another config"):
        sweep(quadratic, bank, None, other, out=tmp_path / "s", devices=one_device)


def test_everything_asked_for_is_recorded(tmp_path, transformer, one_device):
    loss, bank, data = transformer
    config = SweepConfig(
        n_beta=(20.0, 50.0), localization=100.0, step_size=1e-4, num_chains=2, num_draws=6, batch_size=32,
        per_position=True, eval_every=3,
    )  # fmt: skip

    def observe(params):
        return {
            "bias": params["unembed"]["bias"],
            "norm": sum(jnp.sum(x**2) for x in jax.tree.leaves(params)),
        }

    result = sweep(loss, bank, data, config, out=tmp_path / "s", observe=observe, chance=2.1, devices=one_device)
    assert result["loss"].dims == ("checkpoint", "setting", "chain", "draw")
    assert result["loss_position"].dims == ("checkpoint", "setting", "chain", "draw", "position")
    assert result["bias"].shape == (3, 2, 2, 6, 3) and result["norm"].shape == (3, 2, 2, 6)
    np.testing.assert_array_equal(result["position"], [1, 2, 3, 4])
    np.testing.assert_allclose(result["loss_position"].mean("position"), result["loss"], rtol=1e-5)
    full = result["full_loss"].values
    assert np.isfinite(full[..., [0, 3]]).all() and np.isnan(full[..., [1, 2, 4, 5]]).all()
    exact = np.array([float(jnp.mean(loss(bank.checkpoint(i), data))) for i in range(3)])
    np.testing.assert_allclose(result["init_loss"], exact, rtol=1e-5)
    np.testing.assert_allclose(full[..., 0], np.broadcast_to(exact[:, None, None], (3, 2, 2)), rtol=1e-5)
    assert result.attrs["chance"] == 2.1 and result.attrs["num_examples"] == 256
    assert {"n_beta", "localization", "step_size"} <= set(result.coords)
    assert "jax" in result.attrs["provenance"] and "step_size" in result.attrs["config"]


@pytest.mark.parametrize("size", [3, 64, 100, 256])
def test_dataset_baseline_is_exact_for_any_number_of_examples(transformer, one_device, size):
    loss, bank, data = transformer
    part = jax.tree.map(lambda leaf: leaf[:size], data)
    config = SweepConfig(num_chains=1, num_draws=1, batch_size=min(size, 32), baseline="dataset")
    result = sweep(loss, bank, part, config, devices=one_device)
    exact = [float(jnp.mean(loss(bank.checkpoint(i), part))) for i in range(3)]
    np.testing.assert_allclose(result["init_loss"], exact, rtol=1e-5)


def test_losses_over_all_examples_go_on_where_they_stopped(tmp_path, transformer, one_device, monkeypatch):
    loss_fn, bank, data = transformer
    config = SweepConfig(num_chains=2, num_draws=2, batch_size=2, baseline="dataset", localization=100.0)
    measured, done = Program.dataset_loss, []

    def counted(self, params, arrays):
        if len(done) == 1:
            done.append("stopped")
            raise KeyboardInterrupt
        done.append("measured")
        return measured(self, params, arrays)

    monkeypatch.setattr(Program, "dataset_loss", counted)
    asked = {"out": tmp_path / "store", "devices": one_device, "save_every_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        sweep(loss_fn, bank, data, config, **asked)
    begun = open_sweep(tmp_path / "store")
    assert np.isfinite(begun["init_loss"].values[0]) and np.isnan(begun["init_loss"].values[1:]).all()
    found = sweep(loss_fn, bank, data, config, **asked)
    assert done.count("measured") == len(bank)
    assert_same(found, sweep(loss_fn, bank, data, config, devices=one_device))
    assert not [name for name in found.attrs if name.startswith("num_init")]


def test_compiled_once_for_every_launch_and_length(bank, one_device):
    traces = []

    def counted(w, _):
        traces.append(1)
        return 0.5 * jnp.sum(w**2)

    config = dataclasses.replace(CONFIG, num_burnin_steps=0, num_draws=20, draws_per_chunk=10, runs_per_launch=4)
    sweep(counted, bank, None, config, devices=one_device)
    once = len(traces)
    longer = dataclasses.replace(config, num_draws=200, n_beta=(7.0, 8.0))
    sweep(counted, bank, None, longer, devices=one_device)
    # Only the check of shapes and the allocation trace again; the chunk itself does not.
    assert len(traces) - once < once


BAD = [
    (dict(num_chains=0), "num_chains=0"),
    (dict(num_draws=0), "num_draws=0"),
    (dict(step_size=-1e-4), "step_size=-0.0001"),
    (dict(step_size=float("nan")), "step_size=nan"),
    (dict(n_beta=()), "n_beta is empty"),
    (dict(sampler="nuts"), "sampler='nuts'"),
    (dict(baseline="none"), "baseline='none'"),
    (dict(init="prior", localization=0.0), "localization=0"),
    (dict(batch_size=0), "batch_size=0"),
    (dict(precision="fp8"), "precision='fp8'"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=lambda value: str(value))
def test_bad_settings_get_a_sentence(options, words):
    with pytest.raises(ValueError) as caught:
        SweepConfig(**options)
    assert words in str(caught.value)


def test_bad_input_is_refused_before_anything_runs(bank, one_device, tmp_path):
    x = np.ones((16, 7), np.float32)
    config = SweepConfig(batch_size=8, num_draws=2)

    def refused(words, loss=lambda w, b: jnp.square(b @ w), bank=bank, data=x, config=config):
        with pytest.raises(ValueError) as caught:
            sweep(loss, bank, data, config, out=tmp_path / "never", devices=one_device)
        assert words in str(caught.value)
        assert not (tmp_path / "never").exists()

    refused("returned shape (7,)", loss=lambda w, b: w)
    refused("returned shape (8, 1, 1)", loss=lambda w, b: (b @ w)[:, None, None])
    refused("of equal shape", loss=lambda w, b: (b @ w, jnp.ones(3)))
    refused("batch_size=32 is larger than the 16 examples", config=dataclasses.replace(config, batch_size=32))
    broken = np.array(bank.params)
    broken[:, 2] = np.nan
    refused("step 0 contain NaN", bank=CheckpointBank(params=broken, steps=bank.steps))
    refused("num_baseline_batches", data=lambda key: x, config=SweepConfig(baseline="dataset", batch_size=None))
    refused("has no effect", data=lambda key: x)
    refused("needs data as arrays", data=lambda key: x, config=SweepConfig(batch_size=None, eval_every=2))
    refused("share one leading axis", data={"x": x, "y": np.ones(3)})


def test_a_corrupt_store_gets_a_sentence(tmp_path, bank, one_device):
    with pytest.raises(ValueError, match="no store of a sweep"):
        llcjax.open_sweep(tmp_path / "nothing")
    path = tmp_path / "s"
    sweep(quadratic, bank, None, dataclasses.replace(CONFIG, num_draws=2), out=path, devices=one_device)
    (path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="corrupt"):
        llcjax.open_sweep(path)
    (path / "zarr.json").unlink()
    with pytest.raises(ValueError, match="no store of a sweep"):
        llcjax.open_sweep(path)


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("common", ["all", "none"])
def test_a_baseline_looked_up_is_the_one_computed_at_every_draw(weighted, common, per_position):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(70, 3)).astype(np.float32), rng.normal(size=(70, 2)).astype(np.float32)
    weights = rng.uniform(0.5, 2, size=(70, 2)).astype(np.float32)

    def losses(params, batch):
        x, y, weight = batch
        each = (x @ params - y) ** 2
        return (each, weight) if weighted else each

    def mean(params, batch):
        out = losses(params, batch)
        return jnp.sum(out[0] * out[1]) / jnp.sum(out[1]) if weighted else jnp.mean(out)

    bank = CheckpointBank(params=rng.normal(size=(3, 3, 2)).astype(np.float32), steps=np.array([0, 5, 9]))
    config = SweepConfig(
        n_beta=(5.0, 10.0), localization=10.0, step_size=1e-3, num_chains=2, num_draws=12, batch_size=16,
        common=common, draws_per_chunk=5, per_position=per_position,
    )  # fmt: skip
    data = (inputs, targets, weights)
    looked_up, computed = (make_job(loss, bank, data, config).looks_up for loss in (losses, mean))
    assert (looked_up, computed) == (not per_position, False), "a loss that returns one number is computed"
    found, wanted = (sweep(loss, bank, data, config) for loss in (losses, mean))
    for name in ("loss", "baseline_loss", "gradient_norm"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, err_msg=name)
    assert len(np.unique(found["baseline_loss"])) > 60, "a batch a draw"
    few = dataclasses.replace(config, num_draws=1, num_chains=1, n_beta=(5.0,))
    assert not make_job(losses, bank, data, few).looks_up, "all examples would be more work than the draws"


@pytest.mark.parametrize("runs_per_launch", [2, 6, 18])
def test_losses_at_the_anchors_are_computed_once_a_checkpoint_however_launches_are_cut(monkeypatch, runs_per_launch):
    rng = np.random.default_rng(1)
    data = rng.normal(size=(40, 3)).astype(np.float32)
    bank = CheckpointBank(params=rng.normal(size=(3, 3)).astype(np.float32), steps=np.array([0, 5, 9]))
    config = SweepConfig(
        n_beta=(2.0, 5.0, 10.0), localization=10.0, step_size=1e-3, num_chains=2, num_draws=10, batch_size=8,
        runs_per_launch=runs_per_launch,
    )  # fmt: skip
    computed, original = [], Program.example_losses

    def counted(self, anchors, arrays):
        computed.extend(anchors.tolist())
        return original(self, anchors, arrays)

    monkeypatch.setattr(Program, "example_losses", counted)
    found = sweep(lambda params, x: (x @ params) ** 2, bank, data, config)
    np.testing.assert_array_equal(computed, bank.params)
    wanted = sweep(lambda params, x: jnp.mean((x @ params) ** 2), bank, data, config)
    np.testing.assert_allclose(found["baseline_loss"], wanted["baseline_loss"], rtol=2e-5)
