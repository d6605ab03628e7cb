"""Global learning coefficients of reduced-rank regression and of deep linear networks.

Both are the minimum of the local coefficient over the whole set of true parameters. A given teacher may have a larger
one: `llcjax.reference.deep_linear_local` has the value that a chain localised at the teacher sees.
"""

from __future__ import annotations

from collections.abc import Sequence

from llcjax.reference.crossings import LearningCoefficient


def reduced_rank_llc(inputs: int, hidden: int, outputs: int, rank: int) -> LearningCoefficient:
    """Learning coefficient of y = B A x with A of shape (hidden, inputs), B (outputs, hidden), and B A of rank `rank`.

    Source: Aoyagi & Watanabe 2005, "Stochastic complexities of reduced rank regression in Bayesian estimation", Neural
    Networks 18, 924-933, main theorem (all four cases; m = 2 in the first case when the sum of the sizes is odd).

    Args:
        inputs: width of the inputs.
        hidden: width of the hidden layer.
        outputs: width of the outputs.
        rank: rank of the true map.

    Raises:
        ValueError: a width is below 1, or `rank` does not fit.

    Example:
        >>> reduced_rank_llc(5, 3, 5, 0)
        LearningCoefficient(llc=6.5, multiplicity=2)
        >>> reduced_rank_llc(10, 10, 10, 5)
        LearningCoefficient(llc=47.0, multiplicity=2)
    """
    _check_rank((inputs, hidden, outputs), rank)
    if inputs + hidden < outputs + rank:
        return LearningCoefficient((hidden * inputs - hidden * rank + outputs * rank) / 2, 1)
    if outputs + hidden < inputs + rank:
        return LearningCoefficient((hidden * outputs - hidden * rank + inputs * rank) / 2, 1)
    if inputs + outputs < hidden + rank:
        return LearningCoefficient(inputs * outputs / 2, 1)
    odd = (inputs + hidden + outputs + rank) % 2
    both = hidden + rank
    eightfold = 2 * both * (inputs + outputs) + 2 * inputs * outputs - both**2 - inputs**2 - outputs**2
    return LearningCoefficient((eightfold + odd) / 8, 1 + odd)


def deep_linear_llc(widths: Sequence[int], rank: int) -> LearningCoefficient:
    """Learning coefficient of y = W_L ... W_1 x for a true map of rank `rank`, any depth and widths.

    Source: Aoyagi 2024, "Consideration on the learning efficiency of multiple-layered neural networks with linear
    units", Neural Networks 172, theorem 1 (stated in Lau et al., arXiv 2308.12108, appendix on deep linear networks).
    With excesses M_s = widths[s] - rank, the bottleneck is the set of the l + 1 smallest of them with
    max M <= S / l < min of the others, S their sum, a = S - (ceil(S / l) - 1) l, and

        lambda = (r (H_0 + H_L) - r^2) / 2 + a (l - a) / (4 l) - l (l - 1) / 4 (S / l)^2 + sum_{i < j} M_i M_j / 2
        m = a (l - a) + 1

    lambda is half the codimension of the set of true parameters (Pepin Lehalleur & Rimanyi, arXiv 2411.19920).

    Args:
        widths: H_0 (inputs), ..., H_L (outputs).
        rank: rank of the true map.

    Raises:
        ValueError: fewer than two widths, a width below 1, or a rank above the smallest width.

    Example:
        >>> deep_linear_llc((1, 1, 1, 1), 0)
        LearningCoefficient(llc=0.5, multiplicity=3)
        >>> deep_linear_llc((20, 20, 20, 20), 10)
        LearningCoefficient(llc=183.5, multiplicity=3)
    """
    _check_rank(widths, rank)
    bottleneck = _bottleneck([int(width) - int(rank) for width in widths])
    layers, total = len(bottleneck) - 1, sum(bottleneck)
    remainder = total - (-(-total // layers) - 1) * layers
    pairs = (total**2 - sum(excess**2 for excess in bottleneck)) // 2
    # Whole numbers up to the last division: lambda of a wide network has more digits than a float sum keeps.
    base = int(rank) * (int(widths[0]) + int(widths[-1])) - int(rank) ** 2
    singular = (remainder * (layers - remainder) - (layers - 1) * total**2 + 2 * layers * pairs) // layers
    return LearningCoefficient((2 * base + singular) / 4, remainder * (layers - remainder) + 1)


def _bottleneck(excess: list[int]) -> list[int]:
    """The smallest excesses that share the rank deficit."""
    excess = sorted(excess)
    for layers in range(1, len(excess) - 1):
        inside, outside, total = excess[layers], excess[layers + 1], sum(excess[: layers + 1])
        if inside < outside and layers * inside <= total < layers * outside:
            return excess[: layers + 1]
    return excess


def _check_rank(widths: Sequence[int], rank: int) -> None:
    """Refuses sizes that are no network, and ranks that no product of its layers has."""
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths={tuple(widths)} must be at least two numbers (inputs, ..., outputs) from 1 on.")
    if not 0 <= rank <= min(widths):
        raise ValueError(f"rank={rank} must be between 0 and the smallest width, {min(widths)}.")
