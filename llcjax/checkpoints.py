"""Banks of checkpoints: snapshots of one training run, stacked on a leading `checkpoint` axis."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Int

from llcjax import checks, show, trees
from llcjax.output_folder import write_text
from llcjax.types import Params
from llcjax.untrusted import check_expansion, read_json, reason, stored_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointBank:
    """Snapshots of one model, on the host.

    `bank[3:10]`, `bank[[0, 5]]` and `bank.at_steps([0, 1000])` are banks again; `bank.checkpoint(3)` is one pytree.
    """

    params: Params
    """Float32 arrays with a leading checkpoint axis."""
    steps: Int[np.ndarray, " checkpoint"]
    """Training step (optimiser updates) of each checkpoint, strictly increasing."""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Whatever made the checkpoints."""
    metrics: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Curves known from training, each with a leading checkpoint axis."""

    def __post_init__(self) -> None:
        """Checks the axes.

        Raises:
            ValueError: no checkpoints, steps that are not strictly increasing, or unequal lengths.
        """
        steps = _whole_numbers(self.steps)
        object.__setattr__(self, "steps", steps)
        if steps.ndim != 1 or steps.size == 0:
            raise ValueError("the bank has no checkpoints; give at least one step and its parameters.")
        if np.any(np.diff(steps) <= 0):
            where = int(np.argmax(np.diff(steps) <= 0))
            raise ValueError(
                f"the bank's steps must increase, but {steps[where]} is followed by {steps[where + 1]}; "
                "sort them and leave out duplicates."
            )
        object.__setattr__(self, "params", jax.tree_util.tree_map_with_path(_as_float32, self.params))
        size = trees.leading_size(self.params, "the bank")
        if size != steps.size:
            raise ValueError(f"the bank has {size} checkpoints but {steps.size} steps; give one step each.")
        for name in ("config", "metrics"):
            checks.instance(f"{name} of the bank", getattr(self, name), dict, "a dict by name")
        for name, values in self.metrics.items():
            if np.shape(values)[:1] != steps.shape:
                raise ValueError(
                    f"the metric {name!r} of the bank has shape {np.shape(values)}; give one a checkpoint."
                )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        steps = f"{self.steps[0]:,} to {self.steps[-1]:,}" if len(self) > 1 else f"{self.steps[0]:,}"
        one = self.checkpoint(0)
        rows = {"checkpoints": f"{len(self):,}", "steps": steps, "parameters": f"{trees.num_params(one):,}"}
        leaves = jax.tree_util.tree_leaves_with_path(one)
        return show.table({**rows, **{trees.path_name(path): str(np.shape(leaf)) for path, leaf in leaves}})

    def __len__(self) -> int:
        return int(self.steps.size)

    def __getitem__(self, index: Any) -> CheckpointBank:
        index = np.atleast_1d(np.arange(len(self))[index])
        return CheckpointBank(
            params=trees.take(self.params, index),
            steps=self.steps[index],
            config=self.config,
            metrics={name: values[index] for name, values in self.metrics.items()},
        )

    def checkpoint(self, index: int) -> Params:
        """The parameters of one checkpoint."""
        return trees.take(self.params, index)

    def rows(self, index: np.ndarray) -> Params:
        """Some checkpoints, stacked."""
        return trees.take(self.params, index)

    def finite(self) -> np.ndarray:
        """Which checkpoints hold neither NaN nor infinity."""
        whole = np.ones(len(self), bool)
        for leaf in jax.tree.leaves(self.params):
            whole &= np.isfinite(leaf).reshape(len(self), -1).all(1)
        return whole

    def at_steps(self, steps: Any) -> CheckpointBank:
        """The bank of the given training steps.

        Raises:
            ValueError: a step that the bank does not hold.
        """
        missing = np.setdiff1d(steps, self.steps)
        if missing.size:
            raise ValueError(f"the bank has no step {missing[0]}; its nearest is {self.nearest(missing[0])}.")
        return self[np.searchsorted(self.steps, np.unique(steps))]

    def nearest(self, step: int) -> int:
        """The held step that is nearest to a given one."""
        return int(self.steps[np.argmin(np.abs(self.steps - step))])

    def load(self) -> CheckpointBank:
        """Itself, as `SavedBank.load` gives it."""
        return self

    def fingerprint(self) -> str:
        """A hash of steps and parameters."""
        digest = hashlib.sha256(self.steps.tobytes())
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()[:16]


def _whole_numbers(steps: Any) -> np.ndarray:
    array = np.asarray(steps)
    whole = array.dtype.kind in "iu" or (array.dtype.kind == "f" and bool((array == np.floor(array)).all()))
    if not whole or (array.size and not array.max() < 2**63):
        raise ValueError(f"the bank's steps must be whole numbers below 2**63, but are {array!r:.100}.")
    return array.astype(np.int64)


def _as_float32(path: Any, leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        name = trees.path_name(path)
        raise ValueError(
            f"the parameter {name or 'itself'} has type {array.dtype}; keep only floating-point parameters in the tree."
        )
    return array.astype(np.float32, copy=False)


def bank_of(params: Params, step: int = 0) -> CheckpointBank:
    """A bank of one checkpoint."""
    return CheckpointBank(params=trees.stack([params]), steps=np.array([step]))


def save_bank(bank: CheckpointBank, path: Path | str) -> None:
    """Saves a bank: one orbax checkpoint `params`, and `bank.json` with steps, config, metrics and a hash of both."""
    path = Path(path).absolute()
    save_tree(bank.params, path / "params")
    facts = {
        "fingerprint": bank.fingerprint(),
        "steps": bank.steps.tolist(),
        "config": bank.config,
        "metrics": {name: np.asarray(values).tolist() for name, values in bank.metrics.items()},
    }
    # Written last: a folder without it is not a bank.
    write_text(path / "bank.json", json.dumps(facts))


def is_bank(path: Path | str) -> bool:
    """Whether a folder holds a finished bank."""
    return (Path(path) / "bank.json").is_file()


@dataclasses.dataclass(frozen=True, slots=True)
class SavedBank:
    """A bank in its folder, of which the facts alone have been read: parameters may be gigabytes, or left elsewhere."""

    path: Path
    steps: Int[np.ndarray, " checkpoint"]
    config: dict[str, Any]
    metrics: dict[str, np.ndarray]
    digest: str | None
    """Fingerprint of what was saved; None where it was saved before there was one."""

    def fingerprint(self) -> str:
        """A hash of steps and parameters, as `CheckpointBank.fingerprint` gives it."""
        return self.load().fingerprint() if self.digest is None else self.digest

    def load(self) -> CheckpointBank:
        """The bank with its parameters.

        Raises:
            ValueError: they are missing, or not what was saved.
        """
        params = restore_tree(self.path / "params")
        bank = CheckpointBank(params=params, steps=self.steps, config=self.config, metrics=self.metrics)
        if self.digest is not None and self.digest != bank.fingerprint():
            raise ValueError(
                f"{self.path} does not hold the checkpoints that were saved there; copy it again, or train again."
            )
        return bank


def open_bank(path: Path | str) -> SavedBank:
    """Reads what a saved bank is, without its parameters.

    Raises:
        ValueError: the folder holds no bank.
    """
    path = checks.path("path", path).absolute()
    try:
        facts = read_json(path / "bank.json")
        metrics = {name: np.asarray(values) for name, values in facts["metrics"].items()}
        return SavedBank(path, _whole_numbers(facts["steps"]), facts["config"], metrics, facts.get("fingerprint"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no bank of checkpoints ({reason(error)}); make one with `llcjax train`."
        ) from error


def load_bank(path: Path | str) -> CheckpointBank:
    """Loads a saved bank.

    Raises:
        ValueError: the folder holds no bank, or one that is not what was saved.
    """
    return open_bank(path).load()


def save_tree(tree: Any, path: Path) -> None:
    """Saves one pytree of arrays as an orbax checkpoint, replacing what is there.

    Raises:
        OSError: the disk is full, or the folder read-only.
    """
    # As numpy arrays: those of jax that live in one of several processes are refused.
    arrays = ocp.args.StandardSave(jax.tree.map(np.asarray, tree))
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=_alone())
    with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as checkpointer:
        try:
            checkpointer.save(Path(path).absolute(), args=arrays, force=True)
        except ValueError as error:  # orbax's own writer has no OSError, but keeps the code in its message
            code = re.search(r"os_error_code='(\d+)'", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def _alone() -> ocp.options.MultiprocessingOptions:
    """Keeps orbax from waiting for other processes: each reads for itself, and only one writes."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )


