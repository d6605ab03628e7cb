"""Causal attention over long sequences: by kernels of our own, by cuDNN, or in plain jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llcjax.models.kernels import Kernels, Products, kernel_products

_LONGEST_HEAD = 128
_MULTIPLE = 8
"""cuDNN takes heads of at most 128, and widths and lengths that are multiples of 8."""
_NARROW = 32
"""Heads up to which kernels of our own are faster than cuDNN's."""


def attention_products(shape: tuple[int, ...], dtype: jnp.dtype, kernels: Kernels) -> Products | None:
    """How kernels of our own (`llcjax.models.kernels.long_attention`) compute products; None where they are not taken.

    With `auto` they are taken for narrow heads, and where cuDNN's cannot be.

    Args:
        shape: of the queries, `(batch, token, head, channel)`.
        dtype: of the queries.
        kernels: the switch.
    """
    products = kernel_products(kernels, jnp.dtype(dtype).name)
    if products is None or jnp.dtype(dtype) == jnp.float16:
        return None
    if not (kernels == "pallas" or shape[3] <= _NARROW or not takes_cudnn(shape, dtype)):
        return None
    from llcjax.models.kernels.long_attention import fits  # Pallas loads slowly

    return products if fits(shape[1], shape[3]) else None


def causal_attention(
    query: Float[Array, "batch token head channel"],
    key: Float[Array, "batch token head channel"],
    value: Float[Array, "batch token head channel"],
) -> Float[Array, "batch token head channel"]:
    """Mixes the values of this and earlier tokens: softmax(q k' / sqrt(channel)) v, a head at a time.

    On a GPU by a kernel of cuDNN that never writes the scores, at sizes that it takes in half precision. Otherwise by
    plain jax, whose scores take batch x head x token x token x 4 bytes.

    Args:
        query: as the other two, in float32 or bfloat16; the result has the same dtype.
        key: what queries are held against.
        value: what is mixed.
    """
    implementation = "cudnn" if takes_cudnn(query.shape, query.dtype) else "xla"
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
