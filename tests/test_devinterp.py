"""The bridge to devinterp 2.0: the same LLC, influence and susceptibilities from an exported store."""

import os
import subprocess
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


def test_devinterp_computes_the_same(facts, tmp_path):
    python = os.environ.get("DEVINTERP_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip("compares with devinterp 2.0.1: set DEVINTERP_PYTHON to a Python that has it")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folder = exported(facts, tmp_path)
    subprocess.run([python, "-c", SCRIPT, str(folder)], check=True, env=environment, timeout=280)
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


def test_a_store_of_theirs_is_read_back(facts, tmp_path):
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
