"""Throughput of chains on this machine, against what its arithmetic and its memory can do: `llcjax bench`."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from llcjax import _compat
from llcjax.checkpoints import bank_of
from llcjax.config import Precision, SweepConfig
from llcjax.forecast import forecast
from llcjax.keys import as_key
from llcjax.models.attention_only import AttentionOnlyConfig, attention_only, attention_only_losses
from llcjax.models.icl_transformer import icl_transformer
from llcjax.models.kernels import Kernels
from llcjax.models.sizes import Activations
from llcjax.pipelines.regression import PRESETS
from llcjax.tasks.regression import squared_error
from llcjax.tasks.text import loss_of_next_tokens
from llcjax.trees import num_params
from llcjax.types import LossFn, Params

NUM_EXAMPLES = 8192
"""Examples of every workload; of the language model, whose examples are 1,024 tokens long, an eighth."""


class Workload(NamedTuple):
    """A model, its data and the batch that a chain step sees."""

    loss_fn: LossFn
    params: Params
    data: Any
    batch_size: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the first device does at its best, measured."""

    flops: float
    """Floating-point operations a second of a large matrix product at the precision of the workload."""
    bandwidth: float
    """Bytes a second, read and written, of a pass over a large array."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """One workload at one number of chains."""

    workload: str
    num_params: int
    runs: int
    """Chains at once, on all devices."""
    precision: str
    seconds: float
    """Of one step of one chain."""
    flops: float
    """Floating-point operations of the products of one step of one chain."""
    nbytes: float | None
    """Read and written by one step of one chain; None where the compiler does not say."""
    memory_bytes: int
    """Needed on each device."""

    @property
    def chain_steps(self) -> float:
        """Chain steps a second."""
        return 1 / self.seconds

    def share_of_product(self, ceilings: Ceilings) -> float:
        """Achieved arithmetic over that of a large matrix product on all devices."""
        return self.flops / self.seconds / (ceilings.flops * jax.local_device_count())

    def share_of_pass(self, ceilings: Ceilings) -> float | None:
        """Achieved traffic over that of a pass over memory on all devices."""
        rate = ceilings.bandwidth * jax.local_device_count()
        return None if self.nbytes is None else self.nbytes / self.seconds / rate


def _perceptron(widths: Sequence[int], batch_size: int) -> Workload:
    """A classifier with one hidden layer on random data."""

    def loss_fn(params: Params, batch: tuple[Array, Int[Array, " batch"]]) -> Float[Array, " batch"]:
        inputs, labels = batch
        hidden = jax.nn.relu(inputs @ params["w0"] + params["b0"])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["w1"] + params["b1"], labels)

    keys = jax.random.split(as_key(0), 4)
    params = {
        f"{name}{layer}": jax.random.normal(keys[layer], shape) / widths[layer] ** 0.5
        for layer in (0, 1)
        for name, shape in (("w", (widths[layer], widths[layer + 1])), ("b", (widths[layer + 1],)))
    }
    data = (
        jax.random.normal(keys[2], (NUM_EXAMPLES, widths[0])),
        jax.random.randint(keys[3], (NUM_EXAMPLES,), 0, widths[-1]),
    )
    return Workload(loss_fn, params, data, batch_size)


def _regression(kernels: Kernels = "xla", activations: Activations = "float32") -> Workload:
    """The transformer of arXiv 2402.02364 on in-context linear regression, untrained."""
    task, model = PRESETS["paper"].task, PRESETS["paper"].model
    init, apply = icl_transformer(model, task.num_tokens, task.token_width, kernels, activations)
    return Workload(squared_error(apply), init(as_key(0)), task.sample(as_key(1), NUM_EXAMPLES), 1024)


def _language(activations: Activations) -> Workload:
    """The language model of arXiv 2402.02364, untrained, on random tokens."""
    config = AttentionOnlyConfig()
    init, _ = attention_only(config, activations)
    shape = (NUM_EXAMPLES // 8, config.num_tokens)
    tokens = jax.random.randint(as_key(1), shape, 0, config.vocabulary)
    loss_fn = loss_of_next_tokens(attention_only_losses(config, activations))
    return Workload(loss_fn, init(as_key(0)), tokens, 100)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "toy": lambda: _perceptron((16, 16, 4), 256),
    "mlp": lambda: _perceptron((784, 64, 10), 1024),
    "regression": _regression,
    "regression-pallas": lambda: _regression("pallas"),
    "regression-bf16": lambda: _regression("xla", "bfloat16"),
    "regression-pallas-fp16": lambda: _regression("pallas", "float16"),
    "regression-pallas-bf16": lambda: _regression("pallas", "bfloat16"),
    "language": lambda: _language("float32"),
    "language-bf16": lambda: _language("bfloat16"),
}
"""340 parameters, where the host is the cost; 50,890, where matrix products are; 51,717, where attention is, in plain
jax or by the kernels of `llcjax.models.kernels`, with activations in float32, float16 or bfloat16; and 3,355,016 on
102,400 tokens, with kernels of ours on a GPU."""
ON_CPU = ("toy", "mlp", "regression")
"""Those for a CPU, which would interpret kernels, has no bfloat16 and is too slow for the language model."""


def _fills_a_device(name: str) -> bool:
    """Whether one chain of a workload nearly does."""
    return name.startswith("language")


def default_runs(name: str) -> tuple[int, ...]:
    """Numbers of chains that show the knee of a workload's curve on this device."""
    if jax.default_backend() == "cpu":
        return (4, 16, 64)
    return (1, 4, 16) if _fills_a_device(name) else (8, 32, 128, 512)


