"""Where the batches of a chain come from: arrays with a leading example axis, or a function `(key) -> batch`.

Indices are drawn i.i.d. with replacement at every step. Shuffled epochs bias the recorded loss, because w_t
depends on the examples that were already seen in this epoch and not on those that follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from llcjax import trees
from llcjax.posterior import ExampleLosses, Loss, evaluate, example_losses
from llcjax.types import Batch, LossFn, Params, PRNGKey


@dataclasses.dataclass(frozen=True, slots=True)
class DataSource:
    """Data as a sweep uses them: the arrays are arguments of the compiled program, the rest is static."""

    arrays: Any
    """Pytree of arrays with a leading example axis; `()` where batches come from a function or there are none."""
    draw: Callable[[PRNGKey], Batch] | None
    """`(key) -> batch`, or None for arrays."""
    num_examples: int | None
    """Number of examples n; None for a function and for a loss without data."""

    @property
    def is_function(self) -> bool:
        """Whether batches come from a function."""
        return self.draw is not None


def data_source(data: Any) -> DataSource:
    """Wraps a pytree of arrays, a function `(key) -> batch`, or None (a loss of the parameters alone).

    Raises:
        ValueError: the arrays share no leading axis, are empty or hold no numbers.
    """
    if data is None:
        return DataSource((), None, None)
    if callable(data):
        return DataSource((), data, None)
    arrays = jax.tree_util.tree_map_with_path(_on_device, data)
    size = trees.leading_size(arrays, "data")
    if size == 0:
        raise ValueError("data has 0 examples; give at least one.")
    return DataSource(arrays, None, size)


def _on_device(path: Any, leaf: Any) -> Any:
    """An array of numbers that a device holds as they are: jax would wrap large whole numbers without a word.

    Raises:
        ValueError: something else; the sentence names the place in the data.
    """
    if isinstance(leaf, jax.Array):
        return leaf
    name = f"data at {trees.path_name(path)!r}" if path else "data"
    try:
        array = np.asarray(leaf)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} is no array ({error}); give arrays of numbers.") from None
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(f"{name} has type {array.dtype}; give arrays of numbers.")
    if array.dtype.kind in "iu" and array.size:
        most = np.iinfo(np.uint32 if array.dtype.kind == "u" else np.int32)
        if array.min() < most.min or array.max() > most.max:
            raise ValueError(
                f"{name} has whole numbers from {array.min():,} to {array.max():,}, but 32 bits hold {most.min:,} to "
                f"{most.max:,}; give numbers in that range."
            )
    return jnp.asarray(array)


def check_batch_size(source: DataSource, batch_size: int | None) -> None:
    """Refuses a batch that the data cannot fill, or a batch size that nothing would use.

    Raises:
        ValueError: batch_size exceeds the number of examples, or is set for function data.
    """
    if batch_size is None:
        return
    if source.is_function:
        raise ValueError(
            f"batch_size={batch_size} has no effect where data is a function (key) -> batch; leave it None."
        )
    if source.num_examples is not None and batch_size > source.num_examples:
        raise ValueError(
            f"batch_size={batch_size} is larger than the {source.num_examples} examples of data; "
            "choose a smaller batch, or None for the full batch."
        )


def draw_batch(arrays: Any, draw: Callable | None, batch_size: int | None, key: PRNGKey) -> Batch:
    """One batch: from the function, or `batch_size` rows with replacement, or all rows where it is None."""
    if draw is not None:
        return draw(key)
    if batch_size is None or not jax.tree.leaves(arrays):
        return arrays
    return trees.take(arrays, batch_index(arrays, batch_size, key))


def batch_index(arrays: Any, batch_size: int, key: PRNGKey) -> Int[Array, " example"]:
    """Which examples make a batch."""
    return jax.random.randint(key, (batch_size,), 0, jax.tree.leaves(arrays)[0].shape[0])


def example_batch(source: DataSource, batch_size: int | None) -> Batch:
    """Shapes of one batch, without computing it."""
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    return jax.eval_shape(lambda arrays, key: draw_batch(arrays, source.draw, batch_size, key), source.arrays, key)


def some_examples(source: DataSource, count: int = 8) -> Batch:
    """A few examples: the first of arrays, or a batch of a function."""
    if source.draw is not None:
        return source.draw(jax.random.key(0, impl="threefry2x32"))
    return trees.take(source.arrays, np.s_[:count])


def pieces(arrays: Any, size: int | None) -> Iterator[Any]:
    """At most `size` examples of all arrays after another; all at once where there are no arrays or `size` is None."""
    leaves = jax.tree.leaves(arrays)
    if not leaves or size is None:
        yield arrays
        return
    for start in range(0, leaves[0].shape[0], size):
        yield jax.tree.map(lambda leaf, start=start: leaf[start : start + size], arrays)


def dataset_loss(loss_fn: LossFn, params: Params, arrays: Any, block: int | None) -> Loss:
    """Losses over all examples, block by block, exact for any number of examples.

    Args:
        loss_fn: the loss.
        params: parameters.
        arrays: arrays with a leading example axis, or `()` for a loss without data.
        block: examples a block; None takes all at once.
    """
    leaves = jax.tree.leaves(arrays)
    size = leaves[0].shape[0] if leaves else 0
    if not leaves or block is None or block >= size:
        return evaluate(loss_fn, params, arrays)
    whole = size // block * block
    # Recomputed in the gradient, which would otherwise keep every block.
    one_block = jax.checkpoint(lambda params, batch: evaluate(loss_fn, params, batch))
    losses = jax.lax.map(lambda batch: one_block(params, batch), _blocks(arrays, block))
    total = jax.tree.map(lambda leaf: jnp.sum(leaf, 0), losses)
    if whole == size:
        return total
    rest = evaluate(loss_fn, params, trees.take(arrays, np.s_[whole:]))
    return jax.tree.map(jnp.add, total, rest)


def losses_of_examples(loss_fn: LossFn, params: Params, arrays: Any, block: int) -> ExampleLosses:
    """Losses of all examples one by one; the loss sees `block` of them at a time, some of them twice if need be.

    Arguments are those of `dataset_loss`, with at least one block of examples.
    """
    size = jax.tree.leaves(arrays)[0].shape[0]
    losses = jax.lax.map(lambda batch: example_losses(loss_fn, params, batch), _blocks(arrays, block))
    losses = jax.tree.map(lambda leaf: leaf.reshape(-1), losses)
    left = size % block
    if not left:
        return losses
    last = example_losses(loss_fn, params, trees.take(arrays, np.s_[size - block :]))
    return jax.tree.map(lambda most, last: jnp.concatenate([most, last[block - left :]]), losses, last)


def _blocks(arrays: Any, block: int) -> Any:
    """Arrays with a leading axis of whole blocks; examples beyond them are left out."""
    whole = jax.tree.leaves(arrays)[0].shape[0] // block * block
    return jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, block, *leaf.shape[1:]), arrays)
