"""Random deep linear teachers with known local learning coefficients, in the size classes of arXiv 2308.12108."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from llcjax.models.deep_linear import apply, as_matrices, as_params, product
from llcjax.reference.crossings import LearningCoefficient
from llcjax.reference.deep_linear import deep_linear_llc
from llcjax.reference.deep_linear_local import generic_ranks, local_deep_linear_llc
from llcjax.types import LossFn, Params, PRNGKey

# E[x x^T] = variance * identity for x ~ U(-10, 10).
_REACH, _VARIANCE = 10.0, 100.0 / 3.0


class SizeClass(NamedTuple):
    """A row of table 1: ranges (both ends included) and the settings of the paper's SGLD."""

    num_params: int
    """Nominal number of parameters; teachers have between 1/sqrt(10) and sqrt(10) times as many."""
    depth: tuple[int, int]
    width: tuple[int, int]
    step_size: float
    num_steps: int
    num_examples: int


SIZE_CLASSES = {
    "1k": SizeClass(1_000, (2, 5), (5, 50), 5e-7, 10_000, 100_000),
    "10k": SizeClass(10_000, (2, 10), (5, 100), 5e-7, 10_000, 100_000),
    "100k": SizeClass(100_000, (2, 10), (50, 500), 1e-7, 50_000, 1_000_000),
    "1M": SizeClass(1_000_000, (5, 20), (100, 1000), 5e-8, 50_000, 1_000_000),
    "10M": SizeClass(10_000_000, (2, 20), (500, 2000), 2e-8, 50_000, 1_000_000),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeepLinearCase:
    """A teacher, its learning coefficients, and the settings under which the literature estimates them."""

    widths: tuple[int, ...]
    """H_0 (inputs), ..., H_L (outputs)."""
    layer_ranks: tuple[int, ...]
    """Rank of each layer."""
    params: Params
    """The teacher, float32 matrices of `llcjax.models.deep_linear`."""
    rank: int
    """Rank of the teacher's product."""
    llc: float
    """lambda at the teacher: the answer that an estimate localised there should give."""
    multiplicity: int
    """m at the teacher."""
    global_llc: LearningCoefficient
    """Aoyagi's lambda and m, smallest over all true parameters: what the literature plots against."""
    step_size: float
    num_steps: int
    num_examples: int
    batch_size: int = 500
    localization: float = 1.0

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return _count(self.widths)

    @property
    def n_beta(self) -> float:
        """num_examples / log(num_examples)."""
        return self.num_examples / math.log(self.num_examples)


class DeepLinearTask(NamedTuple):
    """Data and losses of a teacher; all three are pure."""

    loss_fn: LossFn
    """`(params, (x, y)) -> (batch,)`: |y - f(x)|^2 / 2 (no mean over outputs), nats up to a constant."""
    sample: Callable[[PRNGKey, int], tuple[Array, Array]]
    """`(key, n) -> (x, y)`, x ~ U(-10, 10)^(n, H_0) and y of shape `(n, H_L)`."""
    population_loss: LossFn
    """`(params, batch) -> ()`: the exact expectation of `loss_fn`, whatever the batch; for n_beta of any size."""


def deep_linear_case(
    rng: np.random.Generator,
    widths: tuple[int, ...],
    layer_ranks: tuple[int, ...],
    *,
    settings: SizeClass = SIZE_CLASSES["1k"],
    aligned: bool = False,
) -> DeepLinearCase:
    """Draws the matrices of a teacher of given widths and ranks.

    Args:
        rng: numpy generator.
        widths: H_0 (inputs), ..., H_L (outputs).
        layer_ranks: rank of each of the L layers.
        settings: the row of table 1 whose SGLD settings the case carries.
        aligned: neighboring layers share random orthogonal frames, W_s = Q_{s-1} diag(1, ..., 1, 0, ...) Q_s^T, so that
            every partial product has singular values 0 and 1 and every curvature is 0 or up to L times 100/3. Otherwise
            layers are the best approximations of independent matrices with N(0, 1 / H_{s-1}) entries, whose partial
            products have singular values near 0: below about 1 / sqrt(33 n_beta |W|^2) no posterior resolves them, and
            exact expectations fall below the local value, towards the global one. Both have the same ranks, and so the
            same learning coefficients.

    Raises:
        ValueError: a layer's rank does not fit its widths.

    Example:
        >>> case = deep_linear_case(np.random.default_rng(0), (10, 10, 10), (5, 10))
        >>> case.num_params, case.rank, case.llc, case.global_llc
        (200, 5, 50.0, LearningCoefficient(llc=47.0, multiplicity=2))
    """
    ranks = generic_ranks(widths, layer_ranks)
    rank, local = int(ranks[0, -1]), local_deep_linear_llc(ranks)
    ends = itertools.pairwise(widths)
    if aligned:
        matrices = _aligned(rng, widths, layer_ranks)
    else:
        matrices = [_gaussian(rng, pair, kept) for pair, kept in zip(ends, layer_ranks, strict=True)]
    return DeepLinearCase(
        widths=widths,
        layer_ranks=layer_ranks,
        params=as_params(matrices),
        rank=rank,
        llc=local.llc,
        multiplicity=local.multiplicity,
        global_llc=deep_linear_llc(widths, rank),
        step_size=settings.step_size,
        num_steps=settings.num_steps,
        num_examples=settings.num_examples,
    )


def random_deep_linear(
    rng: np.random.Generator, size_class: str, *, cut_probability: float = 0.5, aligned: bool = False
) -> DeepLinearCase:
    """Draws depth, widths, ranks and matrices of a teacher of one size class.

    Depth and widths are uniform in the ranges of the class (arXiv 2308.12108, table 1), drawn again until the number
    of parameters is within a factor sqrt(10) of the name of the class: the ranges alone give "1k" networks of up to
    12,500 parameters. Each layer keeps its full rank, or with `cut_probability` takes a uniform one from 1 on. At 34%
    of 200 such "1k" teachers the local value is above Aoyagi's, by 15% on average and at most by 150%.

    Args:
        rng: numpy generator.
        size_class: a key of `SIZE_CLASSES`.
        cut_probability: probability of a random rank, for each layer.
        aligned: see `deep_linear_case`.

    Raises:
        ValueError: an unknown class.

    Example:
        >>> case = random_deep_linear(np.random.default_rng(6), "1k")
        >>> case.widths, case.layer_ranks, case.llc, case.global_llc.llc
        ((29, 28, 20, 48), (11, 20, 20), 444.0, 431.5)
    """
    if size_class not in SIZE_CLASSES:
        raise ValueError(f"size_class={size_class!r} is unknown; choose one of {', '.join(SIZE_CLASSES)}.")
    size, widths = SIZE_CLASSES[size_class], (0, 0)
    while not size.num_params <= math.sqrt(10) * _count(widths) <= 10 * size.num_params:
        depth = rng.integers(size.depth[0], size.depth[1] + 1)
        widths = tuple(int(width) for width in rng.integers(size.width[0], size.width[1] + 1, depth + 1))
    full = [min(pair) for pair in itertools.pairwise(widths)]
    ranks = tuple(int(rng.integers(1, rank + 1)) if rng.random() < cut_probability else rank for rank in full)
    return deep_linear_case(rng, widths, ranks, settings=size, aligned=aligned)


def deep_linear_task(case: DeepLinearCase, *, noise_std: float = 0.0) -> DeepLinearTask:
    """Data y = f(x; teacher) + noise with x ~ U(-10, 10), and the losses of a student.

    The loss is the negative log-likelihood of unit Gaussian noise, up to its constant, as in arXiv 2308.12108; the
    step sizes of table 1 are for this scale. (Their code, validating_lambdahat, takes the mean over batch *and*
    outputs, which divides the curvature by H_L / 2 and leaves lambda as it is.) Labels are noiseless by default, as
    in that code, so that the teacher is the exact minimum of every sample; `noise_std=1` follows the paper's text,
    and the teacher is then the minimum of the population loss only.

    Args:
        case: a teacher.
        noise_std: standard deviation of the noise of each label.

    Example:
        >>> task = deep_linear_task(deep_linear_case(np.random.default_rng(0), (3, 2), (2,)))
        >>> student = {"layer00": jnp.zeros((3, 2))}
        >>> task.loss_fn(student, task.sample(jax.random.key(0), 4)).shape, task.population_loss(student, ()).shape
        ((4,), ())
    """
    truth = product(jax.tree.map(lambda matrix: np.asarray(matrix, np.float64), case.params)).astype(np.float32)

    def loss_fn(params: Params, batch: tuple[Array, Array]) -> Float[Array, " batch"]:
        inputs, targets = batch
        return jnp.sum(jnp.square(targets - apply(params, inputs)), -1) / 2

    def sample(key: PRNGKey, num_examples: int) -> tuple[Array, Array]:
        input_key, noise_key = jax.random.split(key)
        inputs = jax.random.uniform(input_key, (num_examples, case.widths[0]), minval=-_REACH, maxval=_REACH)
        targets = apply(jax.tree.map(jnp.asarray, case.params), inputs)
        return inputs, targets + noise_std * jax.random.normal(noise_key, targets.shape)

    def population_loss(params: Params, batch: Any) -> Float[Array, ""]:
        del batch
        return _VARIANCE / 2 * jnp.sum(jnp.square(product(params) - truth)) + noise_std**2 / 2 * case.widths[-1]

    return DeepLinearTask(loss_fn, sample, population_loss)


def largest_curvature(case: DeepLinearCase) -> float:
    """Largest eigenvalue of the Hessian of the population loss at the teacher: of J J^T, J the product's derivative.

    J J^T takes a matrix M of the product's shape to the sum over layers of (A A^T) M (B^T B), A and B the products
    before and after the layer; its power iteration starts from the product itself.
    """
    matrices = [np.asarray(matrix, np.float64) for matrix in as_matrices(case.params)]
    before, after = [np.eye(case.widths[0])], [np.eye(case.widths[-1])]
    for first, last in zip(matrices[:-1], matrices[:0:-1], strict=True):
        before.append(before[-1] @ first)
        after.insert(0, last @ after[0])
    pairs = [(left @ left.T, right.T @ right) for left, right in zip(before, after, strict=True)]
    point, norm, last = before[-1] @ matrices[-1], 1.0, math.inf
    while abs(norm / last - 1) > 1e-4:
        point, last = point / np.linalg.norm(point), norm
        point = sum(left @ point @ right for left, right in pairs)
        norm = float(np.linalg.norm(point))
    return _VARIANCE * norm


def _gaussian(rng: np.random.Generator, ends: tuple[int, int], rank: int) -> Float[np.ndarray, "rows columns"]:
    """A random matrix of given shape and rank, float32."""
    matrix = rng.normal(size=ends) / math.sqrt(ends[0])
    if rank < min(ends):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        matrix = (left[:, :rank] * values[:rank]) @ right[:rank]
    return matrix.astype(np.float32)


def _aligned(
    rng: np.random.Generator, widths: tuple[int, ...], layer_ranks: tuple[int, ...]
) -> list[Float[np.ndarray, "rows columns"]]:
    """Layers that pass the first axes of random orthogonal frames on, float32."""
    frames = [np.linalg.qr(rng.normal(size=(width, width)))[0] for width in widths]
    pairs = zip(itertools.pairwise(frames), layer_ranks, strict=True)
    return [(before[:, :rank] @ after[:, :rank].T).astype(np.float32) for (before, after), rank in pairs]


def _count(widths: tuple[int, ...]) -> int:
    """Number of parameters."""
    return sum(before * after for before, after in itertools.pairwise(widths))
