"""Training as a pure, jitted loop between snapshots; several seeds train together, vmapped."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from llcjax import keys, trees
from llcjax.checkpoints import CheckpointBank, remove_tree, restore_tree, save_tree
from llcjax.config import array_digest, as_dict, fingerprint
from llcjax.interrupt import StopRequest
from llcjax.output_folder import only_run, write_text, writing_to
from llcjax.posterior import evaluate
from llcjax.progress import TrainProgress
from llcjax.samplers.transforms import stateless
from llcjax.types import Batch, InitFn, LossFn, Params, PRNGKey
from llcjax.untrusted import read_json
from llcjax.watchdog import Watchdog


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a model is trained; the defaults are the regression paper's (arXiv 2402.02364, appendix E.2)."""

    num_steps: int = 500_000
    """Optimiser updates."""
    batch_size: int = 256
    """Fresh examples an update."""
    optimizer: str = "adam"
    """Name of an optimiser in optax."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    schedule: Literal["triangular", "constant"] = "triangular"
    """`triangular` rises linearly from nearly 0 to the peak at half time and falls back."""
    weight_decay: float = 0.0
    """Coefficient of weights added to the gradient (for optimisers named *w, their decoupled decay)."""
    gradient_noise: float = 0.0
    """Standard deviation of Gaussian noise added to each gradient entry."""
    num_seeds: int = 1
    """Models trained side by side, from seeds seed, seed + 1, ..."""
    seed: int = 0
    """First seed of initialisation and data."""
    num_log_checkpoints: int = 100
    """Log-spaced snapshots from 1 to num_steps, before duplicates are removed."""
    num_linear_checkpoints: int = 100
    """Evenly spaced snapshots from 0 to num_steps; the union of both is kept."""

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            ValueError: a value out of range, or an optimiser that optax does not have.
        """
        for name in ("num_steps", "batch_size", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("learning_rate", "weight_decay", "gradient_noise", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more.")
        if min(self.num_log_checkpoints, self.num_linear_checkpoints) < 0 or self.snapshot_steps().size == 0:
            raise ValueError("num_log_checkpoints and num_linear_checkpoints must leave at least one snapshot.")
        if not callable(getattr(optax, self.optimizer, None)):
            raise ValueError(f"optimizer={self.optimizer!r} is not in optax; give a name such as adam, sgd or adamw.")
        if self.schedule not in ("triangular", "constant"):
            raise ValueError(f"schedule={self.schedule!r} is unknown; choose triangular or constant.")

    def snapshot_steps(self) -> Int[np.ndarray, " checkpoint"]:
        """The union of log-spaced and evenly spaced steps: 190 of them for the paper's counts."""
        log = np.geomspace(1, self.num_steps, self.num_log_checkpoints)
        linear = np.linspace(0, self.num_steps, self.num_linear_checkpoints)
        return np.unique(np.floor(np.concatenate([log, linear]) + 1e-6).astype(np.int64))


_TRUSTED = ("identity", "after", "digest")


class TrainState(NamedTuple):
    """What training carries from step to step."""

    params: Params
    optimizer: optax.OptState


class Segment(NamedTuple):
    """Snapshots between two saves, each leaf with leading axes `(checkpoint, seed)`."""

    params: Params
    train_loss: Float[np.ndarray, "checkpoint seed"]


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """The learning rate as a function of the step, as PyTorch's OneCycleLR with linear annealing."""
    if config.schedule == "constant":
        return optax.constant_schedule(config.learning_rate)
    lowest = config.learning_rate / max(config.num_steps / 2 - 1, 1)
    half = max(config.num_steps // 2, 1)
    rise = optax.linear_schedule(lowest, config.learning_rate, half)
    # PyTorch divides the start by its final_div_factor once more.
    fall = optax.linear_schedule(
        config.learning_rate, lowest / max(config.num_steps / 2 - 1, 1), max(config.num_steps - half, 1)
    )
    return optax.join_schedules([rise, fall], [half])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """The optax optimiser of a config; its update takes `key=` for the gradient noise."""
    build = getattr(optax, config.optimizer)
    schedule = learning_rate_schedule(config)
    before: list[optax.GradientTransformation] = []
    if config.gradient_noise:
        before.append(_add_gradient_noise(config.gradient_noise))
    if "weight_decay" in inspect.signature(build).parameters:
        # Also where it is 0: optax's own defaults are not.
        return optax.chain(*before, build(schedule, weight_decay=config.weight_decay))
    if config.weight_decay:
        before.append(optax.add_decayed_weights(config.weight_decay))
    return optax.chain(*before, build(schedule))


def _add_gradient_noise(spread: float) -> optax.GradientTransformationExtraArgs:
    """Isotropic Gaussian noise on the gradient, of its own for each of the vmapped seeds."""

    def move(updates: Params, params: Params, key: PRNGKey) -> Params:
        del params
        return jax.tree.map(lambda u, xi: u + spread * xi, updates, trees.normal_like(key, updates))

    return stateless(move)


def train(
    init: InitFn,
    loss_fn: LossFn,
    sample: Callable[..., Batch],
    config: TrainConfig,
    *,
    data: Any = None,
    work_dir: Path | str | None = None,
    save_every_seconds: float = 20.0,
    progress: bool = True,
    provenance: dict[str, Any] | None = None,
) -> list[CheckpointBank]:
    """Trains one model a seed on fresh data and returns a bank of snapshots a seed.

    Args:
        init: `key -> params`.
        loss_fn: the loss, see `llcjax.types.LossFn`.
        sample: `(key, batch_size) -> batch`, or `(key, batch_size, data) -> batch` where there are data; called inside
            the compiled step.
        config: how to train.
        data: pytree of arrays that `sample` takes batches from. They stay on the device, as an argument of the compiled
            program; `provenance` should hold a hash of them, since nothing else tells one training from another.
        work_dir: folder for resumable state. If it holds an unfinished run of the same config, training goes on
            from there and ends with bitwise the same parameters. It is left in place; `finish_training` removes it.
        save_every_seconds: least time between two saves of state (a save waits for the next snapshot).
        progress: shows a progress bar.
        provenance: facts to keep in the banks beside the config.

    Returns:
        One bank a seed. Step s of a bank has made s updates; step 0 is the initialisation.

    Raises:
        ValueError: `work_dir` holds a run of another config.
        RuntimeError: another run holds `work_dir`; the sentence names its process and host.
        OSError: the disk is full or `work_dir` is read-only; what was saved is kept and the same call goes on.
        Interrupted: Ctrl-C or SIGTERM; the state up to the last snapshot is saved where `work_dir` is given.
    """
    folder = None if work_dir is None else Path(work_dir).absolute()
    with contextlib.nullcontext() if folder is None else only_run(folder):
        return _train(init, loss_fn, sample, config, data, folder, save_every_seconds, progress, provenance)


def _train(
    init: InitFn,
    loss_fn: LossFn,
    sample: Callable[..., Batch],
    config: TrainConfig,
    data: Any,
    folder: Path | None,
    save_every_seconds: float,
    progress: bool,
    provenance: dict[str, Any] | None,
) -> list[CheckpointBank]:
    """`train`, once nobody else can write to its folder."""
    steps = config.snapshot_steps()
    optimizer = make_optimizer(config)
    seeds = np.arange(config.seed, config.seed + config.num_seeds)
    held = () if data is None else (jax.tree.map(jnp.asarray, data),)
    advance = _make_advance(loss_fn, sample, optimizer, config.batch_size)
    saver = _Saver(folder, fingerprint(as_dict(config), provenance), save_every_seconds)
    position, segments, leaves = saver.restore()
    state = jax.jit(jax.vmap(lambda seed: _start(init, optimizer, seed)))(seeds)
    if leaves is not None:
        state = jax.tree.unflatten(jax.tree.structure(state), [jnp.asarray(leaf) for leaf in leaves])
    pending: list[tuple[Params, np.ndarray]] = []
    before = int(steps[position - 1]) if position else 0
    with (
        TrainProgress(int(steps[-1]), before, enabled=progress) as bar,
        StopRequest() as stop,
        Watchdog("the steps to the next snapshot", "what was saved is kept") as watchdog,
    ):
        for index in range(position, len(steps)):
            with watchdog.waiting(int(steps[index]) - before):
                state, loss = advance(state, seeds, before, int(steps[index]), held)
                pending.append((jax.device_get(state.params), np.asarray(loss)))
            before = int(steps[index])
            bar.update(before, float(np.nanmean(pending[-1][1])) if before else None)
            if saver.due(last=index + 1 == len(steps), stopping=stop.requested):
                segments.append(saver.save(index + 1, _segment(pending), state))
                pending = []
            if stop.requested and index + 1 < len(steps):
                raise stop.stopped(f"training stopped at step {before} of {steps[-1]}")
    if pending:
        segments.append(_segment(pending))
    return _banks(steps, segments, config, provenance)


def _start(init: InitFn, optimizer: optax.GradientTransformation, seed: Int[Array, ""]) -> TrainState:
    params = init(jax.random.fold_in(keys.as_key(0), 2 * seed))
    return TrainState(params, optimizer.init(params))


def _make_advance(
    loss_fn: LossFn,
    sample: Callable[..., Batch],
    optimizer: optax.GradientTransformationExtraArgs,
    batch_size: int,
) -> Callable[..., tuple[TrainState, Float[Array, " seed"]]]:
    """Compiles `(state, seeds, start, stop, data) -> (state, mean loss)` once for segments of every length."""

    def update(state: TrainState, key: PRNGKey, data: tuple[Any, ...]) -> tuple[TrainState, Float[Array, ""]]:
        batch_key, noise_key = jax.random.split(key)
        batch = sample(batch_key, batch_size, *data)
        loss, gradient = jax.value_and_grad(lambda p: evaluate(loss_fn, p, batch).mean)(state.params)
        updates, carried = optimizer.update(gradient, state.optimizer, state.params, key=noise_key)
        return TrainState(optax.apply_updates(state.params, updates), carried), loss

    def segment(
        state: TrainState, seed: Array, start: Array, stop: Array, data: tuple[Any, ...]
    ) -> tuple[TrainState, Array]:
        root = jax.random.fold_in(keys.as_key(0), 2 * seed + 1)

        def body(step: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, total = carry
            state, loss = update(state, jax.random.fold_in(root, step), data)
            return state, total + loss

        state, total = jax.lax.fori_loop(start, stop, body, (state, jnp.float32(0)))
        return state, total / (stop - start)

    return jax.jit(jax.vmap(segment, in_axes=(0, 0, None, None, None)), donate_argnums=0)


def _segment(pending: list[tuple[Params, np.ndarray]]) -> Segment:
    return Segment(trees.stack([params for params, _ in pending]), np.stack([loss for _, loss in pending]))


def _banks(
    steps: np.ndarray, segments: list[Segment], config: TrainConfig, provenance: dict[str, Any] | None
) -> list[CheckpointBank]:
    params, losses = trees.concatenate(segments)
    facts = {"train": as_dict(config), **(provenance or {})}
    return [
        CheckpointBank(
            params=jax.tree.map(lambda leaf, s=seed: leaf[:, s], params),
            steps=steps,
            config={**facts, "model_seed": config.seed + seed},
            metrics={"train_loss": losses[:, seed]},
        )
        for seed in range(config.num_seeds)
    ]


class _Saver:
    """Saves segments of snapshots with the training state, so that a killed run can go on.

    `segment_P` holds the snapshots up to number P, `segment_P.json` what makes it trusted: the segment before it and a
    hash of its arrays. Nothing is kept in one place alone, so a torn file costs what came after it and no more.
    """

    def __init__(self, folder: Path | None, identity: str, every_seconds: float) -> None:
        self.folder = folder
        self.identity = identity
        self.every_seconds = every_seconds
        self.saved_at = time.monotonic()
        self.position = 0

    def due(self, *, last: bool, stopping: bool) -> bool:
        """Whether the snapshots taken since the last save should be saved now."""
        waited = time.monotonic() - self.saved_at >= self.every_seconds
        return self.folder is not None and (last or stopping or waited)

    def save(self, position: int, segment: Segment, state: TrainState) -> Segment:
        """Saves a segment; what makes it trusted comes last."""
        assert self.folder is not None
        leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        tree = {"params": segment.params, "train_loss": segment.train_loss, "state": leaves}
        facts = {"identity": self.identity, "after": self.position, "digest": _digest(tree)}
        with writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_tree(tree, self.folder / f"segment_{position}")
            write_text(self.folder / f"segment_{position}.json", json.dumps(facts))
        self.saved_at, self.position = time.monotonic(), position
        return segment

    def restore(self) -> tuple[int, list[Segment], list[np.ndarray] | None]:
        """Number of snapshots that are saved without a gap, their segments, and the leaves of the training state."""
        trusted, leaves = [], None
        for position, facts in self._saved():
            tree = self._read(position, facts) if facts["after"] == self.position else None
            if tree is not None:
                self.position = position
                trusted.append(Segment(tree["params"], tree["train_loss"]))
                leaves = [tree["state"][str(i)] for i in range(len(tree["state"]))]
        return self.position, trusted, leaves

    def _saved(self) -> list[tuple[int, dict[str, Any]]]:
        """Positions of the segments, in order, with what makes each trusted; a torn file makes none trusted."""
        found = []
        for path in self.folder.glob("segment_*.json") if self.folder is not None else ():
            with contextlib.suppress(ValueError, TypeError, LookupError):
                facts = read_json(path)
                found.append((int(path.stem.removeprefix("segment_")), {name: facts[name] for name in _TRUSTED}))
        if any(facts["identity"] != self.identity for _, facts in found):
            raise ValueError(f"{self.folder} holds training of another config; choose another folder or remove it.")
        return sorted(found, key=lambda saved: saved[0])

    def _read(self, position: int, facts: dict[str, Any]) -> dict[str, Any] | None:
        """A segment as it was saved; None where it is not there, torn or altered."""
        assert self.folder is not None
        try:
            tree = restore_tree(self.folder / f"segment_{position}")
        except ValueError:
            tree = None
        if tree is not None and _digest(tree) == facts["digest"]:
            return tree
        warnings.warn(
            f"{self.folder}/segment_{position} is torn; training goes on from before it.", RuntimeWarning, stacklevel=2
        )
        return None


def _digest(tree: Any) -> str:
    """A hash of names, shapes, types and values of the arrays of a pytree, whatever containers hold them."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return fingerprint(sorted([trees.path_name(path), array_digest(leaf)] for path, leaf in found))


def finish_training(work_dir: Path | str) -> None:
    """Removes the resumable state, once the banks are saved."""
    remove_tree(Path(work_dir))
