"""The configuration of a sweep, and how any configuration becomes JSON and a fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from typing import Any, Literal

import numpy as np

from llcjax import checks
from llcjax.keys import LARGEST_SEED, Common
from llcjax.samplers import DECAYING, SAMPLERS, sampler_options

Baseline = Literal["paired", "dataset"]
Precision = Literal["highest", "tf32", "bf16"]
MOST_SETTINGS = 10**6
"""Largest grid of a sweep."""
MOST_LEAPS = 10**4
"""Most leapfrog steps of one HMC trajectory."""
_MAY_BE_NONE = ("batch_size", "num_baseline_batches", "runs_per_launch", "microbatch_size", "chains_at_once")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One hyperparameter setting of a sweep."""

    n_beta: float
    localization: float
    step_size: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Settings of a sweep. Several values of n_beta, localization or step_size make a grid."""

    sampler: str = "sgld"
    """sgld, rmsprop_sgld, adam_sgld, sgnht; or the oracles mala and hmc, which need batch_size none."""
    sampler_options: dict[str, float] = dataclasses.field(default_factory=dict)
    """Options of the sampler, such as decay 0.99 stability 0.1 of rmsprop_sgld."""
    weight_decay: float = 0.0
    """Precision of a further Gaussian prior around 0 (inverse squared parameters)."""
    box: float | None = None
    """Largest distance of each parameter from the checkpoint; none leaves it free."""
    n_beta: tuple[float, ...] = (66.67,)
    """Number of examples times the inverse temperature (no unit); n / ln(n) is Watanabe's choice."""
    localization: tuple[float, ...] = (1000.0,)
    """gamma, the precision of the Gaussian around the checkpoint (inverse squared parameters)."""
    step_size: tuple[float, ...] = (1e-5,)
    """epsilon, the SGLD step size (squared parameters)."""
    step_size_decay: float = 0.0
    """Exponent of a decaying step, step_size * (1 + t / time)^-exponent at step t; 0 = constant, at most 1."""
    step_size_decay_time: float = 1000.0
    """Sampler steps over which the decay sets in; no effect without one."""
    num_chains: int = 4
    """Independent chains a checkpoint and setting; at least 2 for a standard error between chains."""
    num_draws: int = 200
    """Draws a chain after the burn-in."""
    num_burnin_steps: int = 0
    """Sampler steps that the estimate leaves out; they are stored, so this can be chosen again."""
    num_steps_between_draws: int = 1
    """Sampler steps from one recorded draw to the next."""
    batch_size: int | None = 256
    """Examples a minibatch, drawn with replacement; none = the full batch."""
    baseline: Baseline = "paired"
    """L(w*): `paired` on the batch of each draw (less noise), `dataset` once on all examples (the literature)."""
    num_baseline_batches: int | None = None
    """Batches for baseline=dataset where the data come from a function."""
    eval_every: int = 0
    """Adds the loss over all examples every so many draws; 0 = never."""
    acceptance_every: int = 0
    """Adds the probability that MALA would accept the move of SGLD, every so many draws; 0 = never."""
    acceptance_on_all_data: bool = False
    """Judges the move on all examples too: two more passes over the data at each of these draws."""
    num_control_draws: int = 0
    """Draws from the localisation prior whose mean loss stands in for chance where none is given; 0 = no control."""
    init: Literal["anchor", "prior"] = "anchor"
    """Where chains start: at the checkpoint, or at a draw from the localisation prior."""
    common: Common = "all"
    """What checkpoints share: `all` = batches and noise, `batches`, or `none`."""
    per_position: bool = False
    """Stores the loss of each position (token) too, where the loss has positions."""
    reduce: Literal["none", "mean", "covariance"] = "none"
    """What is kept of observables and probe losses: every draw, or their mean or covariance over blocks of draws."""
    num_blocks: int = 10
    """Blocks of draws that are reduced to one mean or covariance each; the burn-in can be chosen at their ends."""
    precision: Precision = "highest"
    """Matrix products of loss and gradient: float32 (`highest`), `tf32` or `bf16` (accelerators only)."""
    seed: int = 0
    """Seed of batches and noise."""
    draws_per_chunk: int = 100
    """Draws between two visits of the host (progress, writes); has no effect on the numbers."""
    microbatch_size: int | None = None
    """Examples of a batch whose gradient is computed at once; gradients add up. None = all of the batch."""
    chains_at_once: int | None = None
    """Chains of a launch that step at once; the others wait, so that their activations never meet. None = all."""
    devices_per_run: int = 1
    """Devices that share the parameters of one chain, where one device does not hold them."""
    runs_per_launch: int | None = None
    """Chains that run at once; none = as many as fit and help. Has no effect on the numbers."""

    def __post_init__(self) -> None:
        """Turns single numbers into tuples and checks every value.

        Raises:
            ValueError: a value out of range; the sentence names the field, the value and the fix.
        """
        for name in ("n_beta", "localization", "step_size"):
            value = getattr(self, name)
            try:
                values = tuple(float(one) for one in np.atleast_1d(value))
            except (TypeError, ValueError, OverflowError):
                raise ValueError(f"{name}={checks.shown(value)} is no number; give one number or several.") from None
            object.__setattr__(self, name, values)
        _check_choices(self)
        _check_counts(self)
        _check_hyperparameters(self)
        _check_sampler(self)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The grid of settings, n_beta outermost."""
        grid = itertools.product(self.n_beta, self.localization, self.step_size)
        return tuple(Setting(n_beta=n, localization=g, step_size=e) for n, g, e in grid)


def _check_hyperparameters(config: SweepConfig) -> None:
    for name, least in (("n_beta", None), ("localization", None), ("step_size", 0.0)):
        values = getattr(config, name)
        if not values:
            raise ValueError(f"{name} is empty; give at least one number.")
        words = "a finite number, 0 or more" if least is None else "a finite number above 0"
        for value in values:
            checks.number(name, value, words, above=least)
    one = {
        "weight_decay": checks.number("weight_decay", config.weight_decay),
        "step_size_decay": checks.number("step_size_decay", config.step_size_decay, "between 0 (constant) and 1"),
        "step_size_decay_time": checks.number("step_size_decay_time", config.step_size_decay_time, above=0.0),
    }
    if one["step_size_decay"] > 1:
        raise ValueError(f"step_size_decay={one['step_size_decay']:g} must be between 0 (constant) and 1.")
    if config.box is not None:
        one["box"] = checks.number("box", config.box, "above 0 and finite; none leaves the parameters free", above=0.0)
    for name, value in one.items():  # numpy's numbers are no JSON
        object.__setattr__(config, name, value)
    if (config.init == "prior" or config.num_control_draws) and min(config.localization) == 0:
        raise ValueError(
            "localization=0 has no prior to draw from; "
            "give it a positive value, or use init='anchor' and num_control_draws=0."
        )


def _check_counts(config: SweepConfig) -> None:
    """Checks counts, and keeps numpy's as whole numbers of Python, as JSON knows those alone."""
    least = {
        "num_chains": 1,
        "num_draws": 1,
        "num_burnin_steps": 0,
        "num_steps_between_draws": 1,
        "batch_size": 1,
        "num_baseline_batches": 2,
        "eval_every": 0,
        "num_blocks": 1,
        "acceptance_every": 0,
        "num_control_draws": 0,
        "draws_per_chunk": 1,
        "runs_per_launch": 1,
        "microbatch_size": 1,
        "devices_per_run": 1,
        "chains_at_once": 1,
    }
    for name, bound in least.items():
        if (value := getattr(config, name)) is not None or name not in _MAY_BE_NONE:
            object.__setattr__(config, name, checks.count(name, value, bound))
    object.__setattr__(config, "seed", checks.count("seed", config.seed, 0, LARGEST_SEED))
    steps = config.num_burnin_steps + config.num_draws * config.num_steps_between_draws
    if steps > checks.MOST:
        raise ValueError(
            f"a chain of {steps:,} steps (burn-in, and num_draws times num_steps_between_draws) is too long; "
            f"it must have at most {checks.MOST:,}."
        )
    settings = math.prod(len(getattr(config, name)) for name in ("n_beta", "localization", "step_size"))
    if settings > MOST_SETTINGS:
        raise ValueError(f"the grid has {settings:,} settings; give at most {MOST_SETTINGS:,}.")


