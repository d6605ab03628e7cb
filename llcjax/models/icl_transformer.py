"""The transformer of the in-context regression setting (arXiv 2402.02364, section 2.2 and its code).

Shape letters: B batch, T tokens, D model width, H heads, C head width, F MLP width, I token width,
E three model widths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from llcjax.models.functional import functional
from llcjax.models.half_linear import Linear, bias_of
from llcjax.models.kernels import NORM_EPSILON, Kernels, Products, kernel_products
from llcjax.models.loss_scale import with_loss_scale
from llcjax.models.sizes import Activations, check_sizes
from llcjax.types import ApplyFn, InitFn, Params

# PyTorch's default for linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), weights and biases alike.
_WEIGHT_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class _Compute(NamedTuple):
    """How the same function is computed."""

    kernels: Kernels
    activations: jnp.dtype


class Internals(NamedTuple):
    """What a forward pass holds inside."""

    attention: Float[Array, "batch block head token key"]
    """Attention of each token to each earlier one and itself; rows sum to 1."""
    stream: Float[Array, "batch place token feature"]
    """The residual stream: before the first block, and after each."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes of the in-context regression transformer; the defaults are the paper's (51,717 parameters)."""

    num_layers: int = 2
    """Number of blocks (attention, then MLP)."""
    num_heads: int = 4
    """Attention heads a block."""
    model_width: int = 64
    """Width of the residual stream."""
    mlp_width: int = 64
    """Hidden width of each MLP."""
    layer_norm: bool = True
    """Layer norms before attention, MLP and unembedding; off leaves them out."""
    double_residual: bool = True
    """Adds the residual stream a second time after each block, as the paper's code does."""

    def __post_init__(self) -> None:
        """Checks that the heads divide the width."""
        check_sizes(self, self.num_layers, self.num_heads, self.model_width, self.mlp_width)


def icl_transformer(
    config: TransformerConfig,
    num_tokens: int,
    token_width: int,
    kernels: Kernels = "xla",
    activations: Activations = "float32",
) -> tuple[InitFn, ApplyFn]:
    """Builds the pure functions of the transformer.

    Args:
        config: sizes.
        num_tokens: length of a sequence (2K).
        token_width: width of a token (D + 1); also the width of the outputs.
        kernels: how attention is computed, see `llcjax.models.kernels`.
        activations: how what stands between the layers is stored; parameters, their gradients, norms, softmax and the
            outputs are float32 either way. 16 bits halve the memory traffic and round: float16 keeps the 10 bits that
            TF32 products see of float32, bfloat16 keeps 7 and the range of float32, which diverging chains may need.
            `benchmarks/precision.py` measures what that does to the LLC.

    Returns:
        `(init, apply)`; `apply(params, tokens)` maps `(batch, num_tokens, token_width)` to the same shape.
    """
    compute = _Compute(kernels, jnp.dtype(activations))
    init, apply = functional(lambda rngs: _Transformer(config, num_tokens, token_width, compute, rngs))
    return init, with_loss_scale(apply) if activations == "float16" else apply


def icl_internals(
    config: TransformerConfig, num_tokens: int, token_width: int
) -> Callable[[Params, Float[Array, "batch token feature"]], Internals]:
    """Builds `(params, tokens) -> Internals` for parameters of `icl_transformer`."""
    compute = _Compute("xla", jnp.dtype("float32"))
    _, inspect = functional(lambda rngs: _Transformer(config, num_tokens, token_width, compute, rngs), "internals")
    return cast("Callable[[Params, Array], Internals]", inspect)


def _linear(fan_in: int, fan_out: int, compute: _Compute, rngs: nnx.Rngs, bias: bool) -> Linear:
    bound = 1 / math.sqrt(fan_in)

    def bias_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Linear(
        fan_in,
        fan_out,
        use_bias=bias,
        kernel_init=_WEIGHT_INIT,
        bias_init=bias_init,
        dtype=compute.activations,
        rngs=rngs,
    )


def _norm(config: TransformerConfig, compute: _Compute, rngs: nnx.Rngs) -> nnx.LayerNorm | None:
    if not config.layer_norm:
        return None
    return nnx.LayerNorm(
        config.model_width,
        epsilon=NORM_EPSILON,
        dtype=compute.activations,
        promote_dtype=_promote_rows,
        rngs=rngs,
    )


def _promote_rows(arrays: Any, /, *, dtype: Any = None, **_: Any) -> Any:
    """Rounds the rows of a norm alone: its parameters, whose gradients are sums over tokens, stay float32."""
    rows, *parameters = arrays
    return (rows.astype(dtype), *parameters)


