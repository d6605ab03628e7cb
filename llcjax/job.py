"""The fixed facts of one sweep, and what they make: the program and the inputs of a launch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from llcjax import chain, keys, trees
from llcjax.checkpoints import CheckpointBank
from llcjax.config import Setting, SweepConfig
from llcjax.data import DataSource, example_batch
from llcjax.observables import Watch
from llcjax.plan import even_parts
from llcjax.posterior import ExampleLosses
from llcjax.program import RUN, SAME, Program, build, loss_work
from llcjax.runs import Part, ProgramSpec, RunInputs
from llcjax.slices import Components
from llcjax.types import Batch, LossFn, Observe, Params
from llcjax.work import Work


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The fixed facts of one sweep."""

    loss_fn: LossFn
    bank: CheckpointBank
    source: DataSource
    config: SweepConfig
    base: Key[Array, ""]
    observe: Observe | None
    per_position: bool
    per_example: bool
    """Whether the loss tells the examples of a batch apart."""
    mesh: jax.sharding.Mesh
    mask: Params | None = None
    components: Components | None = None
    """The components of a refined sweep; each makes the grid of settings once more."""
    probes: dict[str, Batch] = dataclasses.field(default_factory=dict)
    """Fixed batches whose losses are recorded at every draw."""

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings of the store: the grid of the config, once for each component, component outermost."""
        return self.config.settings * (1 if self.components is None else len(self.components.names))

    @property
    def component_of_setting(self) -> np.ndarray:
        """Number of the component of each setting; 0 where there are none."""
        return np.arange(len(self.settings)) // len(self.config.settings)

    @property
    def table_of_setting(self) -> np.ndarray:
        """Number of the table of entries of each setting; 0 where there are no components."""
        return self._by_setting("table")

    @property
    def row_of_setting(self) -> np.ndarray:
        """Row of each setting in its table."""
        return self._by_setting("row")

    def _by_setting(self, name: Literal["table", "row"]) -> np.ndarray:
        if self.components is None:
            return np.zeros(len(self.settings), int)
        return getattr(self.components, name)[self.component_of_setting]

    def part(self, group: int) -> Part:
        """What is sampled in the launch of a group."""
        if self.components is None:
            return self.mask
        return self.components.tables[self.table_of_setting[group % len(self.settings)]]

    def alike(self, groups: np.ndarray) -> list[np.ndarray]:
        """Groups that may share a launch: of one checkpoint, which then is held once, and of one table of entries."""
        if self.components is None:
            return [groups]
        checkpoint, setting = np.divmod(groups, len(self.settings))
        kind = checkpoint * len(self.components.tables) + self.table_of_setting[setting]
        return [groups[kind == one] for one in np.unique(kind)]

    def width(self, group: int, at_once: int) -> int:
        """Groups in a launch like that of a group, however many are missing, so that one program serves all."""
        if self.components is None:
            return at_once
        tables = self.table_of_setting
        return even_parts(int((tables == tables[group % len(tables)]).sum()), at_once)

    def cuts(self, groups: np.ndarray, at_once: int) -> Iterator[np.ndarray]:
        """Groups cut into launches."""
        for whole in self.alike(groups):
            width = self.width(int(whole[0]), at_once)
            for start in range(0, len(whole), width):
                yield whole[start : start + width]

    @property
    def num_groups(self) -> int:
        """(checkpoint, setting) pairs."""
        return len(self.bank) * len(self.settings)

    @property
    def num_devices(self) -> int:
        """Devices, or groups of devices that share a run, among which the runs are dealt out."""
        return self.mesh.shape["run"]

    @property
    def num_recorded(self) -> int:
        """Draws of a chain, burn-in included."""
        config = self.config
        return chain.num_recorded(config.num_draws, config.num_burnin_steps, config.num_steps_between_draws)

    @property
    def draws_per_chunk(self) -> int:
        """Draws between two visits of the host, evened out so that the last chunk has little surplus."""
        at_once = self.config.draws_per_chunk
        if self.config.reduce != "none":  # a block of moments is a chunk
            at_once = -(-self.num_recorded // self.config.num_blocks)
        return even_parts(self.num_recorded, at_once)

    @property
    def watch(self) -> Watch:
        """What the observables need at run time."""
        return Watch(self.probes, jnp.int32(self.num_recorded))

    @property
    def own_streams(self) -> bool:
        """Whether each run has its own batches."""
        return keys.depends_on_checkpoint(self.config.common, "batch")

    @property
    def has_batches(self) -> bool:
        """Whether steps see minibatches at all."""
        arrays = self.source.num_examples is not None and self.config.batch_size is not None
        return self.source.is_function or arrays

    @property
    def looks_up(self) -> bool:
        """Whether L(w*) on the batch of a draw is looked up among the losses of all examples.

        These are computed once a checkpoint, where that is at most half of the work of computing it at every draw, and
        where the loss tells examples apart.
        """
        config, num_examples = self.config, self.source.num_examples
        if config.baseline != "paired" or self.per_position or num_examples is None or config.batch_size is None:
            return False
        draws = config.num_chains * len(self.settings) * self.num_recorded
        return self.per_example and 2 * num_examples <= draws * config.batch_size

    def step_work(self) -> Work:
        """What one step of one chain has to do."""
        config = self.config
        paired = config.baseline == "paired" and not self.looks_up
        count = functools.partial(loss_work, self.loss_fn, paired=paired)
        batch = example_batch(self.source, config.batch_size)
        return self.program().known("work", count, self.bank.checkpoint(0), batch)

    def program(self, draws_per_chunk: int | None = None) -> Program:
        """The compiled program, of chunks of a given length or of the sweep's own."""
        config = self.config
        spec = ProgramSpec(
            loss_fn=self.loss_fn,
            draw=self.source.draw,
            batch_size=config.batch_size,
            sampler=config.sampler,
            sampler_options=tuple(sorted(config.sampler_options.items())),
            weight_decay=config.weight_decay,
            box=config.box,
            init=config.init,
            precision=config.precision,
            num_steps_between_draws=config.num_steps_between_draws,
            draws_per_chunk=draws_per_chunk or self.draws_per_chunk,
            eval_every=config.eval_every,
            acceptance_every=config.acceptance_every,
            acceptance_on_all_data=config.acceptance_on_all_data,
            paired=config.baseline == "paired",
            looks_up=self.looks_up,
            per_position=self.per_position,
            observe=self.observe,
            reduce=config.reduce,
            own_streams=self.own_streams,
            microbatch_size=config.microbatch_size,
            chains_at_once=config.chains_at_once,
            has_batches=self.has_batches,
        )
        return build(spec, self.mesh)


