"""What a device computes for its runs, traced: chains start, draw their batches, move and record.

A run is one (checkpoint, setting, chain). Data, anchors and hyperparameters enter as arguments, so one
compilation serves every launch and every chunk.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from llcjax import trees
from llcjax.chain import (
    ChainState,
    Draw,
    Recording,
    advance,
    prior_start,
    record_and_advance,
    scan_draws,
    start_chain,
)
from llcjax.data import batch_index, dataset_loss, draw_batch, losses_of_examples
from llcjax.observables import Moments, Watch, as_vector, measure
from llcjax.posterior import ExampleLosses, LocalPosterior, Loss
from llcjax.samplers import SAMPLERS, Sampler, langevin_acceptance, step_share
from llcjax.slices import Slices
from llcjax.types import Batch, LossFn, Observe, Params, PRNGKey

Part = Params | Slices | None
"""What is sampled: a mask for all runs, components from which each run takes one, or everything."""


class RunInputs(NamedTuple):
    """What distinguishes the runs of a launch; every leaf has the leading axis `run`."""

    group: Int[Array, " run"]
    """Index into the anchors of the launch."""
    stream: Int[Array, " run"]
    """Index into the shared batch streams (the chain); unused where every run has its own."""
    n_beta: Float[Array, " run"]
    localization: Float[Array, " run"]
    step_size: Float[Array, " run"]
    noise_root: Key[Array, " run"]
    init_root: Key[Array, " run"]
    decay: Float[Array, " run"] | None = None
    """Exponent of a decaying step size; None leaves the decay out of the program."""
    decay_time: Float[Array, " run"] | None = None
    component: Int[Array, " run"] | None = None
    """Which entries are sampled, where the runs differ in that."""

    def step_size_at(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The step size of one run at a step of its chain."""
        return self.step_size if self.decay is None else self.step_size * step_share(step, self.decay, self.decay_time)


class Target(NamedTuple):
    """What one run samples."""

    posterior: LocalPosterior
    """Over the sampled vector, where the runs sample components; over the parameters otherwise."""
    sampler: Sampler
    whole: Callable[[Params], Params]
    """All parameters from what the chain carries."""


class Drawn(NamedTuple):
    """Batches of a step."""

    batch: Batch
    index: Int[Array, "... example"] | None
    """Which examples they are, where their losses at the anchor are known."""


class Recorded(NamedTuple):
    """Draws of a chunk; every leaf has leading axes `(run, draw)`. NaN where nothing was evaluated."""

    draw: Draw
    full_loss: Float[Array, "run draw"] | None
    langevin: Acceptance | None
    moments: Moments | None = None
    """Of the observables over the draws of the chunk, where they are reduced: without the axis `draw`."""


