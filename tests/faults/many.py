"""Several processes or devices that share a sweep, and one of them that dies."""

import signal
import time

import jax
import jax.numpy as jnp
import numpy as np

import llcjax
from llcjax.checkpoints import CheckpointBank
from llcjax.models import TransformerConfig, icl_transformer
from llcjax.tasks.regression import RegressionTask, squared_error
from tests.faults.table import Row
from tests.faults.work import SWEEP, Child, free_port, sweep_into, swept_arrays

TASK = RegressionTask(dimension=2, num_pairs=4)


def quadratic(params, batch):
    """Without a product of matrices: every cut gives the same bits."""
    x, y = batch
    return 0.5 * jnp.sum(jnp.linspace(0.1, 2.0, 3) * params**2) + y * params[0] + x[:, 0] * params[1]


def quadratic_sweep(folder, begun=None, **options):
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    bank = CheckpointBank(params=values, steps=np.arange(6))
    return sweep_into(folder, begun, loss=quadratic, bank=bank, **options)


def transformer_sweep(folder, begun=None):
    """A transformer of two layers at four checkpoints; ten steps, as rounding grows along a chain."""
    sizes = TransformerConfig(num_heads=2, model_width=16, mlp_width=16)
    init, apply = icl_transformer(sizes, TASK.num_tokens, TASK.token_width)
    trees = [init(jax.random.key(i)) for i in range(4)]
    params = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)
    bank = llcjax.CheckpointBank(params=params, steps=np.arange(4))
    data = TASK.sample(jax.random.key(9, impl="threefry2x32"), 64)
    config = llcjax.SweepConfig(
        n_beta=10.0, step_size=1e-4, localization=10.0, num_chains=2, num_draws=10, batch_size=8
    )
    llcjax.sweep(squared_error(apply), bank, data, config, out=folder / "sweep", devices=jax.local_devices()[:1])


def same(folder, other):
    """Whether two sweeps are equal bit for bit.

    Of the distance the last bit is left out: XLA rounds that sum otherwise in launches of another width.
    """
    one, two = swept_arrays(folder), swept_arrays(other)
    near = np.allclose(*(np.frombuffer(arrays.pop("distance"), np.float32) for arrays in (one, two)), rtol=2e-7, atol=0)
    return one == two and near


def together(count, work, folder, **options):
    """Several processes that find each other, all started."""
    port = free_port()
    return [Child(work, folder, place=(port, count, index), **options) for index in range(count)]


def equal_to_one(tries, seed, folder):
    """Two and four processes against one."""
    del seed
    lost, largest = 0, 0.0
    for name, work in (("quadratic", quadratic_sweep), ("transformer", transformer_sweep)):
        for count in (1, *(2, 4)[:tries]):
            place = folder / f"{name}_{count}"
            place.mkdir()
            children = together(count, work, place) if count > 1 else [Child(work, place)]
            assert [child.end() for child in children] == [0] * count
            if name == "quadratic":
                lost += not same(place, folder / f"{name}_1")
            else:
                facts, one = (llcjax.open_sweep(folder / f"{name}_{n}" / "sweep") for n in (count, 1))
                apart = float(np.abs(facts["loss"].values / one["loss"].values - 1).max())
                largest = max(largest, apart)
    lost += largest > 1e-5
    happened = f"bit for bit on a quadratic (distances: but for the last bit), {largest:.0e} relative on a transformer"
    return Row(f"sweep shared by {' and '.join('24'[:tries])} processes", 2 * tries, happened, lost)


def one_dies(tries, seed, folder):
    """One of two or four processes is killed; the sweep goes on with as many, or with one, two or four."""
    random, lost, kept, touched, codes = np.random.default_rng(seed), 0, 0, 0, set()
    (folder / "whole").mkdir()
    started = time.monotonic()
    assert Child(quadratic_sweep, folder / "whole").end() == 0
    seconds = time.monotonic() - started
    for index in range(tries):
        place, count = folder / str(index), (2, 4)[index % 2]
        place.mkdir()
        children = together(count, quadratic_sweep, place)
        victim = int(random.integers(count))
        children[victim].wait_for("begun")
        children[victim].signal_after(random.uniform(0, seconds / 2), signal.SIGKILL)
        codes |= {child.end() for child in children}
        done, files = _finished(place)
        again = (count, 1, 2, 4)[index // 2 % 4]
        children = together(again, quadratic_sweep, place) if again > 1 else [Child(quadratic_sweep, place)]
        assert [child.end() for child in children] == [0] * again
        lost += not same(place, folder / "whole")
        touched += sum(file.stat().st_mtime_ns != when for file, when in files.items())
        kept += done
    happened = f"{kept} of {12 * tries} groups were finished, {touched} files of them written again; as above"
    fault = "one of 2 or 4 processes killed, then as many, 1, 2 or 4"
    return Row(fault, tries, happened, lost, {"exit_codes": sorted(codes)})


def _finished(place):
    """Groups that are finished, and when the files with their losses were written."""
    done = llcjax.open_sweep(place / "sweep")["num_draws_done"].values >= SWEEP.num_draws
    files = [file for c, s in np.argwhere(done) for file in (place / "sweep/loss/c" / str(c) / str(s)).rglob("*")]
    return int(done.sum()), {file: file.stat().st_mtime_ns for file in files if file.is_file()}


def other_devices(tries, seed, folder):
    """A sweep that is killed and goes on with another number of devices."""
    random, lost = np.random.default_rng(seed), 0
    (folder / "whole").mkdir()
    assert Child(quadratic_sweep, folder / "whole").end() == 0
    for index in range(tries):
        place = folder / str(index)
        place.mkdir()
        for num_devices in random.permutation([1, 2, 4])[:2]:
            child = Child(quadratic_sweep, place, num_devices=int(num_devices))
            child.wait_for("begun")
            child.signal_after(random.uniform(0, 1), signal.SIGKILL)
            child.end()
        assert Child(quadratic_sweep, place, num_devices=int(random.choice([1, 2, 4]))).end() == 0
        lost += not same(place, folder / "whole")
    return Row("killed, then other devices (1, 2, 4)", tries, "as above", lost)
