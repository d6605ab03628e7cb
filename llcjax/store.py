"""The zarr store of a sweep: facts of every run, written chunk by chunk, opened as an `xarray.Dataset`.

A zarr chunk is one (checkpoint, setting), all its chains, one block of draws. The number of finished draws of a
group is written after its draws, so what lies beyond it is redone and never trusted. Every chunk carries a checksum
and is written even where it holds the fill value alone, so that `damage` finds one that is torn or lost.
"""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np
import xarray as xr
import zarr
from xarray.core.indexing import LazilyIndexedArray
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from llcjax import checks
from llcjax.chunks import ChunkedArray
from llcjax.store_facts import check_facts
from llcjax.untrusted import reason
from llcjax.zarr_metadata import check_zarr

FORMAT = 1
"""Version of the layout."""

_CHUNKS_AT_ONCE = 64
_CHUNK_NAMES = {"name": "default", "configuration": {"separator": "/"}}
_DIMS = {
    "loss": ("checkpoint", "setting", "chain", "draw"),
    "num_draws_done": ("checkpoint", "setting"),
    "first_nonfinite_step": ("checkpoint", "setting", "chain"),
    **{name: (name,) for name in ("checkpoint", "setting", "chain", "draw")},
    **dict.fromkeys(("n_beta", "localization", "step_size"), ("setting",)),
}
"""What every store holds."""
_CHECKED = ZstdCodec(level=0, checksum=True)
_WRITE_ALL = {"array.write_empty_chunks": True}
LONG_NAMES = {
    "loss": "L(w_t) on the batch of the step",
    "baseline_loss": "L(w*) on the same batch",
    "loss_position": "L(w_t) of each position",
    "baseline_loss_position": "L(w*) of each position on the same batch",
    "distance": "Euclidean distance from the checkpoint",
    "gradient_norm": "norm of the gradient of the mean loss on the batch, on the sampled entries",
    "acceptance": "probability that the move from w_t is accepted, on its batch",
    "acceptance_full": "probability that the move from w_t is accepted, on all examples",
    "full_loss": "L(w_t) on all examples",
    "first_nonfinite_step": "first sampler step with a loss that is not finite, -1 for none",
    "moment_count": "draws of the block",
    "moment_mean": "mean of the observables over the block",
    "moment_scatter": "sum of products of their deviations from the mean of the block",
    "num_draws_done": "finished draws of each chain",
    "init_loss": "L(w*) on all examples",
    "prior_loss": "mean loss of draws from the localisation prior",
    "init_loss_stderr": "standard error of init_loss",
    "init_loss_position": "L(w*) of each position on all examples",
}


class SavedState(NamedTuple):
    """The state of a launch in flight."""

    groups: np.ndarray
    draws_done: int
    leaves: list[np.ndarray]
    """Leaves of the chains' states, each with the leading axis `run`."""


