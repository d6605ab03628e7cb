"""The *local* learning coefficient of a deep linear network at one given set of matrices.

Aoyagi's lambda is the smallest value on the set of true parameters, attained where every layer has lost all the rank
that it can lose. A teacher with one rank-deficient layer between full ones is not there: with widths (10, 10, 10),
W_1 of rank 5 and W_2 invertible, the product map is a submersion, so lambda is 100 / 2 = 50 at the teacher; 47 is the
value at points a finite distance away. HMC chains of 1,500 steps from such a teacher, singular values 1, gave
50.2 +- 0.2 at n_beta = 1e6 (localization 1 and 100) and 50.0 +- 0.2 at n_beta = 1e4 with localization 100; with
localization 1 and n_beta = 1e4 they left for the other points, 47.7 +- 0.3.

The local value is half the local codimension of the set of true parameters, and a function of the ranks of all the
partial products W_j ... W_{i+1} at the point (the isomorphism class of a type A quiver representation). Why: let
k_v = rank(W_v ... W_1) near the point, k_0 = H_0 and k_L = r. Matrices with these ranks have codimension
sum_v (k_{v-1} - k_v)(H_v - k_v), and come arbitrarily near exactly if k_v - k_j <= dim ker(W_j ... W_{v+1}) for all
v < j; where k attains the minimum C of this sum, 2 lambda <= C + r (H_0 + H_L) - r^2. The reverse holds because arcs
on which the product vanishes to order q are, for each t = 0 ... q - 1, as constrained as one such k: grouping them by
the image lattices E_v = W_v E_{v-1} + (t^q), with k_v(t) the number of invariant factors of E_v up to t, their
codimension is at least the sum over t of the sums above, so at least q C (Mustata's theorem on contact loci, J. AMS
15, 2002, gives lambda; at the origin this is the theorem of Pepin Lehalleur & Rimanyi, arXiv 2411.19920). This local
form is ours, not in the literature; nor is that of the multiplicity, the length of the longest chain of minimising k,
which rests on the same count of arcs and on tests. Tests check both against enumeration, the Jacobian where the set is
smooth, closed forms at singular points, and Aoyagi's theorem at the deepest point.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from llcjax.reference.crossings import LearningCoefficient

_MANY = np.iinfo(np.int64).max // 2

Ranks = Int[np.ndarray, "vertex vertex"]
"""`ranks[i, j]`, i <= j: rank of the product of layers i + 1 to j; the diagonal holds the widths."""


def generic_ranks(widths: Sequence[int], layer_ranks: Sequence[int]) -> Ranks:
    """Ranks of all partial products of independent random layers: the smallest width or rank on the way.

    Args:
        widths: H_0, ..., H_L.
        layer_ranks: rank of each of the L layers.

    Raises:
        ValueError: a layer's rank is negative or above the widths at its ends, or the counts do not match.

    Example:
        >>> generic_ranks((4, 3, 5), (2, 3))
        array([[4, 2, 2],
               [0, 3, 3],
               [0, 0, 5]])
    """
    if len(layer_ranks) != len(widths) - 1:
        raise ValueError(f"layer_ranks={tuple(layer_ranks)} must have one rank a layer, {len(widths) - 1} of them.")
    for rank, ends in zip(layer_ranks, itertools.pairwise(widths), strict=True):
        if not 0 <= rank <= min(ends):
            raise ValueError(f"layer_ranks has {rank} between widths {ends}; it must lie between 0 and {min(ends)}.")
    ranks = np.diag(np.asarray(widths, np.int64))
    for start in range(len(widths)):
        for end in range(start + 1, len(widths)):
            ranks[start, end] = min(ranks[start, end - 1], layer_ranks[end - 1], widths[end])
    return ranks


def numerical_ranks(matrices: Sequence[Float[np.ndarray, "rows columns"]], *, rtol: float = 1e-5) -> Ranks:
    """Ranks of all partial products of given matrices, each of shape (H_{s-1}, H_s) and applied as x @ W_1 @ W_2 ...

    Singular values below `rtol` times the product of the layers' spectral norms count as 0 (float32 teachers leave
    about 1e-7).

    Example:
        >>> numerical_ranks([np.diag([1.0, 0.0]), np.eye(2)])
        array([[2, 1, 1],
               [0, 2, 2],
               [0, 0, 2]])
    """
    matrices = [np.asarray(matrix, np.float64) for matrix in matrices]
    ranks = np.diag([len(matrices[0]), *(matrix.shape[1] for matrix in matrices)])
    for start in range(len(matrices)):
        product, scale = np.eye(len(matrices[start])), 1.0
        for end in range(start, len(matrices)):
            product, scale = product @ matrices[end], scale * np.linalg.norm(matrices[end], 2)
            ranks[start, end + 1] = np.sum(np.linalg.svd(product, compute_uv=False) > rtol * scale)
    return ranks


def local_deep_linear_llc(ranks: Ranks) -> LearningCoefficient:
    """Learning coefficient of a deep linear network at the point whose partial products have these ranks.

    It is never below `deep_linear_llc(widths, ranks[0, -1])`, and equal to it where every layer has the
    rank of the whole product.

    Args:
        ranks: from `generic_ranks` or `numerical_ranks`.

    Example:
        >>> local_deep_linear_llc(generic_ranks((10, 10, 10), (5, 10)))
        LearningCoefficient(llc=50.0, multiplicity=1)
        >>> local_deep_linear_llc(generic_ranks((10, 10, 10), (5, 5)))
        LearningCoefficient(llc=47.0, multiplicity=2)
    """
    widths, rank = np.diag(ranks), ranks[0, -1]
    drops = _minimal_drops(ranks, slice(None))
    images = widths[0] - np.cumsum(drops)
    codimension = np.sum(drops * (widths[1:] - images)) + rank * (widths[0] + widths[-1]) - rank**2
    return LearningCoefficient(float(codimension) / 2, _multiplicity(ranks, drops))


def _minimal_drops(ranks: Ranks, order: slice) -> Int[np.ndarray, " layer"]:
    """Where rank is lost, k_{s-1} - k_s for each layer, at the smallest codimension.

    The sum over v of (k_{v-1} - k_v)(H_v - k_v) is, up to a constant, the separable convex sum of
    drop_v H_v + drop_v^2 / 2, and the bounds on sums of neighbouring drops are a polymatroid (Frobenius' rank
    inequality), so one drop at a time where it costs least is optimal. `order` breaks ties, first or last layer.
    """
    widths = np.diag(ranks)
    slack = np.where(np.triu(np.ones((len(widths) - 1,) * 2, bool)), widths[:-1, None] - ranks[:-1, 1:], _MANY)
    drops = np.zeros(len(slack), np.int64)
    while True:
        room = np.array([slack[: layer + 1, layer:].min() for layer in range(len(slack))])
        if not room.any():
            return drops
        cost = np.where(room > 0, widths[1:] + drops, _MANY)
        layer = np.arange(len(cost))[order][np.argmin(cost[order])]
        drops[layer] += 1
        slack[: layer + 1, layer:] -= 1


def _multiplicity(ranks: Ranks, drops: Int[np.ndarray, " layer"]) -> int:
    """Length of the longest chain of minimising k, from the first to the last way to break ties.

    Layers between which a drop can move at no cost form groups; each step of a chain moves a drop to the next layer
    of its group.
    """
    moved, groups = _minimal_drops(ranks, slice(None, None, -1)) - drops, np.arange(len(drops))
    if not moved.any():
        return 1
    cost = np.diag(ranks)[1:] + drops
    for source, target in zip(*np.nonzero(cost[:, None] - 1 == cost[None, :]), strict=True):
        exchanged = drops.copy()
        exchanged[source] -= 1
        exchanged[target] += 1
        if exchanged[source] >= 0 and _feasible(ranks, exchanged):
            groups[groups == groups[target]] = groups[source]
    places = [np.sum(groups[:layer] == group) for layer, group in enumerate(groups)]
    return int(moved @ np.array(places)) + 1


def _feasible(ranks: Ranks, drops: Int[np.ndarray, " layer"]) -> bool:
    """Whether rank can be lost like this arbitrarily near the point."""
    lost = np.concatenate([[0], np.cumsum(drops)])
    return bool(np.all(np.triu(lost[None, :] - lost[:, None]) <= np.triu(np.diag(ranks)[:, None] - ranks)))
