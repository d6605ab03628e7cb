"""The bridge to devinterp 2.0: the same LLC, influence and susceptibilities from an exported store."""

import os
import subprocess
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from llcjax import (
    SweepConfig,
    bif,
    component_masks,
    estimates,
    export_devinterp,
    import_devinterp,
    loss_kernel,
    susceptibilities,
    sweep,
)
from llcjax.checkpoints import bank_of

HERE = Path(__file__).parent
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 5, (40, 6)).astype(np.int32)
PARAMS = {"table": RNG.normal(size=(5, 5)).astype(np.float32), "bias": np.zeros(5, np.float32)}
PROBES = {"data": TOKENS[:8], "other": TOKENS[8:12]}

SCRIPT = """
import sys, numpy as np, xarray as xr
from devinterp.slt.llc import compute_llc
from devinterp.slt.bif import compute_bif
from devinterp.slt.susceptibilities import compute_susceptibilities
folder = sys.argv[1]
trees = {name: xr.open_datatree(f"{folder}/{name}", engine="zarr", consolidated=False) for name in ("full", "bias")}
llc = compute_llc(trees["full"])
bif = compute_bif(trees["full"], correlation_method="sequence", device="cpu")
cov = compute_bif(trees["full"], correlation_method="sequence", compute_covariance=True, device="cpu")
sus = compute_susceptibilities(trees, "data", ["other"])
np.savez(f"{folder}/theirs.npz", llc=llc["llc_mean"], scalar=llc["llc_scalar"], bif=bif["influences"],
         cov=cov["influences"], sus=sus["susceptibilities"]["sus"].values)
"""


def loss(params, batch):
    """A bigram model: losses of each token, weight 0 at the last."""
    logits = params["table"][batch] + params["bias"]
    following = jnp.roll(batch, -1, 1)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), following[..., None], -1)[..., 0]
    return losses, jnp.ones_like(losses).at[:, -1].set(0)


@pytest.fixture(scope="module")
def facts():
    config = SweepConfig(
        n_beta=50.0, localization=20.0, step_size=1e-3, batch_size=16, num_draws=80, num_burnin_steps=40, num_chains=3,
        per_position=True,
    )  # fmt: skip
    parts = component_masks(PARAMS, ["full", "bias"])
    return sweep(loss, bank_of(PARAMS), TOKENS, config, probes=PROBES, components=parts)


def exported(facts, folder):
    for setting, name in enumerate(facts["component"].values):
        export_devinterp(facts, folder / str(name), setting=setting, tokens=PROBES)
    return folder


