"""Reads the many small chunks of a store on the thread that asks for them.

zarr hands every chunk to two other threads, which costs five times what reading and decoding 8 KiB does, and all
readers of a process wait for one event loop. Chunks that are not laid out as this package writes them are left to zarr.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import zstd
from xarray.backends import BackendArray
from xarray.core.indexing import ExplicitIndexer, IndexingSupport, explicit_indexing_adapter


class ChunkedArray(BackendArray):
    """An array in a folder of little-endian chunks, compressed with zstd; a missing one holds the fill value."""

    def __init__(
        self, folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype, fill: Any
    ) -> None:
        """Takes what the metadata says; nothing is read.

        Args:
            folder: of the chunks, named as in zarr 3 (`c/0/1/...`).
            shape: of the array.
            chunks: shape of each chunk.
            dtype: of the values.
            fill: value of a chunk that was never written.
        """
        self.shape, self.chunks, self.dtype, self.fill = shape, chunks, dtype, fill
        self._prefix = f"{folder}/c"

    def __getitem__(self, key: ExplicitIndexer) -> np.ndarray:
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """The values at one number, slice or array of numbers a dimension."""
        wanted = [np.atleast_1d(np.arange(size)[part]) for size, part in zip(self.shape, key, strict=True)]
        found = np.empty([len(index) for index in wanted], self.dtype)
        pieces = [list(_pieces(index, size)) for index, size in zip(wanted, self.chunks, strict=True)]
        for parts in itertools.product(*pieces):
            number, here, there = zip(*parts, strict=True)
            found[_outer(here)] = self._chunk(number)[_outer(there)]
        dropped = tuple(axis for axis, part in enumerate(key) if isinstance(part, (int, np.integer)))
        return found.squeeze(dropped)

    def _chunk(self, number: tuple[int, ...]) -> np.ndarray:
        """One chunk.

        Raises:
            ValueError: the file is torn; the sentence names it.
        """
        path = "/".join([self._prefix, *map(str, number)])
        # Decoded into the room that the metadata asks for, however much the file claims to hold; less is not written.
        values = np.full(self.chunks, self.fill, self.dtype)
        try:
            with open(path, "rb", buffering=0) as file:
                zstd.decompress(file.read(), values)
        except FileNotFoundError:
            pass
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} is torn ({error}); run the sweep again with the same config.") from error
        return values


def _pieces(index: np.ndarray, size: int) -> Any:
    """(chunk, places in the result, places in the chunk) along one dimension."""
    chunk = index // size
    for number in np.unique(chunk):
        here = np.flatnonzero(chunk == number)
        yield int(number), _as_slice(here), _as_slice(index[here] - number * size)


def _as_slice(places: np.ndarray) -> slice | np.ndarray:
    """A run of places as a slice, which reads much faster."""
    whole = len(places) == places[-1] - places[0] + 1 and bool((np.diff(places) == 1).all())
    return slice(int(places[0]), int(places[-1]) + 1) if whole else places


def _outer(places: tuple[slice | np.ndarray, ...]) -> tuple[Any, ...]:
    """An index that takes the places of every dimension independently."""
    if all(isinstance(place, slice) for place in places):
        return places
    return np.ix_(*(np.arange(one.start, one.stop) if isinstance(one, slice) else one for one in places))