def launch_inputs(job: Job, groups: np.ndarray, num_runs: int) -> tuple[Any, RunInputs, Key[Array, " stream"]]:
    """Anchors, runs and batch streams of a launch; runs beyond the last group repeat the first ones."""
    config, settings = job.config, job.settings
    checkpoints, setting_of_group = np.divmod(groups, len(settings))
    run = np.arange(num_runs) % (len(groups) * config.num_chains)
    group, chain_of_run = np.divmod(run, config.num_chains)
    steps = job.bank.steps[checkpoints[group]]
    hyper = [settings[s] for s in setting_of_group[group]]

    def column(name: str) -> Array:
        return jnp.array([getattr(setting, name) for setting in hyper], jnp.float32)

    def roots(purpose: keys.Purpose, chains: np.ndarray, steps: np.ndarray) -> Key[Array, " run"]:
        return keys.chain_keys(job.base, purpose, chains, steps, config.common)

    runs = RunInputs(
        group=jnp.asarray(group, jnp.int32),
        stream=jnp.asarray(chain_of_run, jnp.int32),
        n_beta=column("n_beta"),
        localization=column("localization"),
        step_size=column("step_size"),
        noise_root=roots("noise", chain_of_run, steps),
        init_root=roots("init", chain_of_run, steps),
        decay=jnp.full(num_runs, config.step_size_decay, jnp.float32) if config.step_size_decay else None,
        decay_time=jnp.full(num_runs, config.step_size_decay_time, jnp.float32) if config.step_size_decay else None,
        component=None
        if job.components is None
        else jnp.asarray(job.row_of_setting[setting_of_group[group]], jnp.int32),
    )
    chains = np.arange(config.num_chains)
    own = job.own_streams
    streams = roots("batch", chain_of_run, steps) if own else roots("batch", chains, np.zeros_like(chains))
    if job.components is not None:
        checkpoints = checkpoints[:1]
    return job.bank.rows(checkpoints), runs, streams


def launch_args(
    job: Job, compiled: Program, groups: np.ndarray, num_runs: int, anchor_losses: AnchorLosses | None = None
) -> tuple[Any, ...]:
    """The arguments of `Program.advance` for some groups, on the devices; the chains are at their start.

    Without `anchor_losses` the losses of examples at the anchors are zeros, which is enough to plan and to time.
    """
    anchors, runs, streams = launch_inputs(job, groups, num_runs)
    anchors, runs = compiled.put_params(anchors), compiled.put(runs, RUN)
    streams = compiled.put(streams, RUN if job.own_streams else SAME)
    arrays, part = compiled.put(job.source.arrays), compiled.put(job.part(int(groups[0])))
    states = compiled.init(anchors, runs, part)
    losses = blank_losses(job, compiled, anchors, arrays)
    if losses is not None and anchor_losses is not None:
        losses = anchor_losses.of(compiled, anchors, groups, arrays)
    watch, first_draw = compiled.put(job.watch), compiled.put(np.int32(0))
    return states, anchors, runs, part, streams, arrays, watch, compiled.put(losses), first_draw


def blank_losses(job: Job, compiled: Program, anchors: Params, arrays: Any) -> ExampleLosses | None:
    """Zeros in the shape of `AnchorLosses.of`, in no time; None where the baseline is not looked up."""
    if not job.looks_up:
        return None
    found = jax.eval_shape(compiled.runs.example_losses, anchors, arrays)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), found)


class AnchorLosses:
    """Losses of all examples at the anchors of launches, kept for the next launch, which may share checkpoints."""

    def __init__(self, job: Job) -> None:
        self._num_settings = len(job.settings)
        self._held: dict[int, ExampleLosses] = {}

    def of(self, compiled: Program, anchors: Params, groups: np.ndarray, arrays: Any) -> ExampleLosses:
        """Losses at the anchors of a launch of some groups, with leading axes `(anchor, example)`, on the host."""
        checkpoints = (groups // self._num_settings)[: len(jax.tree.leaves(anchors)[0])]
        distinct, first = np.unique(checkpoints, return_index=True)
        held = {one: self._held[one] for one in distinct.tolist() if one in self._held}
        if missing := [place for place in sorted(first.tolist()) if int(checkpoints[place]) not in held]:
            # Without a copy of the anchors where all are needed.
            needed = anchors if len(missing) == len(checkpoints) else trees.take(anchors, np.array(missing))
            losses = compiled.example_losses(needed, arrays)
            held |= {int(checkpoints[place]): trees.take(losses, row) for row, place in enumerate(missing)}
        self._held = held
        return trees.stack([held[one] for one in checkpoints.tolist()])
