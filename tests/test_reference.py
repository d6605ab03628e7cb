"""Known answers agree with each other, with other derivations and with brute force."""

import itertools
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import llcjax
from llcjax import reference
from llcjax.checkpoints import bank_of
from llcjax.config import SweepConfig
from llcjax.models.deep_linear import apply, as_matrices, as_params, deep_linear, product
from llcjax.reference import LearningCoefficient, generic_ranks, local_deep_linear_llc, numerical_ranks

CURVATURE = np.array([0.05, 0.5, 1.0, 3.0])


def deepest_ranks(widths, rank):
    """Ranks where every layer has lost all the rank that it can."""
    ranks = np.triu(np.full((len(widths),) * 2, rank))
    np.fill_diagonal(ranks, widths)
    return ranks


def optimal_images(ranks):
    """By enumeration: codimension of the true parameters near a point, and all k_v = rank(W_v ... W_1) attaining it."""
    widths, rank = np.diag(ranks), ranks[0, -1]
    best, found = np.inf, []
    for inner in itertools.product(*[range(rank, width + 1) for width in widths[1:-1]]):
        k = (widths[0], *inner, rank)
        pairs = itertools.combinations(range(len(k)), 2)
        if any(k[v] < k[j] or k[v] - k[j] > widths[v] - ranks[v, j] for v, j in pairs):
            continue
        cost = sum((k[v - 1] - k[v]) * (widths[v] - k[v]) for v in range(1, len(k)))
        found = [*found, k] if cost == best else [k] if cost < best else found
        best = min(best, cost)
    return best + rank * (widths[0] + widths[-1]) - rank**2, found


def longest_chain(images):
    above = {k: [other for other in images if other != k and np.all(np.array(other) >= k)] for k in images}
    length = {}
    for k in sorted(images, key=sum, reverse=True):
        length[k] = 1 + max((length[other] for other in above[k]), default=0)
    return max(length.values())


def random_ranks(rng, max_depth, max_width, cut=0.6):
    widths = tuple(int(width) for width in rng.integers(1, max_width + 1, rng.integers(1, max_depth + 1) + 1))
    full = [min(pair) for pair in itertools.pairwise(widths)]
    return widths, tuple(int(rng.integers(0, rank + 1)) if rng.random() < cut else rank for rank in full)


# Quadratics


def test_gaussian_forms_agree_with_the_lyapunov_equation():
    n_beta, localization, step_size, noise = 50.0, 2.0, 0.01, np.array([0.0, 0.1, 0.2, 0.3])
    variance = reference.sgld_variance(
        CURVATURE, n_beta=n_beta, localization=localization, step_size=step_size, gradient_variance=noise
    )
    transition = np.eye(4) - step_size / 2 * np.diag(n_beta * CURVATURE + localization)
    added = step_size * np.eye(4) + (step_size * n_beta / 2) ** 2 * np.diag(noise)
    covariance = reference.stationary_covariance(transition, added)
    np.testing.assert_allclose(covariance, np.diag(variance), rtol=1e-10, atol=1e-14)
    llc = reference.covariance_llc(np.diag(CURVATURE), covariance, n_beta=n_beta)
    settings = dict(n_beta=n_beta, localization=localization, step_size=step_size, gradient_variance=noise)
    assert llc == pytest.approx(reference.quadratic_llc(CURVATURE, **settings), rel=1e-10)


def test_stationary_covariance_is_the_fixed_point_of_a_preconditioned_chain():
    rng = np.random.default_rng(0)
    root, factor = rng.normal(size=(2, 12, 12)) / np.sqrt(12)
    hessian, preconditioner = root @ root.T, factor @ factor.T + 0.1 * np.eye(12)
    transition = np.eye(12) - 0.01 / 2 * preconditioner @ (20 * hessian + 5 * np.eye(12))
    noise = 0.01 * preconditioner
    covariance = np.zeros((12, 12))
    for _ in range(20_000):
        covariance = transition @ covariance @ transition.T + noise
    np.testing.assert_allclose(reference.stationary_covariance(transition, noise), covariance, rtol=1e-8, atol=1e-12)
    # In the continuum no preconditioner changes the law.
    small = reference.stationary_covariance(
        np.eye(12) - 1e-6 / 2 * preconditioner @ (20 * hessian + 5 * np.eye(12)), 1e-6 * preconditioner
    )
    np.testing.assert_allclose(small, np.linalg.inv(20 * hessian + 5 * np.eye(12)), rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="spectral radius"):
        reference.stationary_covariance(1.1 * np.eye(2), np.eye(2))


