"""One Markov chain as a scan. Everything recorded of draw t belongs to w_t, before the update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llcjax import keys, trees
from llcjax.posterior import LocalPosterior
from llcjax.samplers.base import Sampler, SamplerState
from llcjax.types import Batch, Observe, Params, PRNGKey


class ChainState(NamedTuple):
    """What a chain carries from step to step."""

    sampler: SamplerState
    first_nonfinite_step: Int[Array, ""]
    """First step whose loss was NaN or infinite; -1 for none."""


class Draw(NamedTuple):
    """What is recorded of one draw; None where it was not asked for."""

    loss: Float[Array, ""]
    baseline_loss: Float[Array, ""] | None
    loss_position: Float[Array, " position"] | None
    baseline_loss_position: Float[Array, " position"] | None
    distance: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    acceptance: Float[Array, ""] | None
    observed: Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What to record of each draw, besides the loss and the distance from the anchor."""

    paired: bool = True
    """Also the loss of the anchor on the same batch."""
    per_position: bool = False
    """Also the loss of each position."""
    observe: Observe | None = None
    """Any function of the parameters."""


def start_chain(sampler: Sampler, params: Params) -> ChainState:
    """State of a chain that starts at `params`."""
    return ChainState(sampler.init(params), jnp.int32(-1))


def prior_start(key: PRNGKey, posterior: LocalPosterior) -> Params:
    """A draw from the localisation prior N(w*, 1/localization), to see convergence from above."""
    noise = posterior.sampled(trees.normal_like(key, posterior.anchor))
    scale = 1 / jnp.sqrt(jnp.asarray(posterior.localization))
    return posterior.confine(jax.tree.map(lambda anchor, xi: anchor + scale * xi, posterior.anchor, noise))


def advance(
    sampler: Sampler, key: PRNGKey, state: ChainState, step: Int[Array, ""], batch: Batch
) -> tuple[ChainState, Any]:
    """One step of the sampler; returns the new state and the sampler's info on the old position."""
    moved, info = sampler.step(key, state.sampler, batch)
    broke = (state.first_nonfinite_step < 0) & ~jnp.isfinite(info.loss.mean)
    return ChainState(moved, jnp.where(broke, step, state.first_nonfinite_step)), info


def record_and_advance(
    sampler: Sampler,
    posterior: LocalPosterior,
    recording: Recording,
    key: PRNGKey,
    state: ChainState,
    step: Int[Array, ""],
    batch: Batch,
) -> tuple[ChainState, Draw]:
    """Records w_t with the loss that the sampler computes anyway, then moves."""
    params = state.sampler.params
    baseline = posterior.loss(posterior.anchor, batch) if recording.paired else None
    observed = None if recording.observe is None else recording.observe(params)
    moved, info = advance(sampler, key, state, step, batch)
    with_positions = recording.per_position
    return moved, Draw(
        loss=info.loss.mean,
        baseline_loss=None if baseline is None else baseline.mean,
        loss_position=info.loss.position_mean if with_positions else None,
        baseline_loss_position=baseline.position_mean if with_positions and baseline is not None else None,
        distance=trees.distance(params, posterior.anchor),
        gradient_norm=info.gradient_norm,
        acceptance=info.acceptance,
        observed=observed,
    )


def scan_draws(
    record: Callable[[Any, Int[Array, ""]], tuple[Any, Any]],
    advance: Callable[[Any, Int[Array, ""]], Any],
    state: Any,
    first_draw: Int[Array, ""] | int,
    *,
    num_draws: int,
    num_steps_between_draws: int,
) -> tuple[Any, Any]:
    """Scans a number of draws; `record` takes the step of each draw, `advance` the steps between two draws.

    Draw d sits at step `d * num_steps_between_draws`; chains of any length are made of scans of one length.
    """

    def one_draw(state: Any, draw: Int[Array, ""]) -> tuple[Any, Any]:
        step = draw * num_steps_between_draws
        state, recorded = record(state, step)
        if num_steps_between_draws > 1:
            between = step + jnp.arange(1, num_steps_between_draws)
            state, _ = jax.lax.scan(lambda s, t: (advance(s, t), None), state, between)
        return state, recorded

    return jax.lax.scan(one_draw, state, first_draw + jnp.arange(num_draws, dtype=jnp.int32))


