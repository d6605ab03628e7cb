"""Normal numbers a second by random number generator, and whether a chain's numbers depend on the chains beside it.

A result must not depend on how runs were batched, so only generators whose vmapped numbers equal those of a loop over
keys can be used; jax says of `rbg` and `unsafe_rbg` that they draw a whole batch from the first key.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.harness import Measured, Options, Row, run, timed

IMPLEMENTATIONS = ("threefry2x32", "threefry4x32", "philox2x32", "philox4x32", "rbg", "unsafe_rbg")
KEYS = 16


def rows(length: int, repeats: int) -> Iterator[Row]:
    """One row a generator that this jax has."""
    for name in IMPLEMENTATIONS:
        try:
            keys = jax.random.split(jax.random.key(0, impl=name), KEYS)
        except ValueError:
            continue  # not in this release of jax
        draw = jax.jit(jax.vmap(lambda key: jax.random.normal(key, (length,))))
        alone = jax.jit(lambda key: jax.random.normal(key, (length,)))
        time = timed(lambda draw=draw, keys=keys: draw(keys), repeats=repeats)
        batched, one = np.asarray(draw(keys))[1], np.asarray(alone(keys[1]))
        yield {
            "generator": name,
            "million normals a second": KEYS * length / time.median / 1e6,
            "same alone and in a batch": "yes" if np.array_equal(batched, one) else "no",
            "llcjax uses it": "yes" if name == "threefry2x32" else None,
        }


def measure(options: Options) -> Measured:
    """All generators."""
    length = 1000 if options.toy else 200_000
    return Measured(
        title="Random number generators",
        rows=list(rows(length, 3 if options.toy else 7)),
        settings={"keys": KEYS, "normals a key": length},
    )


if __name__ == "__main__":
    run("prng", measure)
