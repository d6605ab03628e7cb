"""The compiled program of a sweep: runs vmapped on a device and sharded over devices, a chunk of draws at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from llcjax import _compat, trees
from llcjax.chain import ChainState
from llcjax.data import pieces
from llcjax.posterior import ExampleLosses, Loss, evaluate
from llcjax.runs import ProgramSpec, Recorded, Runs
from llcjax.traffic import program_bytes
from llcjax.types import Batch, LossFn, Params, PRNGKey
from llcjax.work import Work, work_of

RUN = PartitionSpec("run")
SAME = PartitionSpec()
_BATCHES_A_CALL = 64
"""Of the loss over all examples."""


class Program:
    """Compiled functions of a spec on a mesh; `build` caches them."""

    def __init__(self, spec: ProgramSpec, mesh: Mesh) -> None:
        self.spec = spec
        self.mesh = mesh
        self.runs = Runs(spec)
        self._compiled: dict[Any, jax.stages.Compiled] = {}
        self._known: dict[Any, Any] = {}
        self.init_fn = jax.jit(_compat.shard_runs(self._start_cut, mesh, (SAME, RUN, SAME), RUN))
        stream_spec = RUN if spec.own_streams else SAME
        in_specs = (RUN, SAME, RUN, SAME, stream_spec, SAME, SAME, SAME, SAME)
        sharded = _compat.shard_runs(self._advance_cut, mesh, in_specs, (RUN, RUN))
        self.advance_fn = jax.jit(sharded, donate_argnums=0)
        self.loss_fn = jax.jit(self.runs.dataset_loss)
        self.example_losses_fn = jax.jit(self.runs.example_losses)

    def put(self, tree: Any, spec: PartitionSpec = SAME) -> Any:
        """Moves arrays to the devices of the mesh."""
        return jax.device_put(tree, NamedSharding(self.mesh, spec))

    def put_params(self, anchors: Params) -> Params:
        """Moves anchors to the devices, cut over the axis `model` where the mesh has one."""
        return jax.tree.map(lambda leaf: self.put(leaf, self._cut(leaf.shape, first=1)), anchors)

    def _cut(self, shape: tuple[int, ...], first: int = 0) -> PartitionSpec:
        """Where to cut an array over the axis `model`: its longest axis that can be cut evenly, from `first` on."""
        parts = self.mesh.shape.get("model", 1)
        fitting = [axis for axis in range(first, len(shape)) if shape[axis] % parts == 0 and shape[axis] >= parts]
        if parts == 1 or not fitting:
            return SAME
        longest = max(fitting, key=lambda axis: shape[axis])
        return PartitionSpec(*(["model" if axis == longest else None for axis in range(len(shape))]))

    def _all_cut(self, states: ChainState) -> ChainState:
        """Keeps what the chains carry cut over the axis `model` (traced; leading axis `run`)."""
        if "model" not in self.mesh.shape:
            return states
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self._cut(x.shape, first=1)), states)

    def _start_cut(self, *args: Any) -> ChainState:
        return self._all_cut(self.runs.start(*args))

    def _advance_cut(self, states: ChainState, *args: Any) -> tuple[ChainState, Recorded]:
        states, recorded = self.runs.advance(self._all_cut(states), *args)
        return self._all_cut(states), recorded

    def init(self, *args: Any) -> ChainState:
        """Starts the chains of a launch: `(anchors, runs, part) -> states`."""
        return self._compile("init", self.init_fn, *args)(*args)

    def advance(self, *args: Any) -> tuple[ChainState, Recorded]:
        """Runs one chunk: `(states, *shared, first_draw) -> (states, recorded)`, see `Runs.advance`."""
        return self._compile("advance", self.advance_fn, *args)(*args)

    def memory_bytes(self, *args: Any) -> int:
        """Bytes that one chunk needs on each device, from its compilation."""
        facts: Any = self._compile("advance", self.advance_fn, *args).memory_analysis()
        return int(
            facts.temp_size_in_bytes
            + facts.argument_size_in_bytes
            + facts.output_size_in_bytes
            - facts.alias_size_in_bytes
        )

    def step_bytes(self, *args: Any) -> float | None:
        """Bytes that a step of all chains reads and writes on each device, but for those of kernels.

        A loop counts once, which makes one step of a chunk where each is recorded, and else two. A loop in a loss
        counts once too.
        """
        found = program_bytes(self._compile("advance", self.advance_fn, *args))
        return None if found is None else found / min(2, self.spec.num_steps_between_draws)

    def text(self, *args: Any) -> str:
        """The compiled instructions of one chunk."""
        return self._compile("advance", self.advance_fn, *args).as_text() or ""

    def dataset_loss(self, params: Params, arrays: Any) -> Loss:
        """L(w*) over all examples, some batches at a time, so that signals are heeded between them."""
        batch_size = self.spec.batch_size
        parts = pieces(arrays, None if batch_size is None else _BATCHES_A_CALL * batch_size)
        with self._precision():
            losses = [jax.block_until_ready(self.loss_fn(params, part)) for part in parts]
        return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *losses)

    def example_losses(self, anchors: Params, arrays: Any) -> ExampleLosses:
        """Losses of all examples at the anchors, with leading axes `(anchor, example)`, on the host."""
        batch_size, size = self.spec.batch_size, jax.tree.leaves(arrays)[0].shape[0]
        assert batch_size is not None
        losses = []
        for start in range(0, size, _BATCHES_A_CALL * batch_size):
            stop = min(start + _BATCHES_A_CALL * batch_size, size)
            first = min(start, stop - batch_size)  # a whole batch at least
            with self._precision():
                found = jax.device_get(self.example_losses_fn(anchors, trees.take(arrays, np.s_[first:stop])))
            losses.append(jax.tree.map(lambda leaf, extra=start - first: leaf[:, extra:], found))
        return jax.tree.map(lambda *parts: np.concatenate(parts, 1), *losses)

    def known(self, name: str, find: Callable[..., Any], *args: Any) -> Any:
        """What depends on the shapes of some arguments alone, such as counts and other shapes, found once."""
        key = (name, _shapes(args))
        if key not in self._known:
            with self._precision():  # kernels are taken by it
                self._known[key] = find(*args)
        return self._known[key]

    def _compile(self, name: str, function: Any, *args: Any) -> jax.stages.Compiled:
        key = (name, _shapes(args))
        if key not in self._compiled:
            with self._precision():
                lowered = function.lower(*args)
                self._compiled[key] = lowered.compile(_compat.compiler_options(lowered, self._platform()))
        return self._compiled[key]

    def _platform(self) -> str:
        platform = self.mesh.devices.flat[0].platform
        return "gpu" if platform in ("cuda", "rocm") else platform

    def _precision(self) -> Any:
        return jax.default_matmul_precision(_compat.matmul_precision(self.spec.precision, self._platform()))


def _shapes(args: Any) -> str:
    return str(jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), args))


@functools.lru_cache(maxsize=64)
def build(spec: ProgramSpec, mesh: Mesh) -> Program:
    """The program of a spec; a second call with an equal spec compiles nothing."""
    return Program(spec, mesh)


@functools.partial(jax.jit, static_argnums=(0, 1))
def sampled_losses(
    loss_fn: LossFn, draw: Callable[[PRNGKey], Batch], params: Params, batch_keys: Key[Array, " batch"]
) -> Loss:
    """Losses of `params` on batches from a function, with a leading batch axis."""
    return jax.lax.map(lambda key: evaluate(loss_fn, params, draw(key)), batch_keys)


def loss_work(loss_fn: LossFn, params: Params, batch: Batch, *, paired: bool) -> Work:
    """What a loss and its gradient (and the paired baseline) have to do on one batch.

    Args:
        loss_fn: the loss.
        params: parameters.
        batch: a batch or its shapes.
        paired: adds the loss of the anchor.
    """

    def step(params: Params, batch: Batch) -> Any:
        gradient = jax.value_and_grad(lambda p: evaluate(loss_fn, p, batch).mean)(params)
        return gradient, evaluate(loss_fn, params, batch).mean if paired else None

    return work_of(step, params, batch)
