"""A bridge to devinterp 2.0: stores that its functions read as their own, and a reader of its stores.

A store of devinterp is one checkpoint at one setting. Its LLC averages over every stored step and its init loss has no
pairs, so the draws of an export are those after the burn-in, and the init loss of a chain is the mean of the paired
baselines (the mean over chains, and so the LLC, is the same number; LLCs of single chains differ by their baselines).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from llcjax import checks
from llcjax.estimators import excess_loss, kept_draws
from llcjax.observables import PROBE, weighted
from llcjax.store import save_dataset
from llcjax.types import CHAIN, DRAW, GROUP
from llcjax.untrusted import reason
from llcjax.zarr_metadata import check_zarr


def export_devinterp(
    sweep: xr.Dataset,
    path: Path | str,
    *,
    checkpoint: int = 0,
    setting: int = 0,
    tokens: Mapping[str, Any] | None = None,
    num_burnin_steps: int | None = None,
) -> Path:
    """Writes one checkpoint and setting as a store of devinterp 2.0.

    `xr.open_datatree(path, engine="zarr", consolidated=False)` gives what its `compute_llc`, `compute_bif` and (with a
    store a component, one of them `full`) `compute_susceptibilities` take.

    Args:
        sweep: a sweep with per-position losses, or without, where each position then has the mean of its example.
        path: folder of the store, replaced.
        checkpoint: index of the checkpoint.
        setting: index of the setting.
        tokens: token ids of each probe, `(example, token)`; zeros where they are not given.
        num_burnin_steps: sampler steps to leave out; None takes what the sweep was made with.

    Returns:
        The path.

    Raises:
        ValueError: probes of unequal length, tokens that do not fit their probe, or a chain that broke (devinterp
            would average what is left of it as if it were whole).
    """
    kept = kept_draws(sweep, num_burnin_steps)
    one = sweep.isel(checkpoint=checkpoint, setting=setting, draw=kept).load()
    if bool((one["first_nonfinite_step"] >= 0).any()) or not bool(np.isfinite(one["loss"]).all()):
        raise ValueError("a chain of this checkpoint broke or is not finished; export another one.")
    probes = {str(name).removeprefix(PROBE): _by_position(one, str(name)) for name in one if _is_probe(name)}
    length = _num_positions(probes)
    variables = _sampling_losses(one, length)
    for name, losses in probes.items():
        variables |= _observable(name, losses, length, (tokens or {}).get(name))
    facts = {
        "sampler": _sampler_facts(one, (one.sizes["chain"], one.sizes["draw"])),
        "observables": [{"type": "ObserveDifferentDataset", "obs_id": name, "batches_per_draw": 1} for name in probes],
        "chain_buffer_size": min(50, one.sizes["draw"]),
        "shared_observable_dims": ["token", "token_pos"],
        "tokenizer_context_length": length + 1,
    }
    save_dataset(xr.Dataset(variables, attrs={"metadata": {"config": facts}, "completed": 1}), path)
    return Path(path)


def _is_probe(name: Any) -> bool:
    return str(name).startswith(PROBE)


def _by_position(one: xr.Dataset, name: str) -> np.ndarray:
    """Losses of a probe as `(chain, draw, example[, position])`, without the positions of no weight."""
    losses = one[name].transpose("chain", "draw", ...).values
    return losses if losses.ndim == 3 else losses[..., weighted(one, name.removeprefix(PROBE)).all(0)]


def _num_positions(probes: Mapping[str, np.ndarray]) -> int:
    lengths = {losses.shape[-1] for losses in probes.values() if losses.ndim == 4}
    if len(lengths) > 1:
        raise ValueError(f"the probes have {sorted(lengths)} positions, but a store of devinterp has one number.")
    return lengths.pop() if lengths else 1


def _sampling_losses(one: xr.Dataset, length: int) -> dict[str, Any]:
    """The losses of the chains themselves: one example a step, each position with the loss of the batch."""
    loss = one["loss"].transpose("chain", "draw").values.astype(np.float32)
    baseline = (one["loss"] - excess_loss(one)).transpose("chain", "draw").values.mean(1)
    spread = np.broadcast_to(loss[:, :, None, None], (*loss.shape, 1, length))
    ids = np.zeros((*loss.shape, 1, length + 1), np.int64)
    return {
        "init_loss": (("chain", "token_pos"), np.repeat(baseline[:, None], length, 1).astype(np.float32)),
        "sampling_loss": (("chain", "draw", "batch", "token_pos"), spread),
        "sampling_loss_micro": (("chain", "step", "batch_sampling", "token_pos"), spread),
        "sampling_input_ids_micro": (("chain", "step", "batch_sampling", "token"), ids),
    }


def _observable(name: str, losses: np.ndarray, length: int, tokens: Any) -> dict[str, Any]:
    """The losses and the tokens of a probe."""
    losses = losses if losses.ndim == 4 else np.repeat(losses[..., None], length, -1)
    shape = (losses.shape[2], length + 1)
    ids = np.zeros(shape, np.int64) if tokens is None else np.asarray(tokens, np.int64)
    if ids.shape != shape:
        raise ValueError(f"tokens[{name!r}] has shape {ids.shape}, but its losses ask for {shape}.")
    return {
        f"loss_{name}": (("chain", "draw", f"batch_{name}", "token_pos"), losses.astype(np.float32)),
        f"input_ids_{name}": ((f"batch_{name}", "token"), ids),
    }


def _sampler_facts(one: xr.Dataset, shape: tuple[int, ...]) -> dict[str, Any]:
    config = json.loads(str(one.attrs["config"])) if "config" in one.attrs else {}
    return {
        "num_chains": shape[0],
        "num_draws": shape[1],
        "num_burnin_steps": 0,
        "num_steps_bw_draws": 1,
        "batch_size": 1,
        "gradient_accumulation_steps": 1,
        "lr": float(one["step_size"]),
        "n_beta": float(one["n_beta"]),
        "localization": float(one["localization"]),
        "init_seed": config.get("seed", 0),
        "sampling_method": "sgmcmc_sgld",
        "written_by": "llcjax",
    }


def import_devinterp(path: Path | str) -> xr.Dataset:
    """Reads a store of devinterp 2.0 as a sweep of one checkpoint and one setting.

    Args:
        path: folder that its `sample` wrote.

    Returns:
        What `llcjax.sweep` returns, as far as the store knows: `loss` of every draw after its burn-in, `baseline_loss`
        (the init loss of the chain, whose batches are the first ones of the chain), `probe_NAME` for each observable,
        with tokens, and `distance` where its metrics were saved. `llcjax.estimates` and the covariances take it.
        Stores of several components become one sweep by `xr.concat(..., "setting", data_vars="minimal")` with a
        coordinate `component`. devinterp records observables after the step whose loss it records, and no losses
        of the observables at the checkpoint: susceptibilities start from `init_loss`. Where its chains share their
        batches (its default), the standard error lacks what these have in common.

    Raises:
        ValueError: the folder holds no such store, or an incomplete one.
    """
    path = checks.path("path", path)
    try:
        check_zarr(path)
        store = xr.open_zarr(str(path), consolidated=False, chunks=None).load()
        sampler = store.attrs["metadata"]["config"]["sampler"]
        loss, init = (store[name].astype(np.float64) for name in ("sampling_loss", "init_loss"))
    except Exception as error:  # zarr and xarray raise many types on what is no store
        raise ValueError(f"{path} is no store of devinterp 2.0 ({reason(error)}).") from error
    if store.attrs.get("completed") != 1:
        raise ValueError(f"{path} was not completed by devinterp; sample again.")
    trace = loss.mean(["batch", "token_pos"]).transpose("chain", "draw").values
    steps = int(sampler.get("num_burnin_steps", 0)) + int(sampler.get("num_steps_bw_draws", 1)) * np.arange(
        trace.shape[1]
    )
    variables: dict[str, Any] = {
        "loss": (DRAW, trace[None, None]),
        "baseline_loss": (DRAW, np.broadcast_to(init.mean("token_pos").values[:, None], trace.shape)[None, None]),
        "distance": (DRAW, _distances(store, steps, trace.shape)[None, None]),
        "init_loss": (("checkpoint",), [float(init.mean())]),
        "first_nonfinite_step": (CHAIN, _first_broken(trace, steps)[None, None]),
        "num_draws_done": (GROUP, np.full((1, 1), trace.shape[1])),
    }
    for variable in store.data_vars:
        if (name := str(variable)).startswith("loss_"):
            probe = name.removeprefix("loss_")
            values = store[name].transpose("chain", "draw", f"batch_{probe}", "token_pos").values
            variables[PROBE + probe] = ((*DRAW, f"{PROBE}{probe}_0", f"{PROBE}{probe}_1"), values[None, None])
    return xr.Dataset(
        variables,
        coords={
            "checkpoint": [0],
            "setting": [0],
            "chain": np.arange(trace.shape[0]),
            "draw": steps,
            "n_beta": ("setting", [float(sampler["n_beta"])]),
            "localization": ("setting", [float(sampler.get("localization", 0.0))]),
            "step_size": ("setting", [float(sampler["lr"])]),
        },
        attrs={
            "num_burnin_steps": int(steps[0]),
            "num_params": float(store.attrs.get("metrics_numel", np.nan)),
            "wall_seconds": 0.0,
        },
    )


def _first_broken(trace: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The step of the first draw of each chain whose loss is not finite; -1 for none."""
    broken = ~np.isfinite(trace)
    return np.where(broken.any(1), steps[broken.argmax(1)], -1)


def _distances(store: xr.Dataset, steps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Distances from the checkpoint before each recorded step, which devinterp stores with `save_metrics`."""
    if "metrics_distance" not in store:
        return np.full(shape, np.nan)
    return store["metrics_distance"].transpose("chain", "step").values[:, steps]
