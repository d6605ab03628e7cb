"""Looks at a zarr folder from elsewhere before zarr does: what would decode it, and how large it says that it is.

Format 2 can name a codec that unpickles; any format can claim more numbers than fit, and have them filled in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llcjax.untrusted import check_expansion, read_json, stored_bytes

CODECS = frozenset(
    (
        *("bytes", "endian", "transpose", "sharding_indexed", "delta", "shuffle", "vlen-utf8", "vlen-bytes"),
        *("zstd", "gzip", "zlib", "bz2", "lzma", "blosc", "lz4", "crc32", "crc32c", "adler32", "fletcher32"),
    )
)
"""What may decode a chunk; none of them runs what it reads."""
MOST_CHUNK = 2**31 - 1
"""Bytes of a chunk that zstd takes."""


def check_zarr(path: Path, lazy: str | None = None) -> None:
    """Refuses a zarr array, or a group whose arrays are right below it, that would run code or fill the memory.

    Args:
        path: the folder.
        lazy: dimension of arrays that are read chunk by chunk and may be large, but for their chunks.

    Raises:
        OSError: a file cannot be read.
        ValueError: a codec that is not known, or sizes that the files do not bear out; the sentence names the array.
    """
    for folder in [path, *sorted(child for child in path.iterdir() if child.is_dir())]:
        for name in ("zarr.json", ".zarray"):
            if (folder / name).is_file():
                facts = read_json(folder / name)
                if "shape" in facts:
                    _check_array(folder, facts, lazy)


def _check_array(folder: Path, facts: dict[str, Any], lazy: str | None) -> None:
    unknown = sorted(set(_codecs(facts)) - CODECS)
    if unknown:
        raise ValueError(f"the array {folder.name!r} is packed with {unknown[0]!r}, which is not read")
    grid = facts.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape", facts.get("chunks"))
    shape, chunk = _sizes(folder, facts["shape"]), _sizes(folder, grid)
    size = _itemsize(facts)
    if math.prod(chunk) * size > MOST_CHUNK and math.prod(shape) > 0:
        raise ValueError(f"the array {folder.name!r} says that a chunk has {math.prod(chunk) * size:,} bytes")
    if lazy is None or lazy not in (facts.get("dimension_names") or ()):
        unpacked = math.prod(shape) * size
        check_expansion(f"the array {folder.name!r}", stored_bytes(folder), unpacked)


def _sizes(folder: Path, sizes: Any) -> list[int]:
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"the array {folder.name!r} has the sizes {sizes!r:.100}")
    return sizes


def _itemsize(facts: dict[str, Any]) -> int:
    """Bytes of a number; 16 for types that numpy does not know, such as text."""
    try:
        return max(np.dtype(facts.get("data_type", facts.get("dtype"))).itemsize, 1)
    except TypeError:
        return 16


def _codecs(facts: dict[str, Any]) -> Iterator[str]:
    """Names of all codecs of an array, those inside of shards too."""
    listed = [facts.get("compressor"), *(facts.get("filters") or []), *(facts.get("codecs") or [])]
    for codec in filter(None, listed):
        if not isinstance(codec, dict):
            yield str(codec)
            continue
        yield str(codec.get("name", codec.get("id")))
        inner = codec.get("configuration") or {}
        for name in ("codecs", "index_codecs"):
            yield from _codecs({"codecs": inner.get(name)})