def num_recorded(num_draws: int, num_burnin_steps: int, num_steps_between_draws: int) -> int:
    """Number of recorded draws, burn-in included; the last `num_draws` of them start after the burn-in."""
    return -(-num_burnin_steps // num_steps_between_draws) + num_draws


def run_chain(
    key: PRNGKey | int,
    sampler: Sampler | Callable[[Int[Array, ""]], Sampler],
    posterior: LocalPosterior,
    draw_batch: Callable[[PRNGKey], Batch],
    *,
    num_draws: int,
    num_burnin_steps: int = 0,
    num_steps_between_draws: int = 1,
    chain: int = 0,
    init: str = "anchor",
    recording: Recording | None = None,
) -> tuple[ChainState, Draw]:
    """Runs one chain; jit it, or vmap it over keys, anchors or hyperparameters.

    Args:
        key: base key; the chain derives its own keys for batches and noise from it.
        sampler: a sampler of `posterior`, such as `sgld(posterior, step_size)`; or a function from the step of the
            chain to one, for a decaying step: `lambda t: sgld(posterior, step_size * step_share(t, 0.5, 100))`.
        posterior: the target; its anchor is where the chain starts.
        draw_batch: `(key) -> batch`.
        num_draws: draws recorded after the burn-in.
        num_burnin_steps: steps before them; recorded too, so that burn-in can be chosen again.
        num_steps_between_draws: steps from one draw to the next.
        chain: number of the chain; different chains see different batches and noise.
        init: `anchor`, or `prior` for a start from the localisation prior.
        recording: what to record; by default the loss, the paired baseline and the distance.

    Returns:
        The final state, and draws with a leading `draw` axis of
        `ceil(num_burnin_steps / num_steps_between_draws) + num_draws`.

    Raises:
        ValueError: a count below its least value, or an unknown `init`.
    """
    _check_counts(num_draws, num_burnin_steps, num_steps_between_draws, init)
    recording = recording or Recording()
    base = keys.as_key(key)
    roots = {purpose: keys.chain_key(base, purpose, chain, 0) for purpose in ("batch", "noise", "init")}
    start = posterior.anchor if init == "anchor" else prior_start(roots["init"], posterior)

    def at(step: Int[Array, ""]) -> Sampler:
        return sampler if isinstance(sampler, Sampler) else sampler(step)

    def inputs(step: Int[Array, ""]) -> tuple[PRNGKey, Batch]:
        return jax.random.fold_in(roots["noise"], step), draw_batch(jax.random.fold_in(roots["batch"], step))

    def record(state: ChainState, step: Int[Array, ""]) -> tuple[ChainState, Draw]:
        noise_key, batch = inputs(step)
        return record_and_advance(at(step), posterior, recording, noise_key, state, step, batch)

    def move(state: ChainState, step: Int[Array, ""]) -> ChainState:
        noise_key, batch = inputs(step)
        return advance(at(step), noise_key, state, step, batch)[0]

    total = num_recorded(num_draws, num_burnin_steps, num_steps_between_draws)
    return scan_draws(
        record,
        move,
        start_chain(at(jnp.int32(0)), start),
        0,
        num_draws=total,
        num_steps_between_draws=num_steps_between_draws,
    )


def _check_counts(num_draws: int, num_burnin_steps: int, num_steps_between_draws: int, init: str) -> None:
    if num_draws < 1 or num_burnin_steps < 0 or num_steps_between_draws < 1:
        raise ValueError(
            f"num_draws={num_draws}, num_burnin_steps={num_burnin_steps}, "
            f"num_steps_between_draws={num_steps_between_draws}: "
            "give at least 1 draw, 0 burn-in steps and 1 step between draws."
        )
    if init not in ("anchor", "prior"):
        raise ValueError(f"init={init!r} is unknown; choose 'anchor' or 'prior'.")