class SweepStore:
    """Writes a sweep, to a folder or to memory; only the sweep itself uses it."""

    def __init__(self, group: zarr.Group, path: Path | None) -> None:
        self.group = group
        self.path = path
        self._arrays: dict[str, zarr.Array[Any]] = {}

    @classmethod
    def create(
        cls,
        path: Path | None,
        *,
        coords: dict[str, tuple[tuple[str, ...], np.ndarray]],
        attrs: dict[str, Any],
    ) -> SweepStore:
        """Drafts an empty store with its coordinates and attributes; `publish` makes it the one that counts.

        Args:
            path: folder of the store; None keeps it in memory.
            coords: name -> (dimensions, values).
            attrs: facts as JSON values.
        """
        target = MemoryStore() if path is None else str(_draft(path))
        beside = " ".join(name for name, (dims, _) in coords.items() if dims != (name,))
        # xarray takes the names under `coordinates` as coordinates that index no dimension.
        facts = {"llcjax_format": FORMAT, "checksums": True, "coordinates": beside, **attrs}
        store = cls(zarr.create_group(target, attributes=facts, overwrite=True), path)
        for name, (dims, values) in coords.items():
            store.put(name, dims, values)
        return store

    def publish(self) -> SweepStore:
        """Moves a complete draft to its place at once, so that a crash while making it leaves nothing behind."""
        if self.path is None:
            return self
        self.drop_states()
        _draft(self.path).replace(self.path)
        return SweepStore.reopen(self.path)

    @classmethod
    def reopen(cls, path: Path) -> SweepStore:
        """Opens a store to go on writing.

        Raises:
            ValueError: the folder holds no sweep, or a broken one.
        """
        return cls(_open_group(path, "r+"), path)

    def put(self, name: str, dims: tuple[str, ...], values: np.ndarray) -> None:
        """Writes a whole small array."""
        values = np.asarray(values)
        # What a crash leaves unwritten reads as NaN, not as 0.
        fill = float("nan") if np.issubdtype(values.dtype, np.floating) else None
        self._arrays.pop(name, None)
        with zarr.config.set(_WRITE_ALL):
            array = self.group.create_array(
                name,
                data=values,
                chunks=tuple(max(size, 1) for size in values.shape),
                compressors=_CHECKED,
                dimension_names=dims,
                overwrite=True,
                fill_value=fill,
            )
        if name in LONG_NAMES:
            array.attrs["long_name"] = LONG_NAMES[name]

    def allocate(
        self,
        name: str,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: str,
        fill: Any,
    ) -> None:
        """Makes room for an array that is written in pieces."""
        array = self.group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            compressors=_CHECKED,
            dtype=dtype,
            fill_value=fill,
            dimension_names=dims,
        )
        array.attrs["long_name"] = LONG_NAMES.get(name, name)

    def holds(self, name: str) -> bool:
        """Whether a whole small array was written to its end, and can be read."""
        try:
            self.read(name)
            array = self.array(name)
            return array.nchunks_initialized == array.nchunks
        except Exception:  # zarr raises many types on missing and on broken files
            return False

    def write(self, name: str, index: tuple[Any, ...], values: np.ndarray) -> None:
        """Writes a piece of an allocated array."""
        self.array(name)[index] = values

    def read(self, name: str) -> np.ndarray:
        """Reads a whole array."""
        return np.asarray(self.array(name)[...])

    def names_of_runs(self) -> list[str]:
        """Names of the arrays with facts of each chain."""
        return [name for name, array in self.group.arrays() if "chain" in _dims(array)[2:]]

    def array(self, name: str) -> zarr.Array[Any]:
        """The array, looked up once: a lookup reads its metadata, and every chunk writes to several."""
        if name not in self._arrays:
            with zarr.config.set(_WRITE_ALL):
                found = self.group[name]
            assert isinstance(found, zarr.Array)
            self._arrays[name] = found
        return self._arrays[name]

    def open(self) -> xr.Dataset:
        """The store as a dataset; loaded where it lives in memory, lazy where it lies on disk."""
        return _dataset(self.group)

    @property
    def resume_file(self) -> Path | None:
        """Where this process keeps the state of its launch in flight: beside the store, which holds only zarr."""
        index = jax.process_index()
        return None if self.path is None else self.path.with_name(f"{self.path.name}.resume{index or ''}.npz")

    @property
    def may_be_shared(self) -> bool:
        """Whether several processes may write at once; earlier versions counted the draws of all in one file."""
        return self.array("num_draws_done").chunks == (1, 1)

    @property
    def wall_seconds(self) -> float:
        """Time that the sweep has taken so far."""
        return float(cast(float, self.group.attrs["wall_seconds"]))

    def save_state(self, groups: np.ndarray, draws_done: int, leaves: list[np.ndarray]) -> None:
        """Keeps the state of a launch in flight, atomically."""
        if self.resume_file is None:
            return
        draft = self.resume_file.with_suffix(".tmp")
        try:
            with draft.open("wb") as file:
                named: dict[str, Any] = {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}
                owner = str(self.group.attrs["fingerprint"])
                np.savez(file, owner=owner, groups=groups, draws_done=draws_done, **named)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.resume_file)
        except OSError:
            draft.unlink(missing_ok=True)  # it would take the room that is missing
            raise

    def load_state(self) -> SavedState | None:
        """The state of the launch in flight, or None if there is none that can be read."""
        if self.resume_file is None or not self.resume_file.exists():
            return None
        try:
            with np.load(self.resume_file, allow_pickle=False) as saved:
                if str(saved["owner"]) != self.group.attrs["fingerprint"]:
                    return None  # left behind by another sweep
                leaves = [saved[f"leaf_{i}"] for i in range(len(saved.files) - 3)]
                return SavedState(saved["groups"], int(saved["draws_done"]), leaves)
        except Exception:  # torn by a crash: the launch is redone
            return None

    def drop_state(self) -> None:
        """Forgets the state of a launch that is complete."""
        if self.resume_file is not None:
            self.resume_file.unlink(missing_ok=True)

    def drop_states(self) -> None:
        """Forgets the states of all processes, also of more than there are now."""
        if self.path is not None:
            for file in self.path.parent.glob(f"{glob.escape(self.path.name)}.resume*.npz"):
                file.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    return path.with_name(path.name + ".draft")


def is_sweep(path: Path | str) -> bool:
    """Whether a folder looks like a store of a sweep."""
    return (Path(path) / "zarr.json").is_file()


