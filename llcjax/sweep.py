"""The batched, sharded, resumable sweep: every checkpoint x setting x chain as one flat axis of runs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Key

from llcjax import _compat, chain, keys, program, trees
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig, as_dict, fingerprint
from llcjax.data import DataSource, check_batch_size, data_source, example_batch
from llcjax.interrupt import Interrupted, StopRequest
from llcjax.plan import Plan, make_plan
from llcjax.posterior import check_loss_shape
from llcjax.program import RUN, Program, ProgramSpec, Recorded, RunInputs
from llcjax.progress import SweepProgress, SweepStats
from llcjax.provenance import provenance
from llcjax.store import SweepStore, is_sweep, open_sweep
from llcjax.types import LossFn, Observe, PRNGKey

GROUP_DIMS = ("checkpoint", "setting")
DRAW_DIMS = ("checkpoint", "setting", "chain", "draw")


def sweep(
    loss_fn: LossFn,
    bank: CheckpointBank,
    data: Any,
    config: SweepConfig | None = None,
    *,
    out: Path | str | None = None,
    key: PRNGKey | int | None = None,
    observe: Observe | None = None,
    chance: float | None = None,
    attrs: dict[str, Any] | None = None,
    on_chunk: Callable[[SweepStats], None] | None = None,
    devices: list[jax.Device] | None = None,
    save_every_seconds: float = 120.0,
    progress: bool = False,
) -> xr.Dataset:
    """Samples the local posterior at every checkpoint of a bank, at every setting, with several chains.

    Args:
        loss_fn: `(params, batch) -> losses`, see `llcjax.types.LossFn`.
        bank: the checkpoints.
        data: arrays with a leading example axis, a function `(key) -> batch`, or None for a loss without data.
        config: hyperparameters and counts.
        out: folder of the store. An unfinished sweep of the same config there is resumed, a finished one is
            returned. None keeps the store in memory.
        key: base key; None takes `config.seed`.
        observe: any function of the parameters to record at each draw (an array or a dict of arrays).
        chance: loss of a trivial predictor, for the verdicts.
        attrs: further facts to store.
        on_chunk: called with `SweepStats` after each chunk.
        devices: devices to share the runs; None takes all local ones.
        save_every_seconds: time between two saves of the chains' state.
        progress: shows a progress bar.

    Returns:
        Facts with dimensions `(checkpoint, setting, chain, draw[, position])`; see `llcjax.open_sweep`.

    Raises:
        ValueError: bad input, before anything is computed.
        Interrupted: Ctrl-C; what was drawn is in the store and the same call goes on.
    """
    config = config or SweepConfig()
    source = data_source(data)
    has_positions = _check(loss_fn, bank, source, config)
    base = keys.as_key(config.seed if key is None else key)
    job = _Job(
        loss_fn=loss_fn,
        bank=bank,
        source=source,
        config=config,
        base=base,
        observe=observe,
        per_position=config.per_position and has_positions,
        mesh=_compat.run_mesh(devices),
    )
    store = _open_or_create(job, out, chance, attrs)
    _write_init_losses(job, store)
    _run(job, store, on_chunk, save_every_seconds, progress)
    return store.open() if out is None else open_sweep(out)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """The fixed facts of one sweep."""

    loss_fn: LossFn
    bank: CheckpointBank
    source: DataSource
    config: SweepConfig
    base: Key[Array, ""]
    observe: Observe | None
    per_position: bool
    mesh: jax.sharding.Mesh

    @property
    def num_groups(self) -> int:
        """(checkpoint, setting) pairs."""
        return len(self.bank) * len(self.config.settings)

    @property
    def num_recorded(self) -> int:
        """Draws of a chain, burn-in included."""
        config = self.config
        return chain.num_recorded(config.num_draws, config.num_burnin_steps, config.num_steps_between_draws)

    @property
    def own_streams(self) -> bool:
        """Whether each run has its own batches."""
        return keys.depends_on_checkpoint(self.config.common, "batch")

    @property
    def has_batches(self) -> bool:
        """Whether steps see minibatches at all."""
        arrays = self.source.num_examples is not None and self.config.batch_size is not None
        return self.source.is_function or arrays

    def program(self, draws_per_chunk: int) -> Program:
        """The compiled program."""
        config = self.config
        spec = ProgramSpec(
            loss_fn=self.loss_fn,
            draw=self.source.draw,
            batch_size=config.batch_size,
            sampler=config.sampler,
            init=config.init,
            precision=config.precision,
            num_steps_between_draws=config.num_steps_between_draws,
            draws_per_chunk=draws_per_chunk,
            eval_every=config.eval_every,
            paired=config.baseline == "paired",
            per_position=self.per_position,
            observe=self.observe,
            own_streams=self.own_streams,
            has_batches=self.has_batches,
        )
        return program.build(spec, self.mesh)


def _check(loss_fn: LossFn, bank: CheckpointBank, source: DataSource, config: SweepConfig) -> bool:
    """Refuses bad input before anything is computed; returns whether the loss has positions."""
    _compat.check_device()
    check_batch_size(source, config.batch_size)
    if source.is_function and config.baseline == "dataset" and config.num_baseline_batches is None:
        raise ValueError(
            "baseline='dataset' needs num_baseline_batches where data is a function; give it, or use baseline='paired'."
        )
    if config.eval_every and source.num_examples is None:
        raise ValueError(f"eval_every={config.eval_every} needs data as arrays; give arrays, or set it to 0.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(bank.params):
        finite = np.isfinite(np.asarray(leaf)).reshape(len(bank), -1).all(1)
        if not finite.all():
            step = bank.steps[int(np.argmin(finite))]
            raise ValueError(
                f"the parameters of step {step} contain NaN or inf at {jax.tree_util.keystr(path)}; "
                "leave this checkpoint out of the bank."
            )
    return check_loss_shape(loss_fn, bank.checkpoint(0), example_batch(source, config.batch_size))


def _identity(job: _Job) -> str:
    """What makes two sweeps the same sweep: bank, data and every setting that changes the numbers."""
    free = dataclasses.replace(job.config, draws_per_chunk=1, runs_per_launch=None)
    data = [[list(leaf.shape), str(leaf.dtype), float(jnp.sum(leaf))] for leaf in jax.tree.leaves(job.source.arrays)]
    seed = jax.random.key_data(job.base).tolist()
    return fingerprint(as_dict(free), job.bank.fingerprint(), data, seed)


def _open_or_create(
    job: _Job, out: Path | str | None, chance: float | None, attrs: dict[str, Any] | None
) -> SweepStore:
    path = None if out is None else Path(out)
    identity = _identity(job)
    if path is not None and is_sweep(path):
        store = SweepStore.reopen(path)
        if store.group.attrs["fingerprint"] != identity:
            raise ValueError(
                f"out={path} holds a sweep of another config, bank or data; choose another folder or remove it."
            )
        return store
    config = job.config
    facts: dict[str, Any] = {
        "config": json.dumps(as_dict(config)),
        "bank": json.dumps(job.bank.config),
        "provenance": json.dumps(provenance()),
        "fingerprint": identity,
        "num_burnin_steps": config.num_burnin_steps,
        "num_params": trees.num_params(job.bank.checkpoint(0)),
        "wall_seconds": 0.0,
        **(attrs or {}),
    }
    if job.source.num_examples is not None:
        facts["num_examples"] = job.source.num_examples
    if chance is not None:
        facts["chance"] = float(chance)
    store = SweepStore.create(path, coords=_coords(job), attrs=facts)
    _allocate(job, store)
    return store


def _coords(job: _Job) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    settings = job.config.settings
    hyper = {
        name: (("setting",), np.array([getattr(setting, name) for setting in settings]))
        for name in ("n_beta", "localization", "step_size")
    }
    return {
        "checkpoint": (("checkpoint",), job.bank.steps),
        "setting": (("setting",), np.arange(len(settings))),
        "chain": (("chain",), np.arange(job.config.num_chains)),
        "draw": (("draw",), np.arange(job.num_recorded) * job.config.num_steps_between_draws),
        **hyper,
    }


def _allocate(job: _Job, store: SweepStore) -> None:
    """Makes room for everything a chunk returns, whose shapes one traced chunk tells."""
    groups = (len(job.bank), len(job.config.settings))
    chains, draws = job.config.num_chains, job.num_recorded
    block = min(draws, job.config.draws_per_chunk)
    shapes = jax.eval_shape(lambda: _one_chunk_of_two_runs(job))
    for name, leaf in _named(shapes).items():
        extra = leaf.shape[2:]
        dims = (*DRAW_DIMS, *_extra_dims(name, len(extra)))
        shape, chunks = (*groups, chains, draws, *extra), (1, 1, chains, block, *extra)
        fill = float("nan") if np.issubdtype(leaf.dtype, np.floating) else 0
        store.allocate(name, dims, shape, chunks, str(leaf.dtype), fill)
        if "position" in dims:
            store.put("position", ("position",), np.arange(1, extra[0] + 1))
    store.allocate("first_nonfinite_step", (*GROUP_DIMS, "chain"), (*groups, chains), (1, 1, chains), "int32", -1)
    store.allocate("num_draws_done", GROUP_DIMS, groups, groups, "int32", 0)


def _extra_dims(name: str, count: int) -> tuple[str, ...]:
    if name.endswith("_position"):
        return ("position",)
    return tuple(f"{name}_{axis}" for axis in range(count))


def _one_chunk_of_two_runs(job: _Job) -> Recorded:
    """A tiny chunk, traced for its shapes only."""
    groups = np.zeros(1, np.int64)
    anchors, runs, roots = _inputs(job, groups, 2)
    tiny = job.program(1)
    states = tiny._init(anchors, runs)
    return tiny._advance(states, anchors, runs, roots, job.source.arrays, jnp.int32(0))[1]


def _named(recorded: Any) -> dict[str, Any]:
    """The arrays of a chunk by the names that they have in the store."""
    draw = recorded.draw._asdict()
    observed = draw.pop("observed")
    named = {**draw, "full_loss": recorded.full_loss}
    if isinstance(observed, dict):
        named.update(observed)
    else:
        named["observed"] = observed
    return {name: leaf for name, leaf in named.items() if leaf is not None}


def _inputs(job: _Job, groups: np.ndarray, num_runs: int) -> tuple[Any, RunInputs, Key[Array, " stream"]]:
    """Anchors, runs and batch streams of a launch; runs beyond the last group repeat the first ones."""
    config, settings = job.config, job.config.settings
    checkpoints, setting_of_group = np.divmod(groups, len(settings))
    run = np.arange(num_runs) % (len(groups) * config.num_chains)
    group, chain_of_run = np.divmod(run, config.num_chains)
    steps = job.bank.steps[checkpoints[group]]
    hyper = [settings[s] for s in setting_of_group[group]]

    def column(name: str) -> np.ndarray:
        return np.array([getattr(setting, name) for setting in hyper], np.float32)

    def roots(purpose: keys.Purpose, chains: np.ndarray, steps: np.ndarray) -> Key[Array, " run"]:
        return keys.chain_keys(job.base, purpose, chains, steps, config.common)

    runs = RunInputs(
        group=group.astype(np.int32),
        stream=chain_of_run.astype(np.int32),
        n_beta=column("n_beta"),
        localization=column("localization"),
        step_size=column("step_size"),
        noise_root=roots("noise", chain_of_run, steps),
        init_root=roots("init", chain_of_run, steps),
    )
    chains = np.arange(config.num_chains)
    own = job.own_streams
    streams = roots("batch", chain_of_run, steps) if own else roots("batch", chains, np.zeros_like(chains))
    return trees.take(job.bank.params, checkpoints), runs, streams


def _write_init_losses(job: _Job, store: SweepStore) -> None:
    """L(w*) of every checkpoint over all examples (or many batches), where the estimate needs it."""
    if (job.config.baseline == "paired" and not job.config.eval_every) or "init_loss" in store.group:
        return
    if job.source.is_function:
        _write_sampled_init_losses(job, store)
        return
    compiled = job.program(1)
    arrays = compiled.put(job.source.arrays)
    losses = [compiled.dataset_loss(job.bank.checkpoint(i), arrays) for i in range(len(job.bank))]
    if losses[0].position_total is not None:
        positions = np.stack([np.asarray(loss.position_mean) for loss in losses])
        store.put("init_loss_position", ("checkpoint", "position"), positions)
    store.put("init_loss_stderr", ("checkpoint",), np.zeros(len(losses), np.float32))
    store.put("init_loss", ("checkpoint",), np.array([float(loss.mean) for loss in losses], np.float32))


def _write_sampled_init_losses(job: _Job, store: SweepStore) -> None:
    count = job.config.num_baseline_batches or 0
    root = keys.chain_key(job.base, "baseline", 0, 0)
    batch_keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(count))
    draw = job.source.draw
    assert draw is not None
    params = [job.bank.checkpoint(i) for i in range(len(job.bank))]
    means = np.stack([np.asarray(program.sampled_losses(job.loss_fn, draw, p, batch_keys).mean) for p in params])
    store.put("init_loss_stderr", ("checkpoint",), means.std(1, ddof=1) / np.sqrt(count))
    store.put("init_loss", ("checkpoint",), means.mean(1))


class _Writer:
    """Writes chunks to the store and keeps count of what was done."""

    def __init__(self, job: _Job, store: SweepStore, on_chunk: Callable[[SweepStats], None] | None) -> None:
        self.job, self.store, self.on_chunk = job, store, on_chunk
        self.done = store.read("num_draws_done").reshape(-1)
        self.started, self.steps = time.monotonic(), 0
        self.wall_before = float(store.group.attrs["wall_seconds"])

    def write(self, groups: np.ndarray, first_draw: int, states_info: np.ndarray, recorded: Recorded) -> None:
        """Writes one chunk of a launch: first the draws, then how many there are."""
        config = self.job.config
        chains, total = config.num_chains, self.job.num_recorded
        last = min(first_draw + recorded.draw.loss.shape[1], total)
        named = {name: np.asarray(leaf) for name, leaf in _named(recorded).items()}
        for position, (checkpoint, setting) in enumerate(self._indices(groups)):
            rows = slice(position * chains, (position + 1) * chains)
            for name, values in named.items():
                self.store.write(
                    name, (checkpoint, setting, slice(None), slice(first_draw, last)), values[rows, : last - first_draw]
                )
            self.store.write("first_nonfinite_step", (checkpoint, setting), states_info[rows])
        self.done[groups] = last
        self.store.write("num_draws_done", (slice(None), slice(None)), self.done.reshape(self._shape))
        self.steps += (last - first_draw) * config.num_steps_between_draws * len(groups) * chains
        self._report(groups, named)

    def finish(self) -> None:
        """Notes the time that the sweep has taken so far."""
        if self.steps:
            self.store.group.attrs["wall_seconds"] = self.wall_before + time.monotonic() - self.started

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.job.bank), len(self.job.config.settings)

    def _indices(self, groups: np.ndarray) -> Iterator[tuple[int, int]]:
        return zip(*(part.tolist() for part in np.divmod(groups, self._shape[1])), strict=True)

    def _report(self, groups: np.ndarray, named: dict[str, np.ndarray]) -> None:
        if self.on_chunk is None:
            return
        chains, settings = self.job.config.num_chains, self.job.config.settings
        runs = len(groups) * chains
        llc = np.full(runs, np.nan)
        if "baseline_loss" in named:
            excess = named["loss"][:runs] - named["baseline_loss"][:runs]
        else:
            anchors = self.store.read("init_loss")[groups // len(settings)]
            excess = named["loss"][:runs] - np.repeat(anchors, chains)[:, None]
        n_beta = np.repeat([settings[s].n_beta for s in groups % len(settings)], chains)
        with np.errstate(invalid="ignore"):
            llc = n_beta * excess.mean(1)
        finite = llc[np.isfinite(llc)]
        elapsed = max(time.monotonic() - self.started, 1e-9)
        self.on_chunk(
            SweepStats(
                draws_done=int(self.done.sum()) * chains,
                total_draws=self.job.num_groups * chains * self.job.num_recorded,
                runs_done=int((self.done >= self.job.num_recorded).sum()) * chains,
                num_runs=self.job.num_groups * chains,
                chain_steps_per_second=self.steps / elapsed,
                llc_low=float(finite.min()) if finite.size else float("nan"),
                llc_high=float(finite.max()) if finite.size else float("nan"),
            )
        )


def _run(
    job: _Job,
    store: SweepStore,
    on_chunk: Callable[[SweepStats], None] | None,
    save_every_seconds: float,
    progress: bool,
) -> None:
    """Runs what is missing, launch by launch."""
    writer = _Writer(job, store, None)
    chains = job.config.num_chains
    total = job.num_groups * chains * job.num_recorded
    with (
        SweepProgress(total, int(writer.done.sum()) * chains, enabled=progress) as bar,
        StopRequest() as stop,
    ):

        def report(stats: SweepStats) -> None:
            bar.update(stats)
            if on_chunk is not None:
                on_chunk(stats)

        writer.on_chunk = report
        try:
            for launch in _launches(job, store, writer.done):
                launch.run(writer, stop, save_every_seconds)
        finally:
            writer.finish()


def _launches(job: _Job, store: SweepStore, done: np.ndarray) -> Iterator[_Launch]:
    """The launches that are left: first the one in flight, then the groups that were never finished."""
    saved = store.load_state()
    missing = np.flatnonzero(done < job.num_recorded)
    if saved is not None and not np.isin(saved[0], missing).all():
        saved = None
    fresh = missing if saved is None else np.setdiff1d(missing, saved[0])
    if not missing.size:
        store.drop_state()
        return
    plan = _plan(job, fresh if fresh.size else missing)
    if saved is not None:
        groups, draws_done, leaves = saved
        yield _Launch(job, store, plan, groups, draws_done, leaves)
    for start in range(0, len(fresh), plan.groups_per_launch):
        yield _Launch(job, store, plan, fresh[start : start + plan.groups_per_launch], 0, None)


def _plan(job: _Job, groups: np.ndarray) -> Plan:
    """Plans the launches, measuring memory on the programs that will run."""
    config = job.config
    chunk = -(-job.num_recorded // -(-job.num_recorded // config.draws_per_chunk))
    compiled = job.program(chunk)

    def memory(count: int, num_runs: int) -> int:
        return compiled.memory_bytes(*_launch_args(job, compiled, groups[:count], num_runs))

    return make_plan(
        config,
        num_groups=len(groups),
        num_recorded=job.num_recorded,
        num_devices=job.mesh.size,
        memory=memory,
    )


def _launch_args(job: _Job, compiled: Program, groups: np.ndarray, num_runs: int) -> tuple[Any, ...]:
    anchors, runs, streams = _inputs(job, groups, num_runs)
    anchors, runs = compiled.put(anchors), compiled.put(runs, RUN)
    streams = compiled.put(streams, RUN if job.own_streams else program.SAME)
    arrays = compiled.put(job.source.arrays)
    return compiled.init(anchors, runs), anchors, runs, streams, arrays, compiled.put(np.int32(0))


class _Launch:
    """Some groups, run together chunk by chunk."""

    def __init__(
        self,
        job: _Job,
        store: SweepStore,
        plan: Plan,
        groups: np.ndarray,
        draws_done: int,
        leaves: list[np.ndarray] | None,
    ) -> None:
        self.store, self.groups, self.draws_done, self.plan = store, groups, draws_done, plan
        self.total = job.num_recorded
        self.compiled = job.program(plan.draws_per_chunk)
        # The last launch is as wide as the others, so that one program serves all.
        self.padded = np.resize(groups, max(len(groups), plan.groups_per_launch))
        num_runs = max(plan.runs_per_launch, len(groups) * plan.num_chains)
        self.states, *self.args, _ = _launch_args(job, self.compiled, self.padded, num_runs)
        if leaves is not None:
            structure = jax.tree.structure(self.states)
            self.states = self.compiled.put(jax.tree.unflatten(structure, leaves), RUN)

    def run(self, writer: _Writer, stop: StopRequest, save_every_seconds: float) -> None:
        """Runs all chunks; the host writes one while the devices compute the next."""
        saved_at = time.monotonic()
        pending: tuple[int, np.ndarray, Recorded] | None = None
        while self.draws_done < self.total:
            first = self.draws_done
            self.states, recorded = self.compiled.advance(
                self.states, *self.args, self.compiled.put(np.int32(first))
            )
            nonfinite = jnp.copy(self.states.first_nonfinite_step)
            jax.tree.map(lambda leaf: leaf.copy_to_host_async(), recorded)
            if pending is not None:
                writer.write(self.groups, *pending)
            pending = (first, nonfinite, recorded)
            self.draws_done = min(first + self.plan.draws_per_chunk, self.total)
            due = time.monotonic() - saved_at >= save_every_seconds
            if (due or stop.requested) and self.draws_done < self.total:
                writer.write(self.groups, first, np.asarray(nonfinite), recorded)
                pending, saved_at = None, time.monotonic()
                self._save()
            if stop.requested:
                break
        if pending is not None:
            writer.write(self.groups, pending[0], np.asarray(pending[1]), pending[2])
        if self.draws_done >= self.total:
            self.store.drop_state()
        if stop.requested and not (writer.done >= self.total).all():
            raise Interrupted(f"the sweep stopped at {int(writer.done.sum()) / (writer.done.size * self.total):.0%}")

    def _save(self) -> None:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.states)]
        self.store.save_state(self.groups, self.draws_done, leaves)