def _check_choices(config: SweepConfig) -> None:
    choices = {
        "sampler": tuple(SAMPLERS),
        "baseline": ("paired", "dataset"),
        "init": ("anchor", "prior"),
        "common": ("all", "batches", "none"),
        "reduce": ("none", "mean", "covariance"),
        "precision": ("highest", "tf32", "bf16"),
    }
    for name, allowed in choices.items():
        checks.one_of(name, getattr(config, name), allowed)
    for name in ("acceptance_on_all_data", "per_position"):
        object.__setattr__(config, name, checks.flag(name, getattr(config, name)))


def _check_sampler(config: SweepConfig) -> None:
    if config.acceptance_every and config.sampler != "sgld":
        raise ValueError(
            f"acceptance_every={config.acceptance_every} is for sgld; {config.sampler} makes other moves; set it to 0."
        )
    if config.step_size_decay and config.sampler not in DECAYING:
        raise ValueError(
            f"step_size_decay={config.step_size_decay:g} is for {', '.join(DECAYING)}; {config.sampler} takes one "
            "constant step size; set it to 0."
        )
    if config.box is not None and config.sampler == "sgnht":
        raise ValueError(
            f"box={config.box:g} does not go with sgnht, whose momentum it would not turn; set it to none."
        )
    options = sampler_options(config.sampler)
    checks.instance("sampler_options", config.sampler_options, dict, "a dict of numbers by name")
    for name in config.sampler_options:
        if name not in options:
            raise ValueError(
                f"sampler_options has {checks.shown(name)}, which {config.sampler} does not know; "
                f"its options are: {', '.join(options) or 'none'}."
            )
    numbers = {name: _option(name, value) for name, value in config.sampler_options.items()}
    object.__setattr__(config, "sampler_options", numbers)


def _option(name: str, value: Any) -> float:
    named = f"sampler_options[{name!r}]"
    if name == "num_leapfrog_steps":
        return checks.count(named, value, 1, MOST_LEAPS)
    if name in ("decay", "momentum") and checks.number(named, value, "from 0 to below 1") >= 1:
        raise ValueError(f"{named}={value:g} must be from 0 to below 1.")
    return checks.number(named, value)


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def fingerprint(*parts: Any) -> str:
    """A short hash of JSON values, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def array_digest(array: Any) -> str:
    """A hash of the bytes, shape and type of an array."""
    host = np.ascontiguousarray(array)
    return hashlib.sha256(f"{host.shape} {host.dtype}".encode() + host.tobytes()).hexdigest()[:16]
