import csv
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llcjax.models import TransformerConfig, icl_transformer
from llcjax.tasks.regression import RegressionTask, squared_error
from llcjax.train import TrainConfig, learning_rate_schedule, make_optimizer, train

TASK = RegressionTask(dimension=2, num_pairs=4)
INIT, APPLY = icl_transformer(
    TransformerConfig(num_layers=1, num_heads=2, model_width=16, mlp_width=16), TASK.num_tokens, TASK.token_width
)
LOSS = squared_error(APPLY)
CONFIG = TrainConfig(num_steps=60, batch_size=16, num_seeds=2, num_log_checkpoints=4, num_linear_checkpoints=4)


def run(config=CONFIG, **options):
    return train(INIT, LOSS, TASK.sample, config, progress=False, **options)


@pytest.fixture(scope="module")
def banks():
    return run()


SHORT = dataclasses.replace(CONFIG, num_seeds=1, num_steps=30)


@pytest.fixture(scope="module")
def plain():
    return run(SHORT)[0]


def test_the_papers_snapshots(shared_data):
    ours = TrainConfig().snapshot_steps()
    assert len(ours) == 190
    with (shared_data / "paper_regression_seed0.csv").open() as file:
        theirs = np.array([int(row["step"]) for row in csv.DictReader(file)])
    assert np.all(ours[:-1] == theirs[:-1])
    assert (ours[-1], theirs[-1]) == (500_000, 499_999)  # they number updates, we count them


def test_the_papers_schedule():
    schedule = learning_rate_schedule(TrainConfig())
    assert float(schedule(0)) == pytest.approx(1.2e-8, rel=0.02)  # float32
    assert float(schedule(125_000)) == pytest.approx(1.5e-3, rel=1e-3)
    assert float(schedule(250_000)) == pytest.approx(3e-3, rel=1e-6)
    assert float(schedule(375_000)) == pytest.approx(1.5e-3, rel=1e-3)
    assert float(schedule(500_000)) < 1e-12


def test_banks_hold_what_was_trained(banks):
    assert [bank.config["model_seed"] for bank in banks] == [0, 1]
    assert banks[0].steps.tolist() == CONFIG.snapshot_steps().tolist()
    start = jax.tree.leaves(banks[0].checkpoint(0))
    again = jax.tree.leaves(INIT(jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), 0)))
    for a, b in zip(start, again, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    losses = banks[0].metrics["train_loss"]
    assert np.isnan(losses[0]) and np.all(np.isfinite(losses[1:]))


def test_seeds_differ_and_equal_training_alone(banks):
    a, b = (jax.tree.leaves(bank.checkpoint(-1))[0] for bank in banks)
    assert not np.allclose(a, b)
    alone = run(dataclasses.replace(CONFIG, num_seeds=1, seed=1))[0]
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(banks[1].params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_equals_a_plain_optax_loop(banks):
    """The compiled loop does nothing but what a textbook loop does."""
    optimizer = make_optimizer(CONFIG)
    params = jax.tree.map(jnp.asarray, banks[0].checkpoint(0))
    state = optimizer.init(params)
    root = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), 1)
    for step in range(20):
        batch_key, _ = jax.random.split(jax.random.fold_in(root, step))
        batch = TASK.sample(batch_key, 16)
        grads = jax.grad(lambda p, batch=batch: jnp.mean(LOSS(p, batch)))(params)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    held = banks[0].checkpoint(banks[0].steps.tolist().index(20))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(held), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


SCRIPT = textwrap.dedent(
    """
    import sys, time
    import tests.test_train as t
    module = sys.modules["llcjax.train"]  # llcjax.train itself is the function
    update = module.TrainProgress.update
    def slow(self, step, loss):
        print(step, flush=True)
        time.sleep(0.1)
        update(self, step, loss)
    module.TrainProgress.update = slow
    t.run(work_dir=sys.argv[1], save_every_seconds=0.05)
    """
)


