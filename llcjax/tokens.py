"""Arrays of token ids on disk."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import zarr
import zarr.errors


def read_tokens(path: Path | str) -> np.ndarray:
    """Reads a stream of token ids.

    Args:
        path: `.npy`; `.u16` or `.u16.xz` (little-endian uint16 without a header); or a zarr array (a folder).

    Returns:
        One-dimensional whole numbers, of the type in the file; arrays of rows are laid end to end.

    Raises:
        ValueError: no such file, another format, or no token ids in it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "corpus.npy"
        >>> np.save(path, np.array([3, 1, 2]))
        >>> read_tokens(path).tolist()
        [3, 1, 2]
    """
    path = Path(path)
    try:
        tokens = _read(path)
    except (OSError, ValueError, lzma.LZMAError, zarr.errors.BaseZarrError) as error:
        raise ValueError(f"tokens={path} cannot be read ({error}); give .npy, .u16, .u16.xz or a zarr array.") from None
    if tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer) or tokens.min() < 0:
        raise ValueError(
            f"tokens={path} holds {tokens.size} values of type {tokens.dtype}; give token ids of 0 or more."
        )
    return tokens.reshape(-1)


def _read(path: Path) -> np.ndarray:
    if path.is_dir():
        found = zarr.open(path, mode="r")
        if not isinstance(found, zarr.Array):
            raise ValueError("a group, not an array")
        return np.asarray(found[...])
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.name.endswith(".u16.xz"):
        return np.frombuffer(lzma.decompress(path.read_bytes()), "<u2")
    if path.suffix == ".u16":
        return np.frombuffer(path.read_bytes(), "<u2")
    raise ValueError(f"unknown ending {path.suffix!r}")