class Acceptance(NamedTuple):
    """Probability with which MALA would accept the moves of SGLD."""

    batch: Float[Array, "run draw"]
    """Judged on the batch of the step."""
    full: Float[Array, "run draw"] | None
    """Judged on all examples, where that was asked for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """Everything that is compiled into a program; equal specs share one compilation."""

    loss_fn: LossFn
    draw: Callable[[PRNGKey], Batch] | None
    batch_size: int | None
    sampler: str
    sampler_options: tuple[tuple[str, float], ...]
    weight_decay: float
    box: float | None
    init: str
    precision: str
    num_steps_between_draws: int
    draws_per_chunk: int
    eval_every: int
    acceptance_every: int
    acceptance_on_all_data: bool
    paired: bool
    looks_up: bool
    """Whether the paired baseline is taken from the losses of all examples at the anchors, which are known."""
    per_position: bool
    observe: Observe | None
    reduce: str
    own_streams: bool
    """Whether each run has its own batches; otherwise runs of the same chain share them."""
    microbatch_size: int | None
    chains_at_once: int | None
    has_batches: bool
    """Whether batches are drawn at all; otherwise every step sees all examples."""


@dataclasses.dataclass(frozen=True, slots=True)
class Runs:
    """The traced functions of a spec; every argument and result is that of one device."""

    spec: ProgramSpec

    def start(self, anchors: Params, runs: RunInputs, part: Part) -> ChainState:
        """Starts the chains."""

        def start_one(run: RunInputs, anchor: Params) -> ChainState:
            target = self._target(run, anchor, part, jnp.int32(0))
            posterior = target.posterior
            begin = posterior.anchor if self.spec.init == "anchor" else prior_start(run.init_root, posterior)
            return start_chain(target.sampler, begin)

        anchor, axis = self._anchor_of_run(anchors, runs, part)
        return self._each_run(start_one, (0, axis))(runs, anchor)

    def _each_run(self, function: Callable, in_axes: tuple[int | None, ...]) -> Callable:
        """`jax.vmap` over the runs, or so many of them at once and the others after them."""
        at_once = self.spec.chains_at_once
        if at_once is None:
            return jax.vmap(function, in_axes=in_axes)

        def in_turn(*args: Any) -> Any:
            def one(own: tuple[Any, ...]) -> Any:
                left = iter(own)
                return function(*(arg if axis is None else next(left) for arg, axis in zip(args, in_axes, strict=True)))

            own = tuple(arg for arg, axis in zip(args, in_axes, strict=True) if axis is not None)
            return jax.lax.map(one, own, batch_size=None if at_once == 1 else at_once)

        return in_turn

    def _anchor_of_run(self, anchors: Params, runs: RunInputs, part: Part) -> tuple[Params, int | None]:
        """The anchors of the runs, and their axis; None where one is shared, or each run takes its own in its turn."""
        if isinstance(part, Slices):
            return trees.take(anchors, 0), None
        return (anchors, None) if self.spec.chains_at_once else (trees.take(anchors, runs.group), 0)

    def _target(self, run: RunInputs, anchor: Params, part: Part, step: Int[Array, ""]) -> Target:
        spec = self.spec
        if spec.chains_at_once and not isinstance(part, Slices):
            anchor = trees.take(anchor, run.group)  # only of the chains that step now
        loss_fn, start, mask, whole = spec.loss_fn, anchor, part, _same
        if isinstance(part, Slices):
            # The chain is the sampled vector alone; all else stays where the anchor has it.
            slices, component = part, run.component
            assert component is not None

            def whole(values: Params) -> Params:
                return slices.insert(anchor, component, values)

            def loss_fn(values: Params, batch: Batch) -> Any:
                return spec.loss_fn(whole(values), batch)

            start, mask = slices.take(anchor, component), slices.valid(anchor, component)
        posterior = LocalPosterior(
            loss_fn,
            start,
            run.n_beta,
            run.localization,
            spec.weight_decay,
            spec.box,
            mask,
            spec.microbatch_size,
        )
        sampler = SAMPLERS[spec.sampler](posterior, run.step_size_at(step), **dict(spec.sampler_options))
        return Target(posterior, sampler, whole)

    def advance(
        self,
        states: ChainState,
        anchors: Params,
        runs: RunInputs,
        part: Part,
        batch_roots: Key[Array, " stream"],
        arrays: Any,
        watch: Watch,
        anchor_losses: ExampleLosses | None,
        first_draw: Int[Array, ""],
    ) -> tuple[ChainState, Recorded]:
        """Advances the chains by a chunk of draws; `anchor_losses` has leading axes `(anchor, example)`."""
        spec = self.spec
        anchor_of_run, anchor_axis = self._anchor_of_run(anchors, runs, part)

        def over_runs(step_one_run: Callable, states: ChainState, step: Int[Array, ""]) -> Any:
            # Batches are drawn once a stream, outside the vmap over runs, and picked by index inside it.
            with jax.named_scope("batch"):
                batches, axis = self._batches(arrays, batch_roots, step)

            def one(run: RunInputs, anchor: Params, state: ChainState, drawn: Drawn) -> Any:
                target = self._target(run, anchor, part, step)
                if spec.has_batches and not spec.own_streams:
                    drawn = trees.take(drawn, run.stream)
                return step_one_run(run, target, jax.random.fold_in(run.noise_root, step), state, drawn)

            return self._each_run(one, (0, anchor_axis, 0, axis))(runs, anchor_of_run, states, batches)

        def record_one(run: RunInputs, target: Target, key: PRNGKey, state: ChainState, drawn: Drawn, step: Any) -> Any:
            def observe(params: Params) -> Any:
                per_position = spec.per_position
                whole = target.whole(params)
                return measure(spec.observe, spec.loss_fn, whole, watch.probes, per_position=per_position)

            recording = Recording(
                paired=spec.paired and not spec.looks_up,
                per_position=spec.per_position,
                observe=None if spec.observe is None and not watch.probes else observe,
            )
            moved, draw = record_and_advance(target.sampler, target.posterior, recording, key, state, step, drawn.batch)
            if anchor_losses is not None:
                row = 0 if isinstance(part, Slices) else run.group
                # In one gather: a row of all examples for every run would be large.
                draw = draw._replace(baseline_loss=anchor_losses.mean((row, drawn.index)))
            return moved, draw

        def record(states: ChainState, step: Int[Array, ""]) -> tuple[ChainState, Recorded]:
            full_loss = self._full_loss(states, anchor_of_run, anchor_axis, runs, part, arrays, step)
            moved, draw = over_runs(functools.partial(record_one, step=step), states, step)
            return moved, Recorded(draw, full_loss, self._acceptance(over_runs, states, moved, arrays, step))

        def move(states: ChainState, step: Int[Array, ""]) -> ChainState:
            return over_runs(
                lambda run, target, key, state, drawn: advance(target.sampler, key, state, step, drawn.batch)[0],
                states,
                step,
            )

        def scan(record: Callable, move: Callable, state: Any) -> Any:
            return scan_draws(
                record,
                move,
                state,
                first_draw,
                num_draws=spec.draws_per_chunk,
                num_steps_between_draws=spec.num_steps_between_draws,
            )

        moments = None
        if spec.reduce == "none":
            states, recorded = scan(record, move, states)
        else:
            (states, moments), recorded = scan(
                lambda carry, step: self._reduced(record, carry, step, watch),
                lambda carry, step: (move(carry[0], step), carry[1]),
                (states, self._no_moments(record, states)),
            )
        recorded = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), recorded)
        return states, recorded._replace(moments=moments)

    def _reduced(self, record: Callable, carry: Any, step: Int[Array, ""], watch: Watch) -> tuple[Any, Recorded]:
        """Records a draw, and its observables as their moments alone."""
        states, moments = carry
        states, recorded = record(states, step)
        counts = step < watch.num_draws * self.spec.num_steps_between_draws
        values = jax.vmap(as_vector)(recorded.draw.observed)
        moments = jax.vmap(lambda m, v: m.add(v, counts))(moments, values)
        return (states, moments), recorded._replace(draw=recorded.draw._replace(observed=None))

    def _no_moments(self, record: Callable, states: ChainState) -> Moments:
        observed = jax.eval_shape(lambda s: record(s, jnp.int32(0))[1].draw.observed, states)
        runs = jax.tree.leaves(observed)[0].shape[0]
        size = sum(leaf.size // runs for leaf in jax.tree.leaves(observed))
        none: Any = Moments.zeros(size, self.spec.reduce)  # ty: ignore[invalid-argument-type]
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (runs, *leaf.shape)), none)

    def _batches(self, arrays: Any, roots: Key[Array, " stream"], step: Int[Array, ""]) -> tuple[Drawn, int | None]:
        spec = self.spec
        if not spec.has_batches:
            return Drawn(arrays, None), None

        def draw(root: PRNGKey) -> Drawn:
            key = jax.random.fold_in(root, step)
            if not spec.looks_up:
                return Drawn(draw_batch(arrays, spec.draw, spec.batch_size, key), None)
            assert spec.batch_size is not None
            index = batch_index(arrays, spec.batch_size, key)
            return Drawn(trees.take(arrays, index), index)

        return jax.vmap(draw)(roots), 0 if spec.own_streams else None

    def _acceptance(
        self, over_runs: Callable, before: ChainState, after: ChainState, arrays: Any, step: Int[Array, ""]
    ) -> Acceptance | None:
        """Whether MALA would accept the move of this step, at every so many draws."""
        spec = self.spec
        if not spec.acceptance_every:
            return None
        with_full = spec.acceptance_on_all_data and spec.has_batches and spec.draw is None

        def one(run: RunInputs, target: Target, key: PRNGKey, pair: Any, drawn: Drawn) -> Any:
            del key
            posterior, step_size = target.posterior, run.step_size_at(step)
            judged = langevin_acceptance(posterior, step_size, *pair, drawn.batch)
            whole = posterior._replace(loss_fn=lambda p, data: self.dataset_loss(target.whole(p), data).mean)
            return Acceptance(judged, langevin_acceptance(whole, step_size, *pair, arrays) if with_full else None)

        pair = (before.sampler.params, after.sampler.params)
        blank = jnp.full(after.first_nonfinite_step.shape, jnp.nan)
        return self._every(
            spec.acceptance_every,
            step,
            lambda: over_runs(one, pair, step),
            lambda: Acceptance(blank, blank if with_full else None),
        )

    def _every(self, count: int, step: Int[Array, ""], evaluate: Callable[[], Any], blank: Callable[[], Any]) -> Any:
        """Evaluates at every `count`-th draw; a real branch, as the step is the same for all runs."""
        return jax.lax.cond((step // self.spec.num_steps_between_draws) % count == 0, evaluate, blank)

    def _full_loss(
        self,
        states: ChainState,
        anchors: Params,
        anchor_axis: int | None,
        runs: RunInputs,
        part: Part,
        arrays: Any,
        step: Int[Array, ""],
    ) -> Float[Array, " run"] | None:
        spec = self.spec
        if not spec.eval_every:
            return None

        def one(run: RunInputs, anchor: Params, params: Params) -> Array:
            return self.dataset_loss(self._target(run, anchor, part, step).whole(params), arrays).mean

        return self._every(
            spec.eval_every,
            step,
            lambda: self._each_run(one, (0, anchor_axis, 0))(runs, anchors, states.sampler.params),
            lambda: jnp.full(runs.group.shape, jnp.nan),
        )

    def dataset_loss(self, params: Params, arrays: Any) -> Loss:
        """L(w) over all examples."""
        return dataset_loss(self.spec.loss_fn, params, arrays, self.spec.batch_size)

    def example_losses(self, anchors: Params, arrays: Any) -> ExampleLosses:
        """Losses of all examples at the anchors, with leading axes `(anchor, example)`."""
        spec = self.spec
        assert spec.batch_size is not None
        block = min(spec.batch_size, spec.microbatch_size or spec.batch_size)
        return self._each_run(lambda anchor: losses_of_examples(spec.loss_fn, anchor, arrays, block), (0,))(anchors)


def _same(params: Params) -> Params:
    return params
