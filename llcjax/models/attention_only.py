"""The attention-only language model of arXiv 2402.02364 (section 2.1 and its code).

Pre-norm attention blocks without MLPs. Positions are those of the shortformer (arXiv 2012.15832): one learned table,
added to what queries and keys see in every block and never to the residual stream.

Shape letters: B batch, T tokens, D model width, H heads, C head width, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from llcjax.models.attention import causal_attention
from llcjax.models.functional import functional
from llcjax.models.half_linear import bias_of
from llcjax.models.kernels import Kernels, kernel_products
from llcjax.models.sizes import Activations, check_sizes
from llcjax.tasks.text import Losses, cross_entropy
from llcjax.types import ApplyFn, InitFn, Params


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOnlyConfig:
    """Sizes of the language model; the defaults are the paper's (3,355,016 parameters)."""

    num_layers: int = 2
    """Number of attention blocks."""
    num_heads: int = 8
    """Attention heads a block."""
    model_width: int = 256
    """Width of the residual stream."""
    num_tokens: int = 1024
    """Length of a sequence, and rows of the table of positions."""
    vocabulary: int = 5000
    """Number of different tokens."""

    def __post_init__(self) -> None:
        """Checks that the heads divide the width."""
        check_sizes(self, self.num_layers, self.num_heads, self.model_width, self.num_tokens, self.vocabulary)


def attention_only(
    config: AttentionOnlyConfig, activations: Activations = "float32", kernels: Kernels = "auto"
) -> tuple[InitFn, ApplyFn]:
    """Builds the pure functions of the language model.

    Args:
        config: sizes.
        activations: how what stands between the layers is stored, the logits included; parameters, their gradients,
            norms and softmax are float32 either way.
        kernels: how attention is computed: xla, pallas for kernels of our own, or auto, which takes those where they
            are faster than cuDNN's, unless products are to be exact. With kernels a block adds its biases where that
            costs least, which is the same up to rounding. Kernels have no Hessian-vector products.

    Returns:
        `(init, apply)`; `apply(params, tokens)` maps token ids `(batch, num_tokens)`, or fewer, to logits
        `(batch, num_tokens, vocabulary)`.

    Raises:
        ValueError: activations in float16, whose range is too small here, or an unknown switch.
    """
    return functional(_maker(config, activations, kernels))


def attention_only_losses(
    config: AttentionOnlyConfig, activations: Activations = "float32", kernels: Kernels = "auto"
) -> Losses:
    """The losses of the language model without its logits, which are its largest array: faster on a GPU.

    Args:
        config: sizes.
        activations: as in `attention_only`.
        kernels: as in `attention_only`, for the cross-entropy too.

    Returns:
        `(params, (tokens, labels)) -> losses`, for `llcjax.tasks.text.loss_of_next_tokens`.

    Raises:
        ValueError: activations in float16, or an unknown switch.
    """
    return functional(_maker(config, activations, kernels), "losses")[1]


def attention_patterns(
    config: AttentionOnlyConfig, params: Params, tokens: Int[Array, "B T"]
) -> Float[Array, "L B H T T"]:
    """The attention of every head, from each token (second last axis) to itself and earlier ones (last axis).

    Takes L x B x H x T x T x 4 bytes: 67 MB a sequence at the paper's sizes.
    """
    return functional(_maker(config), "patterns")[1](params, tokens)


def _maker(
    config: AttentionOnlyConfig, activations: Activations = "float32", kernels: Kernels = "auto"
) -> Callable[[nnx.Rngs], _LanguageModel]:
    if activations == "float16":
        raise ValueError("activations='float16' would lose the gradients of the logits; choose bfloat16 or float32.")
    kernel_products(kernels)  # refuses what is no switch
    return lambda rngs: _LanguageModel(config, jnp.dtype(activations), kernels, rngs)