def with_devinterp(*arguments):
    """Runs a Python that has devinterp, or skips."""
    python = os.environ.get("DEVINTERP_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip("compares with devinterp 2.0.1: set DEVINTERP_PYTHON to a Python that has it")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, *map(str, arguments)], check=True, env=environment, timeout=280)


def test_devinterp_computes_the_same(facts, tmp_path):
    folder = exported(facts, tmp_path)
    with_devinterp("-c", SCRIPT, folder)
    theirs = np.load(folder / "theirs.npz")
    table = estimates(facts)
    np.testing.assert_allclose(theirs["llc"], table["llc"][0, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(theirs["scalar"], table["llc"][0, 0], rtol=1e-5, atol=1e-5)
    # Their influence is the correlation of losses, ours its negative; both on means over the positions of a sequence.
    each = facts.assign(
        {
            f"{kind}{name}": facts[f"{kind}{name}"][..., :-1].mean(f"probe_{name}_1")
            for name in PROBES for kind in ("probe_", "init_probe_")
        }
    ).isel(setting=[0])  # fmt: skip
    kernel = loss_kernel(each, "data")["kernel"].values[0, 0]
    np.testing.assert_allclose(theirs["bif"][:8, :8], kernel, atol=1e-5)
    for correlation, key in ((True, "bif"), (False, "cov")):
        ours = bif(each, "data", "other", correlation=correlation)["bif"].values[0, 0]
        np.testing.assert_allclose(-theirs[key][:8, 8:], ours, atol=1e-5)
    kept = facts["draw"] >= 40
    init_loss = float(facts["baseline_loss"].isel(setting=0, draw=kept.values).mean())
    ours = susceptibilities(facts, "other", "data", full="full", init_loss=init_loss)["susceptibility"].isel(
        checkpoint=0, setting=1
    )
    np.testing.assert_allclose(theirs["sus"][:, 0], ours.values.reshape(4, 6)[:, :-1].ravel(), atol=1e-5)


@pytest.fixture(scope="module", params=["stored", "sampled"])
def samples(request, tmp_path_factory):
    """A folder of devinterp's own stores with what its functions make of them: from the archive, and sampled anew."""
    folder = tmp_path_factory.mktemp("samples")
    if request.param == "stored":
        with tarfile.open(HERE / "data" / "devinterp.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    else:
        with_devinterp(HERE / "devinterp_samples.py", folder)
    return folder


@pytest.mark.parametrize("name", ["full", "bias", "late"])
def test_stores_of_devinterp_are_read(samples, name):
    """The same LLC and influences of every pair of tokens, to 1e-5, from stores that devinterp sampled itself."""
    theirs, read = np.load(samples / "theirs.npz"), import_devinterp(samples / name)
    # Its LLC averages over the burn-in too; ours begins after it, which is the end of its trace.
    steps = read["draw"].values
    init_loss = float(theirs[f"{name}_init"])
    after = 20 * (theirs[f"{name}_trace"][:, steps].mean(dtype=np.float64) - init_loss)
    llc = estimates(read)["llc"].values[0, 0]
    np.testing.assert_allclose(llc, after, rtol=1e-5, atol=1e-5)
    if name == "late":
        assert steps.tolist() == list(range(4, 20, 2)) and read.attrs["num_params"] == 30
        assert np.all(read["distance"].values > 0)
    else:
        np.testing.assert_allclose(llc, theirs[f"{name}_llc"], rtol=1e-5, atol=1e-5)
    count = 4  # examples of `data`, which come first in theirs; those of `other` are 2, of 3 tokens each
    for kind in ("correlation", "covariance"):
        table = theirs[f"{name}_{kind}"].transpose(0, 2, 1, 3)
        ours = bif(read, "data", "other", correlation=kind == "correlation")["bif"].values[0, 0]
        np.testing.assert_allclose(-ours, table[:count, :, count:].reshape(12, 6), atol=1e-5)
        kernel = loss_kernel(read, "data", correlation=kind == "correlation")["kernel"].values[0, 0]
        np.testing.assert_allclose(kernel, table[:count, :, :count].reshape(12, 12), atol=1e-5)


def test_stores_of_components_join(samples):
    """Susceptibilities over devinterp's stores of two components are its own."""
    stores = [import_devinterp(samples / name) for name in ("full", "bias")]
    joined = xr.concat(stores, "setting", data_vars="minimal").assign_coords(component=("setting", ["full", "bias"]))
    ours = susceptibilities(joined, "other", "data", full="full")["susceptibility"].values[0, 1]
    theirs = np.load(samples / "theirs.npz")["susceptibilities"][:, 0]
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert np.abs(theirs).max() > 1e-3


def test_chains_that_devinterp_lost_are_left_out(samples, tmp_path):
    """devinterp keeps a chain that broke, as rows of NaN, and calls the store complete."""
    store = xr.open_zarr(samples / "full", consolidated=False).load()
    store["sampling_loss"][1, 5:] = np.nan
    store.drop_encoding().to_zarr(tmp_path / "lost", consolidated=False)
    read = import_devinterp(tmp_path / "lost")
    assert read["first_nonfinite_step"].values.tolist() == [[[-1, 5]]]
    table = estimates(read)
    assert table["num_chains_used"].item() == 1 and np.isfinite(table["llc_stderr"].item())
    np.testing.assert_allclose(table["llc"], estimates(import_devinterp(samples / "full"))["llc_per_chain"][..., 0])


def test_what_was_exported_is_read_back(facts, tmp_path):
    """What was exported comes back as the draws after the burn-in; the layout is that of devinterp's own stores."""
    folder = exported(facts, tmp_path)
    read = import_devinterp(folder / "full")
    np.testing.assert_allclose(estimates(read)["llc"], estimates(facts)["llc"][:, :1], rtol=1e-4)
    np.testing.assert_allclose(
        loss_kernel(read, "data")["kernel"].values[0, 0].reshape(8, 5, 8, 5)[:, :, :, :],
        loss_kernel(facts, "data")["kernel"].values[0, 0].reshape(8, 6, 8, 6)[:, :-1, :, :-1],
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="no store of devinterp"):
        import_devinterp(tmp_path / "nothing")
    tree = xr.open_datatree(str(folder / "full"), engine="zarr", consolidated=False)
    assert tree.dataset.metadata["config"]["sampler"]["n_beta"] == 50.0
    with pytest.raises(ValueError, match=r"tokens\['data'\] has shape"):
        export_devinterp(facts, tmp_path / "bad", tokens={"data": TOKENS[:3]})
