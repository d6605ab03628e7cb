"""How a sweep is cut, and what happens when the devices run out of memory all the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llcjax
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.plan import make_plan, most_runs
from llcjax.program import Program, loss_work
from llcjax.sweep import make_job

CONFIG = SweepConfig(n_beta=10.0, localization=1.0, step_size=0.01, num_chains=3, num_draws=20, draws_per_chunk=7)
BANK = CheckpointBank(params=np.arange(10, dtype=np.float32).reshape(5, 2), steps=np.arange(5))


def loss(w, _):
    return jnp.sum(jnp.square(w - 1))


def plan(most, memory=None, groups=40):
    return make_plan(CONFIG, num_groups=groups, draws_per_chunk=7, num_devices=2, most_runs=most, memory=memory)


def test_launches_are_even_and_shared_by_the_devices():
    cut = plan(64)
    assert (cut.groups_per_launch, cut.num_launches, cut.runs_per_launch) == (20, 2, 60)
    assert plan(1).groups_per_launch == 1 and plan(1).runs_per_launch == 4


def test_memory_narrows_a_launch(monkeypatch):
    monkeypatch.setattr("llcjax.plan.memory_limit", lambda: 1000)
    cut = plan(120, memory=lambda groups, runs: 100 + 30 * runs)
    assert cut.runs_per_launch == 30 and cut.groups_per_launch == 10
    with pytest.raises(ValueError, match="one checkpoint with 3 chains needs"):
        plan(120, memory=lambda groups, runs: 10**6)


def test_the_knee_moves_with_the_work_of_a_step():
    assert most_runs(0.0, "gpu") == 128
    assert most_runs(1e3, "gpu") > most_runs(6.8e9, "gpu") > most_runs(2.7e12, "gpu") == 4
    assert most_runs(6.8e9, "gpu") in range(32, 129)


def test_flops_are_counted_before_anything_runs():
    w, x = jnp.zeros((64, 32)), jax.ShapeDtypeStruct((100, 64), jnp.float32)
    flops = loss_work(lambda w, x: jnp.sum(jnp.square(x @ w), -1), w, x, paired=False).flops
    # Forward and the gradient of the weights: two products of 2 * 100 * 64 * 32 operations.
    assert flops == pytest.approx(2 * 2 * 100 * 64 * 32, rel=0.1)


def test_out_of_memory_halves_the_launch_and_goes_on(monkeypatch, one_device, tmp_path):
    whole = llcjax.sweep(loss, BANK, None, CONFIG, devices=one_device)
    advance, widths = Program.advance, []

    def small_device(self, states, *args):
        width = jax.tree.leaves(states)[0].shape[0]
        widths.append(width)
        if width > 6:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")
        return advance(self, states, *args)

    monkeypatch.setattr(Program, "advance", small_device)
    with pytest.warns(RuntimeWarning, match=r"ran out of memory with 15 chains at once; .* with 9"):
        facts = llcjax.sweep(loss, BANK, None, CONFIG, out=tmp_path / "store", devices=one_device)
    assert widths[0] == 15 and set(widths[2:]) == {6}
    np.testing.assert_array_equal(facts["loss"].values, whole["loss"].values)


def test_a_checkpoint_that_never_fits_gets_a_sentence(monkeypatch, one_device):
    def no_device(self, *args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(Program, "advance", no_device)
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="one checkpoint with 3 chains does not fit"):
        llcjax.sweep(loss, BANK, None, CONFIG, devices=one_device)


def test_other_errors_of_the_devices_are_not_taken_for_memory(monkeypatch, one_device):
    def broken(self, *args):
        raise jax.errors.JaxRuntimeError("INTERNAL: bad kernel")

    monkeypatch.setattr(Program, "advance", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="bad kernel"):
        llcjax.sweep(loss, BANK, None, CONFIG, devices=one_device)


def test_a_forecast_says_what_the_sweep_does(one_device):
    seen = llcjax.forecast(loss, BANK, None, CONFIG, devices=one_device)
    assert (seen.num_runs, seen.steps_per_chain, seen.plan.num_launches) == (15, 20, 1)
    assert 0 < seen.memory_bytes < (seen.memory_limit or 1e12)
    assert seen.seconds == pytest.approx(15 * 20 * seen.seconds_per_step)
    assert dict(seen.rows())["chains"] == "15 (5 checkpoints and settings x 3)"


def test_bytes_are_those_of_a_step(one_device):
    """However many steps there are between draws, whose loops count once each."""
    bank = CheckpointBank(params=np.zeros((1, 50_000), np.float32), steps=np.zeros(1, np.int64))
    found = [
        llcjax.forecast(
            loss, bank, None, dataclasses.replace(CONFIG, num_steps_between_draws=steps), devices=one_device
        )
        for steps in (1, 2, 8)
    ]
    array = 4 * 50_000  # a step reads and writes parameters, noise and gradients some times
    assert found[0].step_bytes is not None and 3 * array < found[0].step_bytes < 40 * array
    for other in found[1:]:
        assert other.step_bytes == pytest.approx(found[0].step_bytes, rel=0.2)


def test_work_is_counted_at_the_precision_of_the_sweep(one_device):
    seen = set()

    def loss_fn(w, batch):
        seen.add(jax.config.jax_default_matmul_precision)  # what kernels are chosen by
        return loss(w, batch)

    job = make_job(loss_fn, BANK, None, dataclasses.replace(CONFIG, precision="highest"), devices=one_device)
    seen.clear()
    assert job.step_work().kernel_bytes == 0 and seen == {"highest"}