def test_minibatch_noise_term_is_that_of_sgld_on_data():
    """Losses (w - x_i)^2 / 2: the minibatch gradient w - mean(x_B) has variance Var(x) / B whatever w is."""
    rng = np.random.default_rng(1)
    data = rng.normal(size=1000)
    data -= data.mean()
    n_beta, localization, step_size, batch, chains = 100.0, 1.0, 0.01, 8, 20_000
    w = np.zeros(chains)
    for _ in range(60):
        gradient = n_beta * (w - data[rng.integers(0, 1000, (chains, batch))].mean(1)) + localization * w
        w = w - step_size / 2 * gradient + np.sqrt(step_size) * rng.normal(size=chains)
    exact = reference.sgld_variance(
        np.ones(1), n_beta=n_beta, localization=localization, step_size=step_size,
        gradient_variance=data.var() / batch,
    )[0]  # fmt: skip
    assert abs(w.var() / exact - 1) < 4 * np.sqrt(2 / chains)
    assert exact > 3 / 101


def test_quadratic_with_a_displaced_anchor_is_the_quadrature():
    curvature, minimum = np.array([1.0, 30.0]), np.array([0.3, -0.2])

    def loss(w):
        return 0.5 * (w - minimum) ** 2 @ curvature

    for n_beta, localization in [(1e2, 1.0), (1e4, 0.1), (1e4, 1e3)]:
        exact = reference.quadratic_llc(curvature, n_beta=n_beta, localization=localization, anchor=-minimum)
        found = reference.quadrature_llc(loss, np.zeros(2), n_beta=n_beta, localization=localization)
        assert found == pytest.approx(exact, rel=1e-10)
    with pytest.raises(ValueError, match="restoring force"):
        reference.quadratic_llc(np.array([0.0]), n_beta=1.0, localization=0.0)


# Crossings and quadrature


@pytest.mark.parametrize(
    ("powers", "llc", "multiplicity"),
    [((0, 1), 0.5, 1), ((1, 1), 0.5, 2), ((1, 2), 0.25, 1), ((2, 2), 0.25, 2), ((3, 2, 3), 1 / 6, 2)],
)
def test_normal_crossings(powers, llc, multiplicity):
    assert reference.crossing_llc(powers) == LearningCoefficient(pytest.approx(llc), multiplicity)
    if len(powers) == 2:

        def loss(w):
            return np.prod(w ** (2 * np.array(powers)), 1)

        n_beta = 1e12
        found = reference.quadrature_llc(loss, np.zeros(2), n_beta=n_beta, localization=0.0, box=1.0, rtol=1e-7)
        assert found == pytest.approx(reference.crossing_llc(powers).expectation(n_beta), abs=0.006)


def test_crossing_quadrature_equals_a_one_dimensional_integral():
    """Given w_2, w_1 is Gaussian of precision 2 n_beta w_2^2 + localization."""

    def exact(n_beta, localization):
        def integrand(u, power):
            w = math.exp(u)
            precision = 2 * n_beta * w**2 + localization
            return w * math.exp(-localization * w**2 / 2) * precision**-0.5 * (w**2 / precision) ** power

        parts = [quad(integrand, -40, 4, args=(p,), limit=500, epsrel=1e-12, epsabs=0)[0] for p in (0, 1)]
        return n_beta * parts[1] / parts[0]

    def loss(w):
        return (w[:, 0] * w[:, 1]) ** 2

    for n_beta, localization in [(1e2, 1.0), (1e4, 1.0), (1e4, 100.0), (1e6, 1.0)]:
        found = reference.quadrature_llc(loss, np.zeros(2), n_beta=n_beta, localization=localization)
        assert found == pytest.approx(exact(n_beta, localization), rel=1e-9)