@pytest.mark.parametrize("moment", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_training_ends_with_bitwise_the_same_parameters(banks, tmp_path, moment):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    for _ in range(moment):
        line = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert line and list(tmp_path.glob("segment_*.json"))
    for ours, whole in zip(run(work_dir=tmp_path), banks, strict=True):
        np.testing.assert_array_equal(ours.steps, whole.steps)
        jax.tree.map(np.testing.assert_array_equal, ours.params, whole.params)
        np.testing.assert_array_equal(ours.metrics["train_loss"], whole.metrics["train_loss"])
    with pytest.raises(ValueError, match="another config"):
        run(dataclasses.replace(CONFIG, batch_size=17), work_dir=tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"weight_decay": 0.3}, {"gradient_noise": 0.1}, {"optimizer": "sgd"}, {"optimizer": "adamw", "weight_decay": 0.3},
     {"schedule": "constant"}],
    ids=str,
)  # fmt: skip
def test_options_change_training(plain, change):
    changed = run(dataclasses.replace(SHORT, **change))[0]
    a, b = (jax.tree.leaves(bank.checkpoint(-1)) for bank in (changed, plain))
    assert all(np.all(np.isfinite(leaf)) for leaf in a)
    assert any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_gradient_noise_differs_between_seeds():
    """optax.add_noise keeps its key in the state and would give all vmapped seeds the same noise."""
    config = dataclasses.replace(
        CONFIG, num_steps=1, gradient_noise=1.0, learning_rate=0.0, optimizer="sgd", schedule="constant"
    )
    optimizer = make_optimizer(dataclasses.replace(config, learning_rate=1.0))
    zeros = jnp.zeros((2, 5))
    state = jax.vmap(optimizer.init)(zeros)
    keys = jax.random.split(jax.random.key(0), 2)
    updates, _ = jax.vmap(lambda g, s, p, k: optimizer.update(g, s, p, key=k))(zeros, state, zeros, keys)
    assert np.all(updates[0] != updates[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"optimizer": "adamm"}, "optimizer='adamm'"),
        ({"num_log_checkpoints": 0, "num_linear_checkpoints": 0}, "at least one snapshot"),
        ({"schedule": "cosine"}, "schedule='cosine'"),
    ],
)
def test_bad_settings_get_a_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**options)


def test_a_torn_segment_costs_what_came_after_it_and_no_more(banks, tmp_path):
    run(work_dir=tmp_path, save_every_seconds=0)
    saved = sorted(int(path.stem.split("_")[1]) for path in tmp_path.glob("segment_*.json"))
    torn = max((tmp_path / f"segment_{saved[2]}").rglob("*"), key=lambda path: path.stat().st_size)
    torn.write_bytes(torn.read_bytes()[:100])
    (tmp_path / f"segment_{saved[5]}.json").write_text('{"identity"')
    first = tmp_path / f"segment_{saved[1]}.json"
    before = first.stat().st_mtime_ns
    with pytest.warns(RuntimeWarning, match=f"segment_{saved[2]} is torn; training goes on from before it"):
        again = run(work_dir=tmp_path, save_every_seconds=0)
    assert first.stat().st_mtime_ns == before
    for ours, whole in zip(again, banks, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours.params, whole.params)
    with pytest.raises(ValueError, match="another config"):
        run(dataclasses.replace(CONFIG, batch_size=17), work_dir=tmp_path)


def test_batches_from_data_are_the_same_as_from_a_constant():
    def loss(params, x):
        return jnp.square(x - params["w"])

    def init(key):
        return {"w": jax.random.normal(key, ())}

    rows = np.random.default_rng(0).normal(size=64).astype(np.float32)
    config = TrainConfig(num_steps=20, batch_size=4, num_seeds=2, num_log_checkpoints=2, num_linear_checkpoints=3)

    def from_data(key, batch_size, held):
        return held[jax.random.randint(key, (batch_size,), 0, len(held))]

    ours = train(init, loss, from_data, config, data=rows, progress=False)
    theirs = train(init, loss, lambda key, size: from_data(key, size, jnp.asarray(rows)), config, progress=False)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.params["w"], other.params["w"], rtol=1e-6)
        assert abs(one.params["w"][-1] - one.params["w"][0]) > 1e-3
