"""What attention heads look at: spread, variability, and attention to chosen places (arXiv 2402.02364, appendix D.3.5).

The formulas are those of the paper's code, for each block, head and token.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from llcjax import trees
from llcjax.checkpoints import CheckpointBank
from llcjax.types import Params

LONG_NAMES = {
    "attention_entropy": "entropy of attention over that of even attention",
    "attention_variability": "variability of attention between sequences",
    "attention_self": "attention to the token itself",
    "attention_previous": "attention to the token before",
    "attention_x": "attention to tokens that hold an x",
    "attention_distance": "mean place attended to, as a share of the context",
}


def attention_measures(weights: Float[Array, "batch ... token key"]) -> dict[str, Float[Array, "... token"]]:
    """Measures of causal attention, averaged over a batch.

    With a_kj the attention of token k (from 1) to token j: entropy -sum_j a log2 a / log2 k (NaN for k = 1);
    variability sum_j |a_kj - mean a_kj| / (2 sum_j mean a_kj); attention to itself, to the token before (NaN for
    k = 1) and to the tokens at even places from 0, which hold an x; mean place sum_j j a_kj / k, j from 0.

    Args:
        weights: rows sum to 1 and are 0 above the diagonal.
    """
    num_tokens = weights.shape[-1]
    place = jnp.arange(num_tokens)
    length = place + 1
    nothing = jnp.where(length > 1, 0.0, jnp.nan)
    entropy = -jnp.sum(jnp.where(weights > 0, weights * jnp.log2(jnp.where(weights > 0, weights, 1.0)), 0.0), -1)
    mean = jnp.mean(weights, 0)
    spread = jnp.mean(jnp.sum(jnp.abs(weights - mean), -1), 0) / (2 * jnp.sum(mean, -1))
    before = jnp.concatenate([jnp.zeros_like(mean[..., :1, 0]), jnp.diagonal(mean, -1, -2, -1)], -1)
    return {
        "attention_entropy": jnp.mean(entropy, 0) / jnp.log2(jnp.maximum(length, 2)) + nothing,
        "attention_variability": spread,
        "attention_self": jnp.diagonal(mean, 0, -2, -1),
        "attention_previous": before + nothing,
        "attention_x": jnp.sum(mean[..., ::2], -1),
        "attention_distance": jnp.sum(mean * place, -1) / length,
    }


def attention_metrics(
    attend: Callable[[Params], Float[Array, "batch block head token key"]], bank: CheckpointBank
) -> xr.Dataset:
    """Measures the attention of every checkpoint of a bank.

    Args:
        attend: parameters to attention weights, on sequences of its own.
        bank: checkpoints.

    Returns:
        Dimensions `(checkpoint, block, head, token)`, all counted from 1; no units.
    """
    measure = jax.jit(lambda params: attention_measures(attend(params)))
    columns = trees.stack([measure(bank.checkpoint(index)) for index in range(len(bank))])
    dims = ("checkpoint", "block", "head", "token")
    sizes = next(iter(columns.values())).shape[1:]
    coords = {name: np.arange(1, size + 1) for name, size in zip(dims[1:], sizes, strict=True)}
    variables = {name: (dims, values, {"long_name": LONG_NAMES[name], "units": ""}) for name, values in columns.items()}
    return xr.Dataset(variables, coords={"checkpoint": bank.steps, **coords})


def head_means(metrics: xr.Dataset) -> xr.Dataset:
    """One line a head: the mean over tokens, under names such as `attention_self_1_4` (block 1, head 4)."""
    means = metrics.mean("token", skipna=True, keep_attrs=True)
    result = {}
    for name, values in means.data_vars.items():
        for block in means["block"].values:
            for head in means["head"].values:
                result[f"{name}_{block}_{head}"] = values.sel(block=block, head=head, drop=True)
    return xr.Dataset(result, attrs=metrics.attrs)