def default_draws(name: str) -> int:
    """Steps of a chunk of a workload, so many that the host's share is small."""
    return 20 if _fills_a_device(name) else 100


def own_precision(name: str) -> Precision:
    """That of the products of a workload where a device has several: the fastest that suits its activations."""
    if jax.default_backend() == "cpu":
        return "highest"
    return "bf16" if name.endswith("bf16") else "tf32"


def suitable_workloads() -> list[str]:
    """All workloads that this device is for."""
    return [name for name in WORKLOADS if jax.default_backend() == "gpu" or name in ON_CPU]


def check_workloads(names: Sequence[str]) -> None:
    """Refuses names that are no workload.

    Raises:
        ValueError: the sentence names those that there are.
    """
    for name in names:
        if name not in WORKLOADS:
            raise ValueError(f"workload={name!r} is unknown; choose one of {', '.join(WORKLOADS)}.")


def launch_config(work: Workload, runs: int, num_draws: int, precision: Precision) -> SweepConfig:
    """One launch of chains, one chunk of draws long, whose steps are a gradient and nothing else.

    L(w*) is one number for all draws, instead of a forward pass at each.
    """
    return SweepConfig(
        n_beta=(10.0,), localization=(100.0,), step_size=(1e-6,), num_chains=runs, num_draws=num_draws,
        baseline="dataset", batch_size=work.batch_size, precision=precision, runs_per_launch=runs,
        draws_per_chunk=num_draws,
    )  # fmt: skip


def throughput(
    name: str,
    runs: int,
    *,
    precision: Precision = "highest",
    num_draws: int = 100,
    repeats: int = 5,
    devices: list[jax.Device] | None = None,
) -> Throughput:
    """Times SGLD on a workload, warm, as a sweep runs it: batches drawn on the device, losses recorded.

    Args:
        name: a key of `WORKLOADS`.
        runs: chains at once.
        precision: of the matrix products.
        num_draws: steps of a chunk, between two visits of the host.
        repeats: chunks that are timed; the median counts.
        devices: that share the chains; None takes all local ones.

    Raises:
        ValueError: an unknown workload.

    Example:
        >>> throughput("huge", 4)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: workload='huge' is unknown; choose one of toy, mlp, regression, ...
    """
    check_workloads([name])
    work = WORKLOADS[name]()
    config = launch_config(work, runs, num_draws, precision)
    seen = forecast(work.loss_fn, bank_of(work.params), work.data, config, repeats=repeats, devices=devices)
    return Throughput(
        workload=name,
        num_params=num_params(work.params),
        runs=seen.plan.runs_per_launch,
        precision=precision,
        seconds=seen.seconds_per_step,
        flops=seen.step_flops,
        nbytes=seen.step_bytes,
        memory_bytes=seen.memory_bytes,
    )


_CALLS = 10
"""Of a product, or passes over memory, in one program that measures a ceiling."""


def ceilings(precision: Precision = "highest", repeats: int = 5) -> Ceilings:
    """Measures a large matrix product and a pass over a large array on the first device."""
    cpu = jax.default_backend() == "cpu"
    size, length = (1024, 2**25) if cpu else (8192, 2**28)
    with jax.default_matmul_precision(_compat.matmul_precision(precision)):
        square = jax.random.normal(as_key(0), (size, size)) / size**0.5
        product = _median_seconds(lambda a: square @ a, square, repeats)
    array = jnp.zeros(length, jnp.float32)
    nbytes = array.nbytes
    add = _median_seconds(lambda a: a + 1, array, repeats)
    return Ceilings(flops=2 * size**3 / product, bandwidth=2 * nbytes / add)


def _median_seconds(call: Callable[[Array], Array], value: Array, repeats: int) -> float:
    """Seconds of a call on its own result, several in a program, so that its start does not count."""
    # In place: a new array each time would measure the allocator.
    several = jax.jit(lambda a: jax.lax.fori_loop(0, _CALLS, lambda _, a: call(a), a), donate_argnums=0)
    value = jax.block_until_ready(several(value + 0))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = jax.block_until_ready(several(value))
        seconds.append((time.perf_counter() - start) / _CALLS)
    return statistics.median(seconds)


def rows(
    best: Ceilings,
    names: Sequence[str] = (),
    runs: Sequence[int] = (),
    *,
    precision: Precision = "highest",
    num_draws: int | None = None,
    repeats: int = 5,
) -> list[dict[str, Any]]:
    """A table of throughputs: what `llcjax bench` prints.

    Args:
        best: what the device does at that precision.
        names: workloads; none = all that suit the device.
        runs: numbers of chains; none = those that suit the device.
        precision: of the matrix products.
        num_draws: steps of a chunk; None = as many as suit the workload.
        repeats: chunks that are timed.
    """
    found = []
    for name in names or suitable_workloads():
        for count in runs or default_runs(name):
            draws = default_draws(name) if num_draws is None else num_draws
            one = throughput(name, count, precision=precision, num_draws=draws, repeats=repeats)
            of_pass = one.share_of_pass(best)
            found.append({
                "workload": name,
                "parameters": one.num_params,
                "chains at once": one.runs,
                "precision": precision,
                "chain-steps a second": one.chain_steps,
                "time a chain step (us)": 1e6 * one.seconds,
                "TFLOP/s": one.flops / one.seconds / 1e12,
                "of a product (%)": 100 * one.share_of_product(best),
                "GB/s": None if one.nbytes is None else one.nbytes / one.seconds / 1e9,
                "of a pass (%)": None if of_pass is None else 100 * of_pass,
                "memory (MiB)": one.memory_bytes / 2**20,
            })  # fmt: skip
    return found
