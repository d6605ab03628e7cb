"""Runs in the environment of blackjax: its SGLD on a small network, chains under vmap and steps in a scan.

blackjax has no LLC, so the chains are written as its documentation advises: a compiled scan under vmap, with batches
drawn on the device inside it. Its SGLD returns parameters only; so the gradient is taken outside, together with the
loss, and handed to its step, which saves a forward pass. Its step size is half of ours.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.worker import serve

Params = dict[str, jax.Array]
Example = tuple[jax.Array, jax.Array]


def perceptron_loss(params: Params, example: Example) -> jax.Array:
    """Cross-entropy of one hidden layer of rectified linear units."""
    inputs, label = example
    hidden = jax.nn.relu(inputs @ params["w0"] + params["b0"])
    return -jax.nn.log_softmax(hidden @ params["w1"] + params["b1"])[label]


def transformer_loss(params: Params, example: Example, *, num_heads: int, num_blocks: int) -> jax.Array:
    """Squared error of `llcjax.models.icl_transformer` with the paper's options, mean over positions."""

    def norm(x: jax.Array, name: str) -> jax.Array:
        centred = x - jnp.mean(x, -1, keepdims=True)
        unit = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + 1e-5)
        return unit * params[f"{name}/scale"] + params[f"{name}/bias"]

    def dense(x: jax.Array, name: str) -> jax.Array:
        return x @ params[f"{name}/kernel"] + params.get(f"{name}/bias", 0)

    def attention(x: jax.Array, name: str) -> jax.Array:
        query, key, value = jnp.split(dense(x, f"{name}/qkv").reshape(len(x), num_heads, -1), 3, -1)
        scores = jnp.einsum("qhc,khc->hqk", query, key) / math.sqrt(query.shape[-1])
        weights = jax.nn.softmax(jnp.where(jnp.tri(len(x), dtype=bool), scores, -jnp.inf))
        return dense(jnp.einsum("hqk,khc->qhc", weights, value).reshape(x.shape), f"{name}/output")

    tokens, targets = example
    x = dense(tokens, "embed") + params["positions"]
    for block in (f"blocks/{number}" for number in range(num_blocks)):
        attended = x + attention(norm(x, f"{block}/attention_norm"), f"{block}/attention")
        hidden = jax.nn.relu(dense(norm(attended, f"{block}/mlp_norm"), f"{block}/mlp_in"))
        x = x + attended + dense(hidden, f"{block}/mlp_out")
    outputs = dense(norm(x, "final_norm"), "unembed")
    return jnp.mean(jnp.square(outputs[::2, 0] - targets))


Loss = Callable[[Params, Example], jax.Array]


@functools.partial(jax.jit, static_argnums=0)
def mean_loss(loss_fn: Loss, params: Params, examples: Example) -> jax.Array:
    """Mean over examples."""
    return jnp.mean(jax.vmap(loss_fn, (None, 0))(params, examples))


@functools.partial(jax.jit, static_argnames=("loss_fn", "num_chains", "num_steps", "batch_size"))
def losses(
    loss_fn: Loss,
    anchor: Params,
    data: Example,
    key: jax.Array,
    numbers: dict[str, float],
    *,
    num_chains: int,
    num_steps: int,
    batch_size: int,
) -> jax.Array:
    """Loss of every chain at every step, `(chain, step)`."""

    def log_prior(position: Params) -> jax.Array:
        away = jax.tree.map(lambda one, other: jnp.sum(jnp.square(one - other)), position, anchor)
        return -numbers["localization"] / 2 * sum(jax.tree.leaves(away))

    def log_density(position: Params, batch: Example) -> tuple[jax.Array, jax.Array]:
        loss = mean_loss(loss_fn, position, batch)
        return log_prior(position) - numbers["n_beta"] * loss, loss

    sgld = blackjax.sgld(lambda position, gradient: gradient)

    def step(position: Params, step_key: jax.Array) -> tuple[Params, jax.Array]:
        batch_key, noise_key = jax.random.split(step_key)
        rows = jax.random.randint(batch_key, (batch_size,), 0, len(data[0]))
        batch = jax.tree.map(lambda array: array[rows], data)
        gradient, loss = jax.grad(log_density, has_aux=True)(position, batch)
        return sgld.step(noise_key, position, gradient, numbers["step_size"] / 2), loss

    def chain(chain_key: jax.Array) -> jax.Array:
        return jax.lax.scan(step, sgld.init(anchor), jax.random.split(chain_key, num_steps))[1]

    return jax.vmap(chain)(jax.random.split(key, num_chains))


@functools.lru_cache(maxsize=1)  # the same function again, or it would be compiled again
def network(name: str, file: str) -> tuple[Loss, Params, Example, float]:
    """Loss, parameters, data and L(w*) in float32, on the device."""
    arrays = dict(np.load(file))
    num_heads, *data = (arrays.pop(part, 0) for part in ("num_heads", "inputs", "targets"))
    loss_fn = perceptron_loss
    if name == "icl_transformer":
        num_blocks = len({part.split("/")[1] for part in arrays if part.startswith("blocks/")})
        loss_fn = functools.partial(transformer_loss, num_heads=int(num_heads), num_blocks=num_blocks)
    params, examples = jax.device_put((arrays, tuple(data)))
    with jax.default_matmul_precision("highest"):
        return loss_fn, params, examples, float(mean_loss(loss_fn, params, examples))


def solve(job: dict[str, Any]) -> dict[str, float]:
    """LLC of one network and the seconds that it took."""
    loss_fn, params, data, loss_at_start = network(job["model"], job["file"])
    burnin = job["num_burnin_steps"]
    with jax.default_matmul_precision("tensorfloat32" if job["precision"] == "tf32" else "highest"):
        start = time.perf_counter()
        at_start = mean_loss(loss_fn, params, data)
        numbers = {name: job[name] for name in ("n_beta", "localization", "step_size")}
        found = losses(
            loss_fn, params, data, jax.random.key(job["seed"]), numbers, num_chains=job["num_chains"],
            num_steps=burnin + job["num_draws"], batch_size=job["batch_size"],
        )  # fmt: skip
        llc = float(job["n_beta"] * (jnp.mean(found[:, burnin:]) - at_start))
        seconds = time.perf_counter() - start
    return {"llc": llc, "seconds": seconds, "loss at start": loss_at_start}


if __name__ == "__main__":
    serve(solve, ("blackjax", "jax"), device=jax.default_backend())