@pytest.mark.parametrize("powers", [(2,), (4,), (2, 2), (4, 2), (6, 4)])
def test_monomial_sums_are_exact_at_any_n_beta(powers):
    exact = reference.monomial_sum_llc(powers).llc
    assert exact == pytest.approx(sum(1 / power for power in powers))
    for n_beta in (1.0, 145.0):
        found = reference.quadrature_llc(
            lambda w: 0.5 * np.sum(w ** np.array(powers), 1), np.zeros(len(powers)), n_beta=n_beta, localization=0.0
        )
        assert found == pytest.approx(exact, rel=1e-9)


def test_quadrature_in_a_box_with_a_prior_and_away_from_the_anchor():
    # A uniform law on the box, then a Gaussian around 0 of precision weight_decay alone.
    flat = reference.quadrature_llc(lambda w: w[:, 0] ** 2, np.zeros(1), n_beta=1e-12, localization=0.0, box=2.0)
    assert flat / 1e-12 == pytest.approx(4 / 3, rel=1e-9)
    prior = reference.quadrature_llc(
        lambda w: w[:, 0] ** 2, np.ones(1), n_beta=1e-12, localization=1.0, weight_decay=3.0
    )
    assert prior / 1e-12 == pytest.approx(1 / 4 + 1 / 16 - 1, rel=1e-9)
    # A narrow well far from the anchor holds all the mass.
    loss = reference.quadrature_llc(lambda w: (w[:, 0] - 3.3) ** 2 / 2, np.zeros(1), n_beta=1e7, localization=1e-3)
    assert loss == pytest.approx(0.5 - 1e7 * 3.3**2 / 2, rel=1e-10)


def test_quadrature_refuses():
    def valley(w):
        return w[:, 0] ** 2

    with pytest.raises(ValueError, match="improper"):
        reference.quadrature_llc(valley, np.zeros(2), n_beta=10.0, localization=0.0)
    with pytest.raises(ValueError, match="improper"):
        reference.quadrature_llc(lambda w: np.prod(w, 1) ** 2, np.zeros(2), n_beta=1e4, localization=0.0)
    with pytest.raises(ValueError, match="needs"):
        reference.quadrature_llc(valley, np.zeros(3), n_beta=10.0, localization=1.0)
    with pytest.raises(ValueError, match="not reached"):
        reference.quadrature_llc(np.ravel, np.zeros(1), n_beta=1.0, localization=1.0, rtol=1e-19)


# Reduced-rank regression and deep linear networks: global


@pytest.mark.parametrize(
    ("widths", "rank", "llc", "multiplicity"),
    [
        ((5, 3, 5), 0, 6.5, 2), ((5, 3, 5), 1, 8, 1), ((5, 3, 5), 2, 9.5, 2), ((5, 3, 5), 3, 10.5, 1),
        ((4, 4, 4), 0, 6, 1), ((4, 4, 4), 2, 7.5, 1), ((3, 3, 3, 3), 0, 3, 1), ((10, 10, 10), 5, 47, 2),
        ((100, 100, 100), 50, 4687.5, 1), ((10, 10, 10, 10), 5, 46, 3), ((20, 20, 20, 20), 10, 183.5, 3),
        ((50, 40, 30, 40, 50), 10, 700, 1), ((1, 1), 0, 0.5, 1), ((1, 1, 1), 0, 0.5, 2), ((1, 1, 1, 1), 0, 0.5, 3),
        ((1, 1, 1), 1, 0.5, 1), ((3, 7), 2, 10.5, 1),
    ],
)  # fmt: skip
def test_table_of_deep_linear_networks(widths, rank, llc, multiplicity):
    assert reference.deep_linear_llc(widths, rank) == (llc, multiplicity)
    assert local_deep_linear_llc(deepest_ranks(widths, rank)) == (llc, multiplicity)


