"""Files of token ids."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
from jaxtyping import Int


def read_tokens(path: Path | str) -> Int[np.ndarray, ...]:
    """Reads token ids from a `.npy` file, or from raw little-endian uint16 in `.u16` or `.u16.xz`.

    Returns:
        Token ids as they are in the file: one axis for raw files, any for `.npy`.

    Raises:
        ValueError: another kind of file, an unreadable one, or numbers that are no token ids.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            tokens = np.load(path, allow_pickle=False)
        elif path.suffix == ".u16":
            tokens = np.fromfile(path, "<u2")
        elif path.name.endswith(".u16.xz"):
            with lzma.open(path) as file:
                tokens = np.frombuffer(file.read(), "<u2")
        else:
            raise ValueError(f"tokens={path} is none of .npy, .u16 and .u16.xz; save the token ids with numpy.save.")
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"tokens={path} cannot be read ({error}).") from error
    if not np.issubdtype(tokens.dtype, np.integer) or tokens.size == 0 or tokens.min() < 0:
        raise ValueError(f"tokens={path} holds {tokens.dtype} of shape {tokens.shape}; give token ids, 0 or larger.")
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
