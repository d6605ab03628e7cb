"""The first format of llama2.c: a header and float32 arrays in a fixed order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llcjax.models.decoder import DecoderConfig, Pretrained
from llcjax.types import Params


class _Header(NamedTuple):
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int


def _header(path: Path) -> _Header:
    with path.open("rb") as file:
        start = file.read(28)
    raw = np.frombuffer(start[: len(start) // 4 * 4], "<i4")
    if raw.size < 7 or np.any(np.delete(raw, 5) <= 0) or raw[5] == 0 or raw[0] % raw[3]:
        raise ValueError(f"{path} is no llama2.c file of the first format: its header is {raw.tolist()}.")
    return _Header(*raw.tolist())


def _config(h: _Header, path: Path) -> DecoderConfig:
    if h.heads % h.kv_heads:
        raise ValueError(f"{path} has {h.heads} heads and {h.kv_heads} of keys and values, which do not divide them.")
    return DecoderConfig(
        num_layers=h.layers,
        num_heads=h.heads,
        num_key_value_heads=h.kv_heads,
        model_width=h.dim,
        head_width=h.dim // h.heads,
        mlp_width=h.hidden,
        vocabulary=abs(h.vocabulary),
        num_tokens=h.length,
        norm="rms",
        norm_epsilon=1e-5,
        activation="silu",
        gated=True,
        rotary_width=h.dim // h.heads,
        rotary_interleaved=True,
        tied=h.vocabulary > 0,  # a negative number says that the classifier has weights of its own
    )


def read_config(path: Path) -> DecoderConfig:
    """The configuration in the header of a file."""
    return _config(_header(path), path)


def read(path: Path | str) -> Pretrained:
    """Reads a llama2.c file: seven int32, then float32 arrays in a fixed order (github.com/karpathy/llama2.c).

    Raises:
        ValueError: the header is none, or the file is shorter than it says; the sentence names the tensor.
    """
    path = Path(path)
    h = _header(path)
    config = _config(h, path)
    size = path.stat().st_size - 28
    if size <= 0 or size % 4:
        raise ValueError(f"{path} has {size} bytes behind its header, which are no float32 numbers; copy it again.")
    values = np.memmap(path, "<f4", "r", offset=28)
    place = 0

    def take(name: str, *shape: int) -> np.ndarray:
        nonlocal place
        start, place = place, place + math.prod(shape)
        if place > values.size:
            raise ValueError(f"{path} ends before the tensor {name!r} of shape {shape}: {values.size} numbers.")
        return np.array(values[start:place]).reshape(shape)

    d, m, narrow = h.dim, h.hidden, h.kv_heads * config.head_width
    embed = take("tok_emb", config.vocabulary, d)
    norm_1 = take("rms_att", h.layers, d)
    shapes = {"query": (d, d), "key": (narrow, d), "value": (narrow, d), "output": (d, d)}
    attention = {name: take(name, h.layers, *shape) for name, shape in shapes.items()}
    norm_2 = take("rms_ffn", h.layers, d)
    mlp = {
        name: take(file, h.layers, *shape)
        for name, file, shape in (("gate", "w1", (m, d)), ("down", "w2", (d, m)), ("up", "w3", (m, d)))
    }
    final = take("rms_final", d)

    def block(layer: int) -> Params:
        return {
            "norm_1": {"scale": norm_1[layer]},
            "norm_2": {"scale": norm_2[layer]},
            "attention": {name: {"kernel": kernels[layer].T} for name, kernels in attention.items()},
            "mlp": {name: {"kernel": kernels[layer].T} for name, kernels in mlp.items()},
        }

    params = {
        "embed": embed,
        "blocks": {str(layer): block(layer) for layer in range(h.layers)},
        "final_norm": {"scale": final},
    }
    if not config.tied:
        take("rope tables", 2, h.length, config.head_width // 2)
        params["unembed"] = {"kernel": take("classifier", config.vocabulary, d).T}
    return Pretrained(config, params)
