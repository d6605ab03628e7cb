"""The vocabulary and the greedy continuation of a llama2.c model, in plain numpy and jax."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BOS = 1


class Piece(NamedTuple):
    """One token of a sentencepiece vocabulary."""

    text: bytes
    score: float


def read_vocabulary(path: Path | str, size: int) -> list[Piece]:
    """Reads llama2.c's tokenizer file: int32 longest piece, then (float32 score, int32 length, bytes) a token."""
    raw, place, pieces = Path(path).read_bytes(), 4, []
    for _ in range(size):
        score, length = struct.unpack_from("<fi", raw, place)
        pieces.append(Piece(raw[place + 8 : place + 8 + length], score))
        place += 8 + length
    return pieces


def encode(pieces: Sequence[Piece], text: str) -> list[int]:
    """Token ids of a text, joining the neighbours of highest score until none is left (sentencepiece BPE)."""
    ids = {piece.text: index for index, piece in reversed(list(enumerate(pieces)))}
    tokens = [BOS]
    for letter in " " + text:
        raw = letter.encode()
        tokens += [ids[raw]] if raw in ids else [byte + 3 for byte in raw]
    while True:
        joined = [pieces[a].text + pieces[b].text for a, b in itertools.pairwise(tokens)]
        known = [(pieces[ids[raw]].score, -place) for place, raw in enumerate(joined) if raw in ids]
        if not known:
            return tokens
        place = -max(known)[1]
        tokens[place : place + 2] = [ids[joined[place]]]


def decode(pieces: Sequence[Piece], tokens: Sequence[int]) -> str:
    """The text of token ids after the first."""
    raw = b"".join(
        bytes([int(pieces[t].text[3:5], 16)]) if pieces[t].text.startswith(b"<0x") else pieces[t].text
        for t in tokens
        if t > 2
    )
    return raw.decode(errors="replace").removeprefix(" ")


def greedy(apply: Any, params: Any, pieces: Sequence[Piece], prompt: str, length: int) -> tuple[str, np.ndarray]:
    """The most likely continuation, token by token: text and token ids of `length`."""
    start = encode(pieces, prompt)
    tokens = jnp.zeros((1, length), jnp.int32).at[0, : len(start)].set(jnp.array(start))

    def step(tokens: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        return tokens.at[0, place].set(jnp.argmax(apply(params, tokens)[0, place - 1]).astype(jnp.int32)), None

    tokens = np.asarray(jax.jit(lambda t: jax.lax.scan(step, t, jnp.arange(len(start), length))[0])(tokens)[0])
    return decode(pieces, tokens), tokens


def sampled(apply: Any, params: Any, key: jax.Array, count: int, length: int) -> np.ndarray:
    """Texts that the model writes itself, at temperature 1, each from its first token: ids `(count, length)`."""

    def step(tokens: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        logits = apply(params, tokens)[:, place - 1]
        drawn = jax.random.categorical(jax.random.fold_in(key, place), logits).astype(jnp.int32)
        return tokens.at[:, place].set(drawn), None

    start = jnp.zeros((count, length), jnp.int32).at[:, 0].set(BOS)
    return np.asarray(jax.jit(lambda t: jax.lax.scan(step, t, jnp.arange(1, length))[0])(start))