SHAPES = [
    (1, 1, 1),
    (5, 3, 5),
    (4, 4, 4),
    (2, 9, 3),
    (9, 2, 3),
    (3, 2, 9),
    (7, 6, 5),
    (10, 4, 11),
    (6, 12, 7),
    (8, 8, 3),
]


@pytest.mark.parametrize("widths", SHAPES)
def test_two_layers_are_reduced_rank_regression(widths):
    for rank in range(min(widths) + 1):
        assert reference.deep_linear_llc(widths, rank) == reference.reduced_rank_llc(*widths, rank)


def test_global_value_is_half_the_codimension_and_forgets_the_order_of_widths():
    rng = np.random.default_rng(0)
    for _ in range(300):
        widths, _ = random_ranks(rng, 6, 8)
        rank = int(rng.integers(0, min(widths) + 1))
        llc = reference.deep_linear_llc(widths, rank)
        assert local_deep_linear_llc(deepest_ranks(widths, rank)) == llc
        inner = tuple(rng.permutation(widths[1:-1]).tolist())
        assert reference.deep_linear_llc((widths[0], *inner, widths[-1]), rank) == llc
        assert reference.deep_linear_llc(widths[::-1], rank) == llc
    for widths in [(4, 3, 5), (3, 3, 3, 3), (2, 4, 3, 5), (4, 4, 2, 3, 3)]:
        codimension, images = optimal_images(deepest_ranks(widths, 0))
        assert reference.deep_linear_llc(widths, 0).llc == codimension / 2
        assert reference.deep_linear_llc(widths, 0).multiplicity == longest_chain(images)


@pytest.mark.parametrize(
    "widths", [(1, 1, 1), (2, 1, 2), (3, 1, 5), (2, 2, 2), (3, 2, 2), (2, 2, 4), (5, 2, 2), (4, 2, 3)]
)
def test_two_layer_asymptotics_by_exact_integration(widths):
    """Z(n_beta) under Gaussian priors: W_2 integrates out, and W_1 W_1^T is Wishart (one or two eigenvalues)."""
    inputs, hidden, outputs = widths
    u, weight = np.polynomial.legendre.leggauss(600)
    u, weight = 25 * u - 20, 25 * weight
    s = np.exp(u)
    llc, m = reference.deep_linear_llc(widths, 0)

    def log_z(log_n):
        factor = weight * s ** ((inputs - hidden + 1) / 2) * np.exp(-s / 2) * (1 + np.exp(log_n) * s) ** (-outputs / 2)
        if hidden == 1:
            return np.log(factor.sum())
        # |s_1 - s_2| by its two sorted halves: cumulative sums keep the kink on a node.
        fine = [np.sum(factor[:i] * (s[i] - s[:i])) for i in range(len(s))]
        return np.log(np.sum(factor * fine))

    log_n = np.linspace(16, 26, 6)
    scaled = np.array([np.exp(log_z(x) + llc * x) for x in log_n])
    # Z n^lambda is a polynomial of degree m - 1 in log n, up to powers of 1 / n.
    trend = np.polynomial.Polynomial.fit(log_n, scaled / scaled[0], m - 1)
    np.testing.assert_allclose(trend(log_n), scaled / scaled[0], rtol=0.004)
    assert m == 1 or trend.convert().coef[-1] * 10 > 0.2


def test_three_scalar_layers_have_multiplicity_three():
    """u = |w_1 w_2 w_3| on the unit cube has density log(u)^2 / 2, so Z sqrt(n_beta) is quadratic in log(n_beta)."""

    def scaled(log_n):
        def integrand(v):  # v = u sqrt(n_beta)
            return math.exp(-v * v) * (math.log(v) - log_n / 2) ** 2 / 2 if v > 0 else 0.0

        return quad(integrand, 0, 8, epsrel=1e-11, limit=300)[0]

    values = np.array([scaled(x) for x in (20.0, 25.0, 30.0, 35.0)])
    assert abs(np.diff(values, 3)[0]) < 1e-6 * values[0]
    assert np.diff(values, 2)[0] > 0.01 * values[0]
    assert reference.deep_linear_llc((1, 1, 1, 1), 0) == (0.5, 3)


