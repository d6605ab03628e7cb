"""Arrays of token ids on disk."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import zarr
from jaxtyping import Int

from llcjax import checks, untrusted
from llcjax.zarr_metadata import check_zarr


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
    path = checks.path("tokens", path)
    try:
        tokens = _read(path)
    except Exception as error:  # numpy, lzma and zarr raise many types on broken files
        raise ValueError(
            f"tokens={path} cannot be read ({untrusted.reason(error)}); give .npy, .u16, .u16.xz or a zarr array."
        ) from None
    if tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer) or tokens.min() < 0:
        raise ValueError(
            f"tokens={path} holds {tokens.size} values of type {tokens.dtype}; give token ids of 0 or more."
        )
    return tokens


def token_rows(
    tokens: Int[np.ndarray, ...], length: int, most: int | None = None, start: int | None = None
) -> Int[np.ndarray, "row token"]:
    """Sequences of one length: rows as they are where there are rows, cut off at `length`; else consecutive cuts.

    Args:
        tokens: one axis, or rows of at least `length`.
        length: tokens a sequence.
        most: sequences to keep, from the start; None keeps all.
        start: token that begins each sequence, one of its `length`, put before each cut; None where none does.

    Raises:
        ValueError: not one sequence of that length, or rows that do not begin with `start`.

    Example:
        >>> token_rows(np.arange(1, 8), 4, start=0).tolist()
        [[0, 1, 2, 3], [0, 4, 5, 6]]
    """
    checks.count("length", length, 1 if start is None else 2)
    if most is not None:
        checks.count("most", most, 1)
    tokens = np.asarray(tokens)
    if tokens.dtype.kind not in "iu" or (tokens.size and not -1 < tokens.min() <= tokens.max() <= checks.MOST):
        raise ValueError(
            f"tokens of type {tokens.dtype} are no token ids; give whole numbers from 0 to {checks.MOST:,}."
        )
    if start is not None:
        checks.count("start", start, 0)
    if tokens.ndim == 1:
        width = length if start is None else length - 1
        tokens = tokens[: tokens.size // width * width].reshape(-1, width)
        if start is not None:
            tokens = np.pad(tokens.astype(np.int32), ((0, 0), (1, 0)), constant_values=start)
    if tokens.ndim != 2 or tokens.shape[1] < length or len(tokens) == 0:
        raise ValueError(f"length={length} does not fit tokens of shape {tokens.shape}; choose a smaller one.")
    if start is not None and (tokens[:, 0] != start).any():
        raise ValueError(f"start={start}, but there are rows that begin with another token; leave it out.")
    return np.ascontiguousarray(tokens[:most, :length], np.int32)


def _read(path: Path) -> np.ndarray:
    if path.is_dir():
        check_zarr(path)
        return np.asarray(zarr.open_array(path, mode="r")[...])
    if path.suffix == ".npy":
        # Mapped first, which refuses a file that is shorter than it says.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    if path.name.endswith(".u16.xz"):
        return np.frombuffer(_unpacked(path), "<u2")
    if path.suffix == ".u16":
        return np.frombuffer(path.read_bytes(), "<u2")
    raise ValueError(f"unknown ending {path.suffix!r}")


def _unpacked(path: Path) -> bytes:
    """What an .xz file holds, no more of it than is trusted."""
    stored = path.stat().st_size
    with lzma.open(path) as file:
        found = file.read(max(untrusted.FREE, untrusted.RATIO * stored) + 1)
    untrusted.check_expansion("it", stored, len(found))
    return found
