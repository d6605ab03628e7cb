"""Temperature: the LLC against n_beta, and the local free energy by thermodynamic integration.

    F(n_beta) = -log int exp(-n_beta (L(w) - L(w*))) N(w; w*, 1/localization) dw,     dF/dn_beta = E[L(w) - L(w*)]

so that F is the integral of the mean excess loss over n_beta from 0 (Gelman & Meng 1998, section 2.2). For large n_beta
F grows like LLC * log n_beta (Watanabe 2009, theorem 6.7). On a quadratic with curvatures h_i

    F = 1/2 sum_i log(1 + n_beta h_i / localization),     LLC = 1/2 sum_i n_beta h_i / (n_beta h_i + localization).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from llcjax import checks
from llcjax.estimators import check_sweep, estimates, excess_loss, kept_draws
from llcjax.types import CHAIN, GROUP

MOST_NODES = 1000


class Rule(NamedTuple):
    """A quadrature rule over n_beta."""

    n_beta: tuple[float, ...]
    """Nodes, increasing; the sweep runs at these."""
    weights: tuple[float, ...]


def integration_rule(n_beta: float, num_nodes: int = 8, power: float = 4.0) -> Rule:
    """Nodes and weights that integrate a mean excess loss from 0 to n_beta.

    Gauss-Legendre in u with n_beta * u^power, as the mean excess loss changes most near 0 (the power law of Friel &
    Pettitt 2008).

    Args:
        n_beta: upper end.
        num_nodes: temperatures to sample.
        power: how much the nodes crowd near 0.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> rule = integration_rule(1000.0, 12)
        >>> energy = sum(w * 0.5 * 9.0 / (9.0 * t + 20.0) for t, w in zip(*rule))    # h = 9, localization = 20
        >>> round(energy, 3), round(0.5 * float(np.log(1 + 1000.0 * 9.0 / 20.0)), 3)
        (3.056, 3.056)
    """
    checks.number("n_beta", n_beta, "a finite number above 0", above=0.0)
    checks.count("num_nodes", num_nodes, 2, MOST_NODES)
    checks.number("power", power, "a number of at least 1", least=1.0)
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    u = (nodes + 1) / 2
    at, share = n_beta * u**power, weights / 2 * n_beta * power * u ** (power - 1)
    return Rule(tuple(at.tolist()), tuple(share.tolist()))


def free_energy(sweep: xr.Dataset, rule: Rule, *, num_burnin_steps: int | None = None) -> xr.Dataset:
    """Local free energy of each checkpoint (and component, localization and step size).

    Args:
        sweep: a sweep whose n_beta are the nodes of `rule`.
        rule: from `integration_rule`.
        num_burnin_steps: sampler steps to leave out; None takes what the sweep was made with.

    Returns:
        `free_energy` (nats, relative to exp(-n_beta L(w*))) and `free_energy_stderr`, with dimensions
        `(checkpoint, setting)`, one setting for each that differs in more than n_beta. The error is the spread between
        chains, each integrated by itself, so that noise that the temperatures share is counted rightly.

    Raises:
        ValueError: an n_beta of the rule that the sweep lacks.
    """
    checks.instance("rule", rule, Rule, "what integration_rule returns")
    kept = kept_draws(sweep, num_burnin_steps)
    excess = excess_loss(sweep.isel(draw=kept)).mean("draw", skipna=False).transpose(*CHAIN).values.astype(float)
    usable = (sweep["first_nonfinite_step"].transpose(*CHAIN).values < 0) & np.isfinite(excess)
    places = [_places(sweep, n_beta) for n_beta in rule.n_beta]
    per_chain = sum(w * excess[:, place] for w, place in zip(rule.weights, places, strict=True))
    used = np.all([usable[:, place] for place in places], axis=0)
    count = used.sum(-1)
    with np.errstate(all="ignore"):
        mean = np.where(used, per_chain, 0).sum(-1) / count
        squares = np.where(used, np.square(per_chain - mean[..., None]), 0).sum(-1)
        error = np.sqrt(squares / (count - 1) / count)
    names = [name for name in ("component", "localization", "step_size") if name in sweep.coords]
    return xr.Dataset(
        {"free_energy": (GROUP, mean), "free_energy_stderr": (GROUP, error), "num_chains_used": (GROUP, count)},
        coords={
            "checkpoint": sweep["checkpoint"],
            **{name: ("setting", sweep[name].values[places[0]]) for name in names},
        },
        attrs={"n_beta": sum(rule.weights)},
    )


def _places(sweep: xr.Dataset, n_beta: float) -> np.ndarray:
    """Settings of one n_beta, in the order of the store, which is the same for each."""
    found = np.flatnonzero(np.isclose(sweep["n_beta"].values, n_beta, rtol=1e-6))
    if not found.size:
        raise ValueError(
            f"the sweep has no n_beta={n_beta:.6g}, a node of the rule; sweep with n_beta=rule.n_beta of this rule."
        )
    return found


def temperature_curve(sweep: xr.Dataset, *, num_burnin_steps: int | None = None) -> xr.Dataset:
    """The LLC against n_beta: flat where the estimate is a property of w*, and not of the temperature.

    Args:
        sweep: a sweep over several n_beta.
        num_burnin_steps: sampler steps to leave out.

    Returns:
        The estimates sorted by n_beta within each localization and step size, with
        `slope`, d log(LLC) / d log(n_beta) from the neighbour below (NaN at the first and where an LLC is not
        positive), beside `llc`, `llc_stderr` and `verdict`.

    Raises:
        ValueError: fewer than two values of n_beta.
    """
    check_sweep(sweep)
    if np.unique(sweep["n_beta"].values).size < 2:
        raise ValueError("a curve against n_beta needs at least two values of it; sweep with several.")
    table = estimates(sweep, num_burnin_steps=num_burnin_steps)
    others = [table[name].values for name in ("step_size", "localization") if name in table.coords]
    parts = [np.unique(table["component"].values, return_inverse=True)[1]] if "component" in table.coords else []
    table = table.isel(setting=np.lexsort([table["n_beta"].values, *others, *parts]))
    same = np.all([np.diff(table[name].values) == 0 for name in ("localization", "step_size")], axis=0)
    if "component" in table.coords:
        same &= table["component"].values[1:] == table["component"].values[:-1]
    llc = table["llc"].transpose(*GROUP).values
    with np.errstate(all="ignore"):
        steps = np.diff(np.log(np.where(llc > 0, llc, np.nan)), axis=1) / np.diff(np.log(table["n_beta"].values))
    slope = np.full(llc.shape, np.nan)
    slope[:, 1:] = np.where(same, steps, np.nan)
    return table.assign(slope=(GROUP, slope))
