"""Causal attention over long sequences: by kernels of our own, by cuDNN, or in plain jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llcjax.models.kernels import Kernels, kernel_products

_LONGEST_HEAD = 128
_MULTIPLE = 8
"""cuDNN takes heads of at most 128, and widths and lengths that are multiples of 8."""
_NARROW = 32
"""Heads up to which kernels of our own are faster than cuDNN's."""


def causal_attention(
    query: Float[Array, "batch token head channel"],
    key: Float[Array, "batch token head channel"],
    value: Float[Array, "batch token head channel"],
    kernels: Kernels = "auto",
) -> Float[Array, "batch token head channel"]:
    """Mixes the values of this and earlier tokens: softmax(q k' / sqrt(channel)) v, a head at a time.

    On a GPU a kernel that never writes the scores does it, at sizes that it takes: our own for narrow heads and for
    float32, cuDNN's for wider heads in half precision. Otherwise plain jax, whose scores take batch x head x token x
    token x 4 bytes.

    Args:
        query: as the other two, in float32 or bfloat16; the result has the same dtype.
        key: what queries are held against.
        value: what is mixed.
        kernels: auto as above; xla without kernels of our own; pallas with them at every size that they take.
    """
    return packed_causal_attention(jnp.concatenate((query, key), axis=2), value, kernels)


def packed_causal_attention(
    query_key: Float[Array, "batch token head2 channel"],
    value: Float[Array, "batch token head channel"],
    kernels: Kernels = "auto",
    query_bias: Float[Array, "head channel"] | None = None,
) -> Float[Array, "batch token head channel"]:
    """The same where one product makes queries and keys, as kernels of our own take them.

    Args:
        query_key: queries of all heads, then keys of all heads.
        value: as in `causal_attention`.
        kernels: as in `causal_attention`.
        query_bias: in float32, added to the queries, by kernels of our own without a pass over them; none by default.
    """
    products = kernel_products(kernels, value.dtype.name)
    cudnn = takes_cudnn(value.shape, value.dtype)
    if products is not None and (kernels == "pallas" or value.shape[3] <= _NARROW or not cudnn):
        from llcjax.models.kernels.long_attention import fits, long_attention  # Pallas loads slowly

        if fits(value.shape[1], value.shape[3]):
            return long_attention(products, query_key, value, query_bias)
    query, key = jnp.split(query_key, 2, axis=2)
    query = query if query_bias is None else query + query_bias.astype(query.dtype)
    implementation = "cudnn" if cudnn else "xla"
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation=implementation)


def takes_cudnn(shape: tuple[int, ...], dtype: jnp.dtype, platform: str | None = None) -> bool:
    """Whether cuDNN's kernel can be used for queries of a shape and dtype.

    Example:
        >>> takes_cudnn((4, 1024, 8, 32), jnp.bfloat16, "gpu"), takes_cudnn((4, 1023, 8, 32), jnp.bfloat16, "gpu")
        (True, False)
        >>> takes_cudnn((4, 1024, 8, 32), jnp.float32, "gpu"), takes_cudnn((4, 1024, 8, 32), jnp.bfloat16, "cpu")
        (False, False)
    """
    token, channel = shape[1], shape[3]
    sizes = channel <= _LONGEST_HEAD and channel % _MULTIPLE == 0 and token % _MULTIPLE == 0
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return (platform or jax.default_backend()) == "gpu" and half and sizes