def restore_tree(path: Path) -> Any:
    """Restores one orbax checkpoint as numpy arrays, whatever devices wrote it.

    Raises:
        ValueError: the folder holds no readable orbax checkpoint.
    """
    path = Path(path).absolute()
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
        with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as checkpointer:
            shapes = checkpointer.metadata(path).item_metadata.tree
            check_expansion("it", stored_bytes(path), sum(map(_bytes_of, jax.tree.leaves(shapes))))
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # orbax raises a different type for each way in which a folder can be broken
        raise ValueError(f"{path} is no readable orbax checkpoint ({reason(error)}).") from error


def _bytes_of(leaf: Any) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize if hasattr(leaf, "shape") else 0


def check_fits(bank: CheckpointBank, template: Params) -> None:
    """Checks that the parameters of a bank have the names and shapes of a model.

    Args:
        bank: checkpoints from somewhere.
        template: one pytree of parameters or of their shapes.

    Raises:
        ValueError: names or shapes differ; the sentence names the first.
    """
    different = trees.difference(jax.tree.map(lambda leaf: leaf[0], bank.params), template)
    if different:
        raise ValueError(f"the bank does not fit the model: they differ at {different}; check names and sizes.")


def remove_tree(path: Path) -> None:
    """Removes a folder of checkpoints if it is there."""
    shutil.rmtree(path, ignore_errors=True)