@jax.named_scope("norm")
def _normalise(norm: nnx.LayerNorm | None, x_BTD: Array) -> Array:
    return x_BTD if norm is None else norm(x_BTD)


class _Attention(nnx.Module):
    """Causal softmax attention with fused QKV and without biases."""

    def __init__(self, config: TransformerConfig, compute: _Compute, rngs: nnx.Rngs) -> None:
        self.num_heads = config.num_heads
        self.qkv = _linear(config.model_width, 3 * config.model_width, compute, rngs, bias=False)
        self.output = _linear(config.model_width, config.model_width, compute, rngs, bias=False)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        with jax.named_scope("qkv"):
            qkv_BTE = self.qkv(x_BTD)
        mixed_BTD = self._mixed(qkv_BTE)
        with jax.named_scope("output"):
            return self.output(mixed_BTD)

    @jax.named_scope("attention")
    def _mixed(self, qkv_BTE: Float[Array, "B T E"]) -> Float[Array, "B T D"]:
        """Values of earlier tokens, mixed."""
        batch, tokens, width = qkv_BTE.shape[0], qkv_BTE.shape[1], qkv_BTE.shape[2] // 3
        weights_BHTT, v_BTHC = self._weights(qkv_BTE)
        mixed_BTHC = jnp.einsum("bhqk,bkhc->bqhc", weights_BHTT, v_BTHC)
        return mixed_BTHC.reshape(batch, tokens, width)

    def _weights(self, qkv_BTE: Float[Array, "B T E"]) -> tuple[Float[Array, "B H T T"], Float[Array, "B T H C"]]:
        """How much each token attends to itself and to earlier ones, and the values."""
        batch, tokens, width = qkv_BTE.shape[0], qkv_BTE.shape[1], qkv_BTE.shape[2] // 3
        qkv_BTHC = qkv_BTE.reshape(batch, tokens, self.num_heads, 3 * width // self.num_heads)
        q_BTHC, k_BTHC, v_BTHC = jnp.split(qkv_BTHC, 3, axis=-1)
        scores_BHTT = jnp.einsum("bqhc,bkhc->bhqk", q_BTHC, k_BTHC) / math.sqrt(width // self.num_heads)
        causal_TT = jnp.tril(jnp.ones((tokens, tokens), bool))
        masked_BHTT = jnp.where(causal_TT, scores_BHTT.astype(jnp.float32), -jnp.inf)
        return jax.nn.softmax(masked_BHTT).astype(qkv_BTE.dtype), v_BTHC

    def weights(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B H T T"]:
        """How much each token attends to itself and to earlier ones."""
        return self._weights(self.qkv(x_BTD))[0]


class _Block(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream, and the stream once more where that is wanted."""

    def __init__(self, config: TransformerConfig, compute: _Compute, rngs: nnx.Rngs) -> None:
        self.compute, self.double_residual = compute, config.double_residual
        self.attention_norm = _norm(config, compute, rngs)
        self.attention = _Attention(config, compute, rngs)
        self.mlp_norm = _norm(config, compute, rngs)
        self.mlp_in = _linear(config.model_width, config.mlp_width, compute, rngs, bias=True)
        self.mlp_out = _linear(config.mlp_width, config.model_width, compute, rngs, bias=True)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The residual stream after the block."""
        products = self.kernel_products(x_BTD.shape[1])
        if products is not None:
            return self._fused(products, x_BTD)
        a_BTD = x_BTD + self.attention(_normalise(self.attention_norm, x_BTD))
        normed_BTD = _normalise(self.mlp_norm, a_BTD)
        with jax.named_scope("mlp"):
            y_BTD = a_BTD + self.mlp_out(jax.nn.relu(self.mlp_in(normed_BTD)))
        return x_BTD + y_BTD if self.double_residual else y_BTD

    def kernel_products(self, num_tokens: int) -> Products | None:
        """What the kernels are to use; None where they are not wanted or do not take these sizes."""
        products = kernel_products(self.compute.kernels, self.compute.activations)
        if products is None:
            return None
        from llcjax.models.kernels import short_attention  # Pallas loads slowly

        width, hidden = self.mlp_in.kernel.shape
        powers = all(size & (size - 1) == 0 and size >= 16 for size in (width, hidden))
        return products if powers and short_attention.fits(num_tokens, width // self.attention.num_heads) else None

    def _fused(self, products: Products, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The same by kernels: norm and map to queries, keys and values; attention; and all that follows it."""
        from llcjax.models.kernels import block_tail, normed_linear, short_attention

        batch, tokens, width = x_BTD.shape
        layer_norm = self.attention_norm is not None
        weight_DE, bias_E = _folded(self.attention_norm, self.attention.qkv)
        with jax.named_scope("qkv"):
            spec = normed_linear.LinearSpec(products=products, layer_norm=layer_norm)
            x_ND = x_BTD.reshape(-1, width)
            qkv_NE, x_ND = normed_linear.normed_linear(spec, x_ND, weight_DE, bias_E)
        with jax.named_scope("attention"):
            spec = short_attention.AttentionSpec(
                num_tokens=tokens, num_heads=self.attention.num_heads, products=products
            )
            mixed_BTD = short_attention.short_attention(spec, qkv_NE.reshape(batch, tokens, -1))
        weight_DF, bias_F = _folded(self.mlp_norm, self.mlp_in)
        weights = block_tail.TailWeights(
            output=self.attention.output.kernel[...],
            mlp_in=weight_DF,
            mlp_in_bias=bias_F,
            mlp_out=self.mlp_out.kernel[...],
            mlp_out_bias=bias_of(self.mlp_out),
        )
        with jax.named_scope("mlp"):
            spec = block_tail.TailSpec(products=products, layer_norm=layer_norm, double_residual=self.double_residual)
            y_ND = block_tail.block_tail(spec, x_ND, mixed_BTD.reshape(-1, width), weights)
        return y_ND.reshape(x_BTD.shape)


def _folded(norm: nnx.LayerNorm | None, linear: Linear) -> tuple[Float[Array, "D E"], Float[Array, " E"]]:
    """Matrix and bias of a linear map that take the norm's scale and shift upon them."""
    weight, bias = linear.kernel[...], bias_of(linear)
    if norm is None or norm.scale is None or norm.bias is None:
        return weight, bias
    return norm.scale[...][:, None] * weight, norm.bias[...] @ weight + bias


class _Transformer(nnx.Module):
    """Embedding, positions, blocks, unembedding."""

    def __init__(
        self, config: TransformerConfig, num_tokens: int, token_width: int, compute: _Compute, rngs: nnx.Rngs
    ) -> None:
        self.activations = compute.activations
        self.embed = _linear(token_width, config.model_width, compute, rngs, bias=False)
        # A linear map of one-hot positions in the paper's code, hence its initialisation.
        self.positions = nnx.Param(_WEIGHT_INIT(rngs.params(), (num_tokens, config.model_width), jnp.float32))
        self.blocks = nnx.List([_Block(config, compute, rngs) for _ in range(config.num_layers)])
        self.final_norm = _norm(config, compute, rngs)
        self.unembed = _linear(config.model_width, token_width, compute, rngs, bias=True)

    def __call__(self, tokens_BTI: Float[Array, "B T I"]) -> Float[Array, "B T I"]:
        *_, x_BTD = self._stream(tokens_BTI)
        products = self.blocks[-1].kernel_products(tokens_BTI.shape[1])
        if products is not None:
            return self._fused_unembed(products, x_BTD)
        normed_BTD = _normalise(self.final_norm, x_BTD)
        with jax.named_scope("unembed"):
            return self.unembed(normed_BTD).astype(jnp.float32)

    @jax.named_scope("unembed")
    def _fused_unembed(self, products: Products, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T I"]:
        """Last norm and unembedding by a kernel, whose matrix has columns of zeros up to a size that it takes."""
        from llcjax.models.kernels import normed_linear

        spec = normed_linear.LinearSpec(
            products=products, layer_norm=self.final_norm is not None, through=False, result="float32"
        )
        weight_DI, bias_I = _folded(self.final_norm, self.unembed)
        missing = max(16, 1 << (len(bias_I) - 1).bit_length()) - len(bias_I)
        weight_DO, bias_O = jnp.pad(weight_DI, ((0, 0), (0, missing))), jnp.pad(bias_I, (0, missing))
        x_ND = x_BTD.reshape(-1, x_BTD.shape[2])
        (y_NO,) = normed_linear.normed_linear(spec, x_ND, weight_DO, bias_O)
        return y_NO[:, : len(bias_I)].reshape(*x_BTD.shape[:2], -1)

    def _stream(self, tokens_BTI: Float[Array, "B T I"]) -> list[Float[Array, "B T D"]]:
        """The residual stream before the first block and after each."""
        with jax.named_scope("embed"):
            stream = [(self.embed(tokens_BTI) + self.positions[...]).astype(self.activations)]
        for block in self.blocks:
            stream.append(block(stream[-1]))
        return stream

    def internals(self, tokens_BTI: Float[Array, "B T I"]) -> Internals:
        """What the forward pass holds inside."""
        stream = self._stream(tokens_BTI)
        weights = [
            block.attention.weights(_normalise(block.attention_norm, x_BTD))
            for block, x_BTD in zip(self.blocks, stream, strict=False)
        ]
        return Internals(jnp.stack(weights, 1), jnp.stack(stream, 1))