# Deep linear networks: local


def test_local_value_is_half_the_local_codimension_by_enumeration():
    rng = np.random.default_rng(1)
    above = 0
    for _ in range(300):
        widths, layer_ranks = random_ranks(rng, 5, 5)
        ranks = generic_ranks(widths, layer_ranks)
        codimension, images = optimal_images(ranks)
        local, lowest = local_deep_linear_llc(ranks), reference.deep_linear_llc(widths, int(ranks[0, -1]))
        assert local.llc == codimension / 2
        assert local.multiplicity == longest_chain(images)
        assert local.llc >= lowest.llc
        above += local.llc > lowest.llc
    assert above > 30


def test_two_layer_local_value_is_that_of_the_remaining_singular_block():
    """W_1 of rank r + a, W_2 of rank r + b, images and kernels as crossed as the product's rank r allows."""
    for widths, a, b, rank in [((6, 7, 5), 2, 1, 1), ((9, 9, 9), 3, 3, 2), ((4, 8, 4), 0, 3, 0), ((5, 5, 5), 2, 3, 0)]:
        ranks = np.diag(widths)
        ranks[0, 1], ranks[1, 2], ranks[0, 2] = rank + a, rank + b, rank
        inputs, hidden, outputs = (width - rank for width in widths)
        smooth = rank * (widths[0] + widths[2] - rank) + a * outputs + b * (inputs - a)
        block = (inputs - a, hidden - a - b, outputs - b)
        singular = reference.reduced_rank_llc(*block, 0) if min(block) > 0 else LearningCoefficient(0.0, 1)
        assert local_deep_linear_llc(ranks) == (smooth / 2 + singular.llc, singular.multiplicity)


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 2), (3, 2)])
@pytest.mark.parametrize("outputs", [1, 2, 3, 4, 7])
def test_local_value_at_zero_outer_layers_around_a_partial_one(kept, rows, columns, outputs):
    """Widths (1, kept + columns, kept + rows, outputs), W_1 = W_3 = 0, W_2 = diag(I, 0): lambda and m in closed form.

    With Gaussian priors W_3 integrates out: Z = E[(1 + n T)^(-outputs / 2)], T = |y_1|^2 + |X y_2|^2. P(|y_1|^2 < e)
    goes as e^(kept / 2), and |X y_2|^2 is a product of chi squares, e^(min(rows, columns) / 2), with a log if equal.
    """
    widths = (1, kept + columns, kept + rows, outputs)
    inner, log = (kept + min(rows, columns)) / 2, int(rows == columns)
    expected = LearningCoefficient(min(inner, outputs / 2), 1 + log if inner < outputs / 2 else 1)
    if inner == outputs / 2:
        expected = LearningCoefficient(inner, 2 + log)
    assert local_deep_linear_llc(generic_ranks(widths, (0, kept, 0))) == expected


def jacobian_rank(matrices):
    """Rank of the derivative of the product in all matrices."""
    blocks = []
    for index in range(len(matrices)):
        left = np.linalg.multi_dot([np.eye(len(matrices[0])), np.eye(len(matrices[0])), *matrices[:index]])
        last = matrices[-1].shape[1]
        right = np.linalg.multi_dot([*matrices[index + 1 :], np.eye(last), np.eye(last)])
        blocks.append(np.kron(left, right.T))
    return np.linalg.matrix_rank(np.concatenate(blocks, 1), tol=1e-6)


def test_local_value_against_the_jacobian():
    """Half its rank bounds lambda from below, and is lambda where no two cut layers meet (a smooth point)."""
    rng = np.random.default_rng(2)
    smooth = 0
    for _ in range(60):
        widths, layer_ranks = random_ranks(rng, 4, 6)
        cut = sum(rank < min(pair) for rank, pair in zip(layer_ranks, itertools.pairwise(widths), strict=True))
        case = reference.deep_linear_case(rng, widths, layer_ranks, aligned=True)
        matrices = [matrix.astype(np.float64) for matrix in as_matrices(case.params)]
        rank = jacobian_rank(matrices)
        assert case.llc >= rank / 2
        if cut <= 1:
            smooth += 1
            assert case.llc == rank / 2 and case.multiplicity == 1
    assert smooth > 15