def is_complete(path: Path | str) -> bool:
    """Whether a folder holds a sweep of which nothing is missing."""
    if not is_sweep(path):
        return False
    store = SweepStore(_open_group(Path(path), "r"), Path(path))
    try:
        return bool((store.read("num_draws_done") >= store.array("loss").shape[3]).all())
    except Exception:  # a torn count, which the next sweep redoes
        return False


def open_sweep(path: Path | str) -> xr.Dataset:
    """Opens the store of a sweep as a lazy dataset.

    Args:
        path: the folder that `llcjax sweep` wrote.

    Returns:
        Facts with dimensions `(checkpoint, setting, chain, draw[, position])`; the README lists the variables.
        `checkpoint` holds training steps and `draw` sampler steps, burn-in included.

    Raises:
        ValueError: the folder holds no sweep, or a corrupt one.
    """
    path = checks.path("path", path)
    group = _open_group(path, "r")
    try:
        return _dataset(group)
    except Exception as error:  # zarr and xarray raise many types where sizes or coordinates do not fit
        raise ValueError(f"{path} is a corrupt store ({reason(error)}); run the same sweep again.") from error


def _open_group(path: Path, mode: Literal["r", "r+"]) -> zarr.Group:
    try:
        check_zarr(path, lazy="chain")
        group = zarr.open_group(str(path), mode=mode, zarr_format=3, use_consolidated=False)
        version = group.attrs["llcjax_format"]
        arrays = dict(group.arrays())
        broken = [name for name, array in arrays.items() if len(_dims(array)) != array.ndim]
        broken += [name for name, dims in _DIMS.items() if name in arrays and _dims(arrays[name]) != dims]
    except Exception as error:  # zarr raises many types on missing and on broken metadata
        raise ValueError(
            f"{path} is no store of a sweep, or a corrupt one ({reason(error)}); run `llcjax sweep`."
        ) from error
    if version != FORMAT or broken:
        raise ValueError(f"{path} has store format {version} {broken}, but this llcjax reads {FORMAT}; sweep again.")
    for needed in _DIMS:
        if needed not in group:
            raise ValueError(f"{path} is a corrupt store: it lacks the array {needed!r}; sweep again.")
    check_facts(dict(group.attrs), path)
    return group


def _dims(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    return getattr(array.metadata, "dimension_names", None) or ()


def _dataset(group: zarr.Group) -> xr.Dataset:
    # Decoding one chunk at a time takes twice as long: a visit to a thread costs more than a small chunk.
    with zarr.config.set({"codec_pipeline.batch_size": _CHUNKS_AT_ONCE}):
        dataset = xr.open_zarr(group.store, consolidated=False, zarr_format=3, chunks=None)
    if isinstance(group.store, LocalStore):
        plain = {name: array for name, array in group.arrays() if name in dataset.data_vars and _is_plain(array)}
        direct = {name: _direct(array, group.store.root / name) for name, array in plain.items()}
        dataset = dataset.assign({name: (dataset[name].dims, one, dataset[name].attrs) for name, one in direct.items()})
    if "component" in dataset.coords:  # numbers in the store, as zarr 3 has no stable format for text
        names = np.asarray(dataset.attrs["components"])
        dataset = dataset.assign_coords(component=("setting", names[dataset["component"].values]))
    for coordinate in dataset.coords.values():  # small, and torn ones are to be found here
        coordinate.variable.load()
    return dataset


def _is_plain(array: zarr.Array[Any]) -> bool:
    """Whether the chunks of an array are laid out as `SweepStore` does."""
    facts = cast("dict[str, Any]", array.metadata.to_dict())
    codecs = [(codec["name"], codec.get("configuration", {}).get("endian", "little")) for codec in facts["codecs"]]
    return codecs == [("bytes", "little"), ("zstd", "little")] and facts["chunk_key_encoding"] == _CHUNK_NAMES


def _direct(array: zarr.Array[Any], folder: Path) -> LazilyIndexedArray:
    return LazilyIndexedArray(ChunkedArray(folder, array.shape, array.chunks, array.dtype, array.fill_value))


def save_dataset(dataset: xr.Dataset, path: Path | str) -> None:
    """Saves a small dataset (metrics) as zarr, replacing what is there once all of it is written."""
    path = Path(path)
    checked: dict[Any, Any] = {name: {"compressors": (_CHECKED,)} for name in dataset.variables}
    dataset.to_zarr(str(_draft(path)), mode="w", zarr_format=3, consolidated=False, encoding=checked)
    shutil.rmtree(path, ignore_errors=True)
    _draft(path).replace(path)


def load_dataset(path: Path | str) -> xr.Dataset | None:
    """Loads a small dataset, or returns None where there is none that can be read."""
    try:
        return xr.open_zarr(str(path), consolidated=False, zarr_format=3, chunks=None).load()
    except Exception:  # zarr raises many types on missing and on broken metadata: it is measured again
        return None
