"""Structure of the weights of the in-context regression transformer (arXiv 2402.02364, appendix D.3 and its code).

What collapses: singular values of the embeddings, layer norms, and the row of the unembedding that makes the guess.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from llcjax.checkpoints import CheckpointBank

SMALL_GAIN = 0.1
"""Gains of layer norms below this count as collapsed."""

Stack = Float[np.ndarray, "checkpoint ..."]


def structure_metrics(bank: CheckpointBank) -> xr.Dataset:
    """Measures the weights of every checkpoint of a bank of `icl_transformer`.

    Args:
        bank: checkpoints.

    Returns:
        Along `checkpoint`, no units: `embedding_share` and `position_share`, singular values over their sum, `(...,
        component)`, with their largest (`*_top_share`) and their effective number (`*_rank`, exp of the entropy of
        the shares); `embedding_alignment`, the cosine between each column of the embedding and its projection on
        the span of the positional embeddings, `(..., token_feature)`; for each layer norm NAME `gain_mean_NAME`,
        `gain_std_NAME`, `bias_mean_NAME`, `bias_std_NAME`, `small_gain_NAME` (share of |gain| < 0.1); for the row of
        the unembedding that makes the guess its norm, that of its product with the gains, and the bias that is left.
        Without layer norms their measures are absent.
    """
    params = bank.params
    variables: dict[str, Any] = {**_embeddings(params), **_unembedding(params)}
    for name, norm in _layer_norms(params).items():
        variables |= _layer_norm(name, norm["scale"], norm["bias"])
    return xr.Dataset(variables, coords={"checkpoint": bank.steps})


def unembedding_paths(bank: CheckpointBank) -> xr.Dataset:
    """Every entry of what makes the guess, along `(checkpoint, feature)`.

    Returns:
        `unembedding`, its row; with layer norms also `gain`, `bias` of the last one and `effective`, gain times row.
    """
    row = bank.params["unembed"]["kernel"][..., 0]
    entries = {"unembedding": row}
    norm = bank.params.get("final_norm")
    if norm is not None:
        entries |= {"gain": norm["scale"], "bias": norm["bias"], "effective": norm["scale"] * row}
    dims = ("checkpoint", "feature")
    return xr.Dataset({name: (dims, values) for name, values in entries.items()}, coords={"checkpoint": bank.steps})


def _described(words: str, values: Stack, *dims: str) -> tuple[tuple[str, ...], Stack, dict[str, str]]:
    return ("checkpoint", *dims), values, {"long_name": words, "units": ""}


def _embeddings(params: Any) -> dict[str, Any]:
    # As maps into the residual stream: (checkpoint, model width, inputs).
    embed, places = (np.swapaxes(leaf, 1, 2) for leaf in (params["embed"]["kernel"], params["positions"]))
    result: dict[str, Any] = {}
    for name, matrix, words in (("embedding", embed, "embedding"), ("position", places, "positional embedding")):
        singular = np.linalg.svd(matrix, compute_uv=False)
        share = singular / singular.sum(-1, keepdims=True)
        entropy = -np.sum(share * np.log(np.maximum(share, 1e-30)), -1)
        result |= {
            f"{name}_share": _described(f"singular values of the {words} over their sum", share, f"{name}_component"),
            f"{name}_top_share": _described(f"largest singular value of the {words} over their sum", share[..., 0]),
            f"{name}_rank": _described(f"effective number of singular values of the {words}", np.exp(entropy)),
        }
    # The left singular vectors of non-zero singular values span the columns; the full square matrix is a rotation.
    basis = np.linalg.svd(places, full_matrices=False)[0]
    inside = np.linalg.norm(np.swapaxes(basis, 1, 2) @ embed, axis=1)
    cosine = inside / np.maximum(np.linalg.norm(embed, axis=1), 1e-30)
    words = "cosine of the embedding with the span of the positional embeddings"
    return result | {"embedding_alignment": _described(words, cosine, "token_feature")}


def _layer_norms(params: Any) -> dict[str, Any]:
    """`{name: layer norm}` in the order of the forward pass."""
    found = {
        f"{kind}_{int(block) + 1}": params["blocks"][block][f"{kind}_norm"]
        for block in sorted(params["blocks"], key=int)
        for kind in ("attention", "mlp")
        if f"{kind}_norm" in params["blocks"][block]
    }
    return found | ({"final": params["final_norm"]} if "final_norm" in params else {})


def _layer_norm(name: str, gain: Stack, bias: Stack) -> dict[str, Any]:
    where = "layer norm " + name.replace("_", " ")
    return {
        f"gain_mean_{name}": _described(f"mean gain of {where}", gain.mean(-1)),
        f"gain_std_{name}": _described(f"standard deviation of gains of {where}", gain.std(-1)),
        f"bias_mean_{name}": _described(f"mean bias of {where}", bias.mean(-1)),
        f"bias_std_{name}": _described(f"standard deviation of biases of {where}", bias.std(-1)),
        f"small_gain_{name}": _described(
            f"share of gains below {SMALL_GAIN} of {where}", np.mean(np.abs(gain) < SMALL_GAIN, -1)
        ),
    }


def _unembedding(params: Any) -> dict[str, Any]:
    row, bias = params["unembed"]["kernel"][..., 0], params["unembed"]["bias"][..., 0]
    norm = params.get("final_norm")
    gain = 1.0 if norm is None else norm["scale"]
    shift = bias if norm is None else np.sum(row * norm["bias"], -1) + bias
    return {
        "unembedding_norm": _described(
            "norm of the row of the unembedding that makes the guess", np.linalg.norm(row, axis=-1)
        ),
        "effective_unembedding_norm": _described(
            "norm of the gains of the last layer norm times that row", np.linalg.norm(gain * row, axis=-1)
        ),
        "effective_bias": _described("bias of the guess that is left for a stream of mean 0", shift),
    }