class _Attention(nnx.Module):
    """Causal softmax attention with biases; positions go to queries and keys."""

    def __init__(self, config: AttentionOnlyConfig, dtype: jnp.dtype, kernels: Kernels, rngs: nnx.Rngs) -> None:
        self.num_heads = config.num_heads
        self.kernels: Kernels = kernels
        width, spread = config.model_width, nnx.initializers.normal(_std(config))
        self.query, self.key, self.value, self.output = (
            nnx.Linear(width, width, kernel_init=spread, dtype=dtype, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x_BTD: Float[Array, "B T D"], positions_TD: Float[Array, "T D"]) -> Float[Array, "B T D"]:
        # Where kernels are taken, a pass that adds a bias to rows takes as long as a map of them, so that one of four
        # has a pass of its own. A bias of the keys adds the same to all scores of a query, which the softmax takes off
        # again. The weights of a softmax add up to 1, so that the bias of the values can go through the output map.
        few_passes = kernel_products(self.kernels, x_BTD.dtype.name) is not None
        key, value = (functools.partial(_mapped, part) if few_passes else part for part in (self.key, self.value))
        with jax.named_scope("qkv"):
            placed_BTD = _placed(x_BTD, positions_TD)
            parts = self.query(placed_BTD), key(placed_BTD), value(x_BTD)
            q_BTHC, k_BTHC, v_BTHC = map(self._in_heads, parts)
        with jax.named_scope("attention"):
            mixed_BTD = causal_attention(q_BTHC, k_BTHC, v_BTHC, self.kernels).reshape(x_BTD.shape)
        with jax.named_scope("output"):
            if not few_passes:
                return self.output(mixed_BTD)
            bias_D = bias_of(self.value) @ self.output.kernel[...] + bias_of(self.output)
            return _mapped(self.output, mixed_BTD) + bias_D.astype(mixed_BTD.dtype)

    def pattern(self, x_BTD: Float[Array, "B T D"], positions_TD: Float[Array, "T D"]) -> Float[Array, "B H T T"]:
        """How much each token attends to itself and to earlier ones, which kernels never write."""
        placed_BTD = _placed(x_BTD, positions_TD)
        q_BTHC, k_BTHC = self._in_heads(self.query(placed_BTD)), self._in_heads(self.key(placed_BTD))
        scores_BHTT = jnp.einsum("bqhc,bkhc->bhqk", q_BTHC, k_BTHC) / jnp.sqrt(q_BTHC.shape[-1])
        earlier_TT = jnp.tril(jnp.ones((x_BTD.shape[1],) * 2, bool))
        return jax.nn.softmax(jnp.where(earlier_TT, scores_BHTT, -jnp.inf), -1)

    def _in_heads(self, part_BTD: Float[Array, "B T D"]) -> Float[Array, "B T H C"]:
        return part_BTD.reshape(*part_BTD.shape[:2], self.num_heads, -1)


class _Block(nnx.Module):
    """Pre-norm attention, added to the residual stream."""

    def __init__(self, config: AttentionOnlyConfig, dtype: jnp.dtype, kernels: Kernels, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(config.model_width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.attention = _Attention(config, dtype, kernels, rngs)

    def __call__(self, x_BTD: Float[Array, "B T D"], positions_TD: Float[Array, "T D"]) -> Float[Array, "B T D"]:
        return x_BTD + self.attention(self._normed(x_BTD), positions_TD)

    def pattern(self, x_BTD: Float[Array, "B T D"], positions_TD: Float[Array, "T D"]) -> Float[Array, "B H T T"]:
        """The attention of its heads."""
        return self.attention.pattern(self._normed(x_BTD), positions_TD)

    @jax.named_scope("norm")
    def _normed(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.norm(x_BTD)


class _LanguageModel(nnx.Module):
    """Embedding, blocks, final norm, unembedding of its own."""

    def __init__(self, config: AttentionOnlyConfig, dtype: jnp.dtype, kernels: Kernels, rngs: nnx.Rngs) -> None:
        spread = nnx.initializers.normal(_std(config))
        self.activations = dtype
        self.kernels: Kernels = kernels
        self.embed = nnx.Param(spread(rngs.params(), (config.vocabulary, config.model_width), jnp.float32))
        self.positions = nnx.Param(spread(rngs.params(), (config.num_tokens, config.model_width), jnp.float32))
        self.blocks = nnx.List([_Block(config, dtype, kernels, rngs) for _ in range(config.num_layers)])
        self.final_norm = nnx.LayerNorm(config.model_width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.unembed = nnx.Linear(config.model_width, config.vocabulary, kernel_init=spread, dtype=dtype, rngs=rngs)

    def __call__(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        normed_BTD = self._normed(tokens_BT)
        with jax.named_scope("unembed"):
            return self.unembed(normed_BTD)

    def losses(self, pair: tuple[Int[Array, "B T"], Int[Array, "B T"]]) -> Float[Array, "B T"]:
        """Cross-entropy of labels, each after its token."""
        (tokens_BT, labels_BT), products = pair, kernel_products(self.kernels)
        if products is None:
            return cross_entropy(self(tokens_BT), labels_BT)
        from llcjax.models.kernels.cross_entropy import linear_cross_entropy  # Pallas loads slowly

        normed_ND = self._normed(tokens_BT).reshape(tokens_BT.size, -1)
        weight_DV, bias_V = self.unembed.kernel[...].astype(self.activations), bias_of(self.unembed)
        with jax.named_scope("unembed"):
            losses_N = linear_cross_entropy(products, normed_ND, weight_DV, bias_V, labels_BT.reshape(-1))
            return losses_N.reshape(labels_BT.shape)

    def _normed(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What is mapped to logits."""
        *_, x_BTD = self._stream(tokens_BT)
        with jax.named_scope("norm"):
            return self.final_norm(x_BTD)

    def _stream(self, tokens_BT: Int[Array, "B T"]) -> list[Float[Array, "B T D"]]:
        """The residual stream before the first block and after each."""
        with jax.named_scope("embed"):
            # Rows are rounded after they are taken, so that their gradients are added up in float32: faster, and exact.
            stream = [jnp.take(self.embed[...], tokens_BT, axis=0).astype(self.activations)]
        for block in self.blocks:
            stream.append(block(stream[-1], self.positions[: tokens_BT.shape[1]]))
        return stream

    def patterns(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "L B H T T"]:
        """The attention of every head of every block."""
        positions_TD, stream = self.positions[: tokens_BT.shape[1]], self._stream(tokens_BT)
        return jnp.stack([
            block.pattern(x_BTD, positions_TD) for block, x_BTD in zip(self.blocks, stream, strict=False)
        ])  # fmt: skip


def _placed(x_BTD: Float[Array, "B T D"], positions_TD: Float[Array, "T D"]) -> Float[Array, "B T D"]:
    """What queries and keys see."""
    return x_BTD + positions_TD.astype(x_BTD.dtype)


def _mapped(linear: nnx.Linear, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
    """A linear map without its bias."""
    return x @ linear.kernel[...].astype(x.dtype)


def _std(config: AttentionOnlyConfig) -> float:
    """Of all weights at the start: 0.8 / sqrt(D), which is 0.05 at the paper's width."""
    return 0.8 / math.sqrt(config.model_width)
