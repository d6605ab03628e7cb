"""One run that does not fit: microbatches, chains in turn, parameters over several devices. Numbers stay the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llcjax import SweepConfig, component_masks, sweep
from llcjax.checkpoints import CheckpointBank
from llcjax.job import launch_args
from llcjax.sweep import make_job

RNG = np.random.default_rng(0)
PARAMS = {"in": RNG.normal(size=(2, 6, 32)).astype(np.float32), "out": RNG.normal(size=(2, 32, 4)).astype(np.float32)}
BANK = CheckpointBank(params=PARAMS, steps=np.array([0, 5]))
DATA = RNG.normal(size=(64, 6)).astype(np.float32)
CONFIG = SweepConfig(n_beta=20.0, localization=10.0, step_size=1e-3, batch_size=16, num_draws=6, num_chains=3)


def loss(params, x):
    """Losses with weights, some of them 0, so that microbatches weigh unequally."""
    losses = jnp.square(jnp.tanh(x @ params["in"]) @ params["out"])
    return losses, jnp.broadcast_to((x[:, :1] > -0.5).astype(jnp.float32), losses.shape)


@pytest.fixture(scope="module")
def plain():
    return sweep(loss, BANK, DATA, CONFIG)


@pytest.mark.parametrize("change", [{"microbatch_size": 4}, {"chains_at_once": 2}])
def test_less_memory_same_numbers(plain, change):
    other = sweep(loss, BANK, DATA, dataclasses.replace(CONFIG, **change))
    for name in ("loss", "baseline_loss", "distance", "gradient_norm"):
        np.testing.assert_allclose(other[name], plain[name], rtol=3e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_components_in_turn_and_over_several_devices():
    parts = component_masks(BANK.checkpoint(0), ["in", "out"])
    whole = sweep(loss, BANK, DATA, CONFIG, components=parts)
    turned = sweep(loss, BANK, DATA, dataclasses.replace(CONFIG, chains_at_once=1, microbatch_size=8), components=parts)
    np.testing.assert_allclose(turned["loss"], whole["loss"], rtol=3e-5)
    shared = dataclasses.replace(CONFIG, devices_per_run=2)
    parted = sweep(loss, BANK, DATA, shared, components=parts)
    np.testing.assert_allclose(parted["loss"], whole["loss"], rtol=3e-5)


@pytest.mark.slow
def test_memory_falls():
    wide = SweepConfig(batch_size=64, num_draws=2, num_chains=8, draws_per_chunk=2)
    deep = {"in": RNG.normal(size=(1, 6, 512)).astype(np.float32), "out": np.ones((1, 512, 4), np.float32)}
    bank = CheckpointBank(params=deep, steps=np.array([0]))

    def needed(**change):
        job = make_job(loss, bank, DATA, dataclasses.replace(wide, **change), devices=jax.local_devices()[:1])
        compiled = job.program()
        return compiled.memory_bytes(*launch_args(job, compiled, np.arange(1), 8))

    assert needed(chains_at_once=1) < 0.6 * needed()
    assert needed(microbatch_size=8) < 0.6 * needed()


def test_microbatches_must_divide_the_batch():
    for size, words in ((16, "a batch of 16 examples"), (None, "a batch of 64 examples")):
        with pytest.raises(ValueError, match=f"microbatch_size=5 does not divide {words}"):
            sweep(loss, BANK, DATA, dataclasses.replace(CONFIG, batch_size=size, microbatch_size=5))


def test_parameters_over_several_devices(plain):
    """Four simulated devices as two runs at once over two devices each: the same numbers, half the parameters each."""
    shared = dataclasses.replace(CONFIG, devices_per_run=2, num_chains=4)
    assert len(jax.local_devices()) == 4
    parted = sweep(loss, BANK, DATA, shared)
    np.testing.assert_allclose(parted["loss"][:, :, :3], plain["loss"], rtol=3e-5)
    np.testing.assert_allclose(parted["distance"][:, :, :3], plain["distance"], rtol=3e-5)
    job = make_job(loss, BANK, DATA, shared)
    compiled = job.program()
    args = launch_args(job, compiled, np.arange(1), 4)
    states, _ = compiled.advance(*args)
    for leaf, whole in zip(jax.tree.leaves(states.sampler.params), jax.tree.leaves(PARAMS), strict=True):
        # Of four chains a device holds two, and half of each.
        assert leaf.addressable_shards[0].data.size == 2 * whole[0].size // 2, leaf.sharding
    text = compiled.text(*launch_args(job, compiled, np.arange(1), 4))
    assert "all-reduce" in text or "all-gather" in text  # devices that share a chain do talk
    with pytest.raises(ValueError, match="devices_per_run=3 does not divide the 4 devices"):
        sweep(loss, BANK, DATA, dataclasses.replace(CONFIG, devices_per_run=3))