def test_numerical_ranks_find_the_pattern_of_teachers_and_of_crossed_layers():
    rng = np.random.default_rng(3)
    for _ in range(20):
        widths, layer_ranks = random_ranks(rng, 4, 7)
        matrices = as_matrices(reference.deep_linear_case(rng, widths, layer_ranks, aligned=True).params)
        np.testing.assert_array_equal(numerical_ranks(matrices), generic_ranks(widths, layer_ranks))
    crossed = [np.diag([1.0, 1.0, 0.0]), np.diag([0.0, 0.0, 1.0])]
    assert numerical_ranks(crossed).tolist() == [[3, 2, 0], [0, 3, 1], [0, 0, 3]]
    # Generic layers of these ranks have a product of rank 0 only where they cross, so the point is smoother.
    assert local_deep_linear_llc(numerical_ranks(crossed)) == (3.5, 1)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="rank=4 must be between 0 and the smallest width, 3"):
        reference.deep_linear_llc((5, 3, 5), 4)
    with pytest.raises(ValueError, match="at least two"):
        reference.deep_linear_llc((5,), 1)
    with pytest.raises(ValueError, match="one rank a layer"):
        generic_ranks((2, 2), (1, 1))
    with pytest.raises(ValueError, match="between 0 and 2"):
        generic_ranks((2, 2), (3,))
    with pytest.raises(ValueError, match="even"):
        reference.monomial_sum_llc([3])
    with pytest.raises(ValueError, match="above 0"):
        reference.crossing_llc([0, 0])
    with pytest.raises(ValueError, match="size_class='2k' is unknown"):
        reference.random_deep_linear(np.random.default_rng(0), "2k")
    with pytest.raises(ValueError, match="at least two"):
        deep_linear((3,))


# Teachers


@pytest.mark.parametrize("name", ["1k", "10k", "100k"])
def test_teachers_of_each_class(name):
    size = reference.SIZE_CLASSES[name]
    different = 0
    for seed in range(20 if name != "100k" else 1):
        case = reference.random_deep_linear(np.random.default_rng(seed), name)
        assert size.depth[0] <= len(case.layer_ranks) <= size.depth[1]
        assert size.width[0] <= min(case.widths) and max(case.widths) <= size.width[1]
        assert size.num_params / 3.17 < case.num_params < size.num_params * 3.17
        assert case.num_params == sum(matrix.size for matrix in case.params.values())
        assert all(matrix.dtype == np.float32 for matrix in case.params.values())
        assert case.rank == min(*case.widths, *case.layer_ranks)
        assert (case.llc, case.multiplicity) == local_deep_linear_llc(generic_ranks(case.widths, case.layer_ranks))
        assert case.num_params / 2 >= case.llc >= case.global_llc.llc
        assert (case.batch_size, case.localization) == (500, 1.0)
        assert case.n_beta == pytest.approx(size.num_examples / np.log(size.num_examples))
        different += case.llc > case.global_llc.llc
    assert different > 0 or name == "100k"


@pytest.mark.parametrize("seed", range(6))
def test_aligned_teachers_have_the_ranks_and_no_small_singular_value(seed):
    aligned = reference.random_deep_linear(np.random.default_rng(seed), "1k", aligned=True)
    usual = reference.random_deep_linear(np.random.default_rng(seed), "1k")
    assert (aligned.widths, aligned.layer_ranks, aligned.llc) == (usual.widths, usual.layer_ranks, usual.llc)
    matrices = as_matrices(aligned.params)
    np.testing.assert_array_equal(numerical_ranks(matrices), generic_ranks(aligned.widths, aligned.layer_ranks))
    for start, end in itertools.combinations(range(len(matrices) + 1), 2):
        partial = product(as_params([matrix.astype(np.float64) for matrix in matrices[start:end]]))
        values = np.linalg.svd(partial, compute_uv=False)
        assert np.all((values < 1e-5) | (abs(values - 1) < 1e-5))


