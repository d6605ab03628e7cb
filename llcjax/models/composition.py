"""How heads of the attention-only language model feed each other, from their weights."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from llcjax.models.attention_only import AttentionOnlyConfig
from llcjax.types import Params


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
