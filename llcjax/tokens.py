"""Arrays of token ids on disk."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import zarr
import zarr.errors
from jaxtyping import Int


def read_tokens(path: Path | str) -> Int[np.ndarray, ...]:
    """Reads token ids.

    Args:
        path: `.npy`; `.u16` or `.u16.xz` (little-endian uint16 without a header); or a zarr array (a folder).

    Returns:
        Whole numbers of the type in the file: one axis for raw files, any for the others.

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
    except (OSError, EOFError, ValueError, lzma.LZMAError, zarr.errors.BaseZarrError) as error:
        raise ValueError(f"tokens={path} cannot be read ({error}); give .npy, .u16, .u16.xz or a zarr array.") from None
    if tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer) or tokens.min() < 0:
        raise ValueError(
            f"tokens={path} holds {tokens.size} values of type {tokens.dtype}; give token ids of 0 or more."
        )
    return tokens


def token_rows(tokens: Int[np.ndarray, ...], length: int, most: int | None = None) -> Int[np.ndarray, "row token"]:
    """Sequences of one length: rows as they are where there are rows, cut off at `length`; else consecutive cuts.

    Args:
        tokens: one axis, or rows of at least `length`.
        length: tokens a sequence.
        most: sequences to keep, from the start; None keeps all.

    Raises:
        ValueError: not one sequence of that length.
    """
    if tokens.ndim == 1:
        tokens = tokens[: tokens.size // length * length].reshape(-1, length)
    if tokens.ndim != 2 or tokens.shape[1] < length or len(tokens) == 0:
        raise ValueError(f"length={length} does not fit tokens of shape {tokens.shape}; choose a smaller one.")
    return np.ascontiguousarray(tokens[:most, :length], np.int32)


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
