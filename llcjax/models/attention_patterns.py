"""What the heads of the attention-only language model look at, and how they feed each other.

A second forward pass over the parameters, because cuDNN's attention never writes its scores.

Shape letters: B batch, T tokens, D model width, H heads, C head width, L layers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llcjax.models.attention_only import AttentionOnlyConfig
from llcjax.types import Params


def attention_patterns(
    config: AttentionOnlyConfig, params: Params, tokens: Int[Array, "B T"]
) -> Float[Array, "L B H T T"]:
    """The attention of every head, from each token (second last axis) to itself and earlier ones (last axis).

    Takes L x B x H x T x T x 4 bytes: 67 MB a sequence at the paper's sizes.
    """
    x_BTD, patterns = params["embed"][tokens], []
    positions_TD = params["positions"][: tokens.shape[1]]
    for name in _blocks(params):
        block = params["blocks"][name]
        normed_BTD = _norm(x_BTD, block["norm"])
        parts = block["attention"]
        placed_BTD = normed_BTD + positions_TD
        q_BTHC, k_BTHC, v_BTHC = (
            _linear(x, parts[part]).reshape(*tokens.shape, config.num_heads, -1)
            for x, part in ((placed_BTD, "query"), (placed_BTD, "key"), (normed_BTD, "value"))
        )
        scores_BHTT = jnp.einsum("bqhc,bkhc->bhqk", q_BTHC, k_BTHC) / jnp.sqrt(q_BTHC.shape[-1])
        earlier_TT = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        pattern_BHTT = jax.nn.softmax(jnp.where(earlier_TT, scores_BHTT, -jnp.inf), -1)
        mixed_BTD = jnp.einsum("bhqk,bkhc->bqhc", pattern_BHTT, v_BTHC).reshape(x_BTD.shape)
        x_BTD = x_BTD + _linear(mixed_BTD, parts["output"])
        patterns.append(pattern_BHTT)
    return jnp.stack(patterns)


def k_composition(config: AttentionOnlyConfig, params: Params) -> Float[Array, "earlier later"]:
    """How much each head of the second block reads, for its keys, of what each head of the first one writes.

    |W_QK' W_OV|_F / (|W_QK|_F |W_OV|_F), as in Elhage et al. (2021), "A Mathematical Framework for Transformer
    Circuits", of the weights as they are (norms not folded in); two random heads have about 1 / sqrt(D).

    Raises:
        ValueError: the model has one block only.
    """
    names = _blocks(params)
    if len(names) < 2:
        raise ValueError("K-composition needs two blocks, but the model has 1; leave it out.")
    first, second = (params["blocks"][name]["attention"] for name in names[:2])
    heads, width = config.num_heads, config.model_width

    def of_heads(kernel: Array) -> Array:
        return kernel.reshape(width, heads, -1)

    written_HDD = jnp.einsum(
        "dhc,hce->hde", of_heads(first["value"]["kernel"]), first["output"]["kernel"].reshape(heads, -1, width)
    )
    read_HDD = jnp.einsum("dhc,ehc->hde", of_heads(second["query"]["kernel"]), of_heads(second["key"]["kernel"]))
    # Rows of `written` are what is read from the stream, columns what is written to it; keys are columns of `read`.
    both = jnp.einsum("ade,bfe->abdf", written_HDD, read_HDD)
    size_a, size_b = (jnp.linalg.norm(x, axis=(1, 2)) for x in (written_HDD, read_HDD))
    return jnp.linalg.norm(both, axis=(2, 3)) / (size_a[:, None] * size_b)


def _blocks(params: Params) -> list[str]:
    return sorted(params["blocks"], key=int)


def _norm(x: Array, p: Params) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def _linear(x: Array, p: Params) -> Array:
    return x @ p["kernel"] + p["bias"]