@pytest.mark.parametrize("aligned", [True, False])
def test_largest_curvature_is_that_of_the_hessian(aligned):
    case = reference.deep_linear_case(np.random.default_rng(4), (4, 3, 5, 3), (3, 2, 3), aligned=aligned)
    flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.asarray, case.params))
    loss = reference.deep_linear_task(case).population_loss
    hessian = jax.hessian(lambda w: loss(unravel(w), ()))(flat)
    assert reference.largest_curvature(case) == pytest.approx(float(jnp.linalg.eigvalsh(hessian)[-1]), rel=1e-3)


def test_teachers_can_be_drawn_again():
    one, two = (reference.random_deep_linear(np.random.default_rng(5), "1k") for _ in range(2))
    assert one.widths == two.widths and one.layer_ranks == two.layer_ranks
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_task_has_the_exact_population_loss():
    case = reference.deep_linear_case(np.random.default_rng(0), (4, 6, 3), (2, 3))
    task = reference.deep_linear_task(case)
    batch = task.sample(jax.random.key(0), 100_000)
    assert float(jnp.max(task.loss_fn(case.params, batch))) == 0.0
    assert float(task.population_loss(case.params, ())) < 1e-10
    init, forward = deep_linear(case.widths)
    student = init(jax.random.key(1))
    losses = np.asarray(task.loss_fn(student, batch), np.float64)
    assert losses.shape == (100_000,) and np.asarray(batch[0]).std() == pytest.approx(10 / np.sqrt(3), rel=0.01)
    error = losses.std() / np.sqrt(losses.size)
    assert abs(losses.mean() - float(task.population_loss(student, ()))) < 4 * error
    np.testing.assert_allclose(forward(student, batch[0][:5]), batch[0][:5] @ product(student), rtol=1e-4, atol=1e-4)
    noisy = reference.deep_linear_task(case, noise_std=1.0)
    losses = np.asarray(noisy.loss_fn(case.params, noisy.sample(jax.random.key(2), 100_000)), np.float64)
    assert abs(losses.mean() - float(noisy.population_loss(case.params, ()))) < 4 * np.sqrt(1.5 / 100_000)


def test_layers_stay_in_order_beyond_ten():
    matrices = [np.array([[1.0, float(index)], [0.0, 1.0]]) for index in range(12)]
    params = dict(reversed(list(as_params(matrices).items())))
    np.testing.assert_array_equal(product(params), np.linalg.multi_dot(matrices))
    np.testing.assert_array_equal(apply(params, np.eye(2)), np.linalg.multi_dot(matrices))


@pytest.mark.slow
def test_sampled_llc_is_the_local_value_at_the_teacher():
    """Widths (10, 10, 10) with W_1 of rank 5: lambda is 50 at the teacher, although 47 is the global value."""
    case = reference.deep_linear_case(np.random.default_rng(0), (10, 10, 10), (5, 10), aligned=True)
    task, n_beta = reference.deep_linear_task(case), 1e6
    config = SweepConfig(
        n_beta=n_beta, localization=100.0, step_size=0.05 / (n_beta * 67), num_chains=16, num_draws=20_000,
        num_burnin_steps=10_000, batch_size=None, draws_per_chunk=2000,
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, case.params)
    result = llcjax.sweep(task.population_loss, bank_of(params), None, config, devices=jax.local_devices()[:1])
    table = llcjax.estimates(result).isel(checkpoint=0, setting=0)
    # Steps of 0.05 / (largest curvature) inflate the variance of the stiffest direction by 1.25%.
    assert abs(float(table["llc"]) / case.llc - 1) < 0.013 + 4 * float(table["llc_stderr"]) / case.llc


def test_every_docstring_example():
    import doctest
    import importlib

    names = ["crossings", "deep_linear", "deep_linear_local", "gaussian", "quadrature", "teachers"]
    modules = [importlib.import_module(f"llcjax.reference.{name}") for name in names]
    for module in [*modules, importlib.import_module("llcjax.models.deep_linear")]:
        result = doctest.testmod(module)
        assert result.attempted and not result.failed, module.__name__
