"""The attention-only language model of arXiv 2402.02364 (section 2.1 and its code).

Pre-norm attention blocks without MLPs. Positions are those of the shortformer (arXiv 2012.15832): one learned table,
added to what queries and keys see in every block and never to the residual stream.

Shape letters: B batch, T tokens, D model width, H heads, C head width, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from llcjax.models.attention import attention_products, causal_attention
from llcjax.models.functional import functional
from llcjax.models.half_linear import bias_of, mapped
from llcjax.models.kernels import NORM_EPSILON, Kernels, Products, kernel_products
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


_Added = tuple[Float[Array, "B T D"], Float[Array, " D"]]
"""What a block adds to the stream, and a bias to be added with it."""


class _Attention(nnx.Module):
    """Causal softmax attention with biases; positions go to queries and keys."""

    def __init__(self, config: AttentionOnlyConfig, dtype: jnp.dtype, kernels: Kernels, rngs: nnx.Rngs) -> None:
        self.num_heads = config.num_heads
        self.kernels: Kernels = kernels
        width, spread = config.model_width, nnx.initializers.normal(_std(config))
        self.query, self.key, self.value, self.output = (
            nnx.Linear(width, width, kernel_init=spread, dtype=dtype, rngs=rngs) for _ in range(4)
        )

    def __call__(self, normed_BTD: Float[Array, "B T D"], placed_BTD: Float[Array, "B T D"]) -> _Added:
        heads_BTHC = (*normed_BTD.shape[:2], self.num_heads, normed_BTD.shape[2] // self.num_heads)
        products = attention_products(heads_BTHC, normed_BTD.dtype, self.kernels)
        if products is not None:
            return self._by_kernels(products, normed_BTD, placed_BTD)
        with jax.named_scope("qkv"):
            parts = self.query(placed_BTD), self.key(placed_BTD), self.value(normed_BTD)
        with jax.named_scope("attention"):
            mixed_BTHC = causal_attention(*(part_BTD.reshape(heads_BTHC) for part_BTD in parts))
        with jax.named_scope("output"):
            kernel_DD = self.output.kernel[...].astype(mixed_BTHC.dtype)
            return mixed_BTHC.reshape(normed_BTD.shape) @ kernel_DD, bias_of(self.output)

    def _by_kernels(
        self, products: Products, normed_BTD: Float[Array, "B T D"], placed_BTD: Float[Array, "B T D"]
    ) -> _Added:
        """The same with as few passes over rows as there can be: one that adds a bias takes as long as a map.

        A bias of the keys adds the same to all scores of a query, which the softmax takes off again. The weights of a
        softmax add up to 1, so that the bias of the values can go through the output map. Rows are flat in front of
        maps: XLA writes transposed copies for the gradient of a matrix if it is a sum over two axes.
        """
        from llcjax.models.kernels.long_attention import long_attention  # Pallas loads slowly

        normed_ND, placed_ND = (array_BTD.reshape(-1, array_BTD.shape[2]) for array_BTD in (normed_BTD, placed_BTD))
        batch, tokens, width = normed_BTD.shape
        with jax.named_scope("qkv"):
            both_DE = jnp.concatenate((self.query.kernel[...], self.key.kernel[...]), axis=1)
            qk_BTGC = mapped(placed_ND, both_DE).reshape(batch, tokens, 2 * self.num_heads, -1)
            v_BTHC = mapped(normed_ND, self.value.kernel[...]).reshape(batch, tokens, self.num_heads, -1)
        with jax.named_scope("attention"):
            bias_HC = bias_of(self.query).reshape(self.num_heads, -1)
            mixed_ND = long_attention(products, qk_BTGC, v_BTHC, bias_HC).reshape(-1, width)
        with jax.named_scope("output"):
            bias_D = bias_of(self.output) + bias_of(self.value) @ self.output.kernel[...]
            return mapped(mixed_ND, self.output.kernel[...]).reshape(normed_BTD.shape), bias_D

    def pattern(self, placed_BTD: Float[Array, "B T D"]) -> Float[Array, "B H T T"]:
        """How much each token attends to itself and to earlier ones, which kernels never write."""
        heads_BTHC = (*placed_BTD.shape[:2], self.num_heads, -1)
        q_BTHC, k_BTHC = (part(placed_BTD).reshape(heads_BTHC) for part in (self.query, self.key))
        scores_BHTT = jnp.einsum("bqhc,bkhc->bhqk", q_BTHC, k_BTHC) / jnp.sqrt(q_BTHC.shape[-1])
        earlier_TT = jnp.tril(jnp.ones((placed_BTD.shape[1],) * 2, bool))
        return jax.nn.softmax(jnp.where(earlier_TT, scores_BHTT, -jnp.inf), -1)


class _Block(nnx.Module):
    """Pre-norm attention. What it finds is added to the residual stream where the next norm reads it."""

    def __init__(self, config: AttentionOnlyConfig, dtype: jnp.dtype, kernels: Kernels, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(config.model_width, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.attention = _Attention(config, dtype, kernels, rngs)


class _LanguageModel(nnx.Module):
    """Embedding, blocks, final norm, unembedding of its own."""

    def __init__(self, config: AttentionOnlyConfig, dtype: jnp.dtype, kernels: Kernels, rngs: nnx.Rngs) -> None:
        spread = nnx.initializers.normal(_std(config))
        self.activations = dtype
        self.kernels: Kernels = kernels
        self.embed = nnx.Param(spread(rngs.params(), (config.vocabulary, config.model_width), jnp.float32))
        self.positions = nnx.Param(spread(rngs.params(), (config.num_tokens, config.model_width), jnp.float32))
        self.blocks = nnx.List([_Block(config, dtype, kernels, rngs) for _ in range(config.num_layers)])
        self.final_norm = nnx.LayerNorm(config.model_width, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)
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
        return self._run(tokens_BT)[0]

    def patterns(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "L B H T T"]:
        """The attention of every head of every block."""
        _, seen = self._run(tokens_BT)
        return jnp.stack([block.attention.pattern(seen_BTD) for block, seen_BTD in zip(self.blocks, seen, strict=True)])

    def _run(self, tokens_BT: Int[Array, "B T"]) -> tuple[Float[Array, "B T D"], list[Float[Array, "B T D"]]]:
        """What is mapped to logits, and what queries and keys of each block see."""
        length, first, seen = tokens_BT.shape[1], self.blocks[0], []
        if length > len(self.positions):
            raise ValueError(
                f"tokens of shape {tokens_BT.shape} are longer than the {len(self.positions)} positions of the model; "
                "cut them to that length."
            )
        positions_TD = self.positions[:length]
        stream_BTD, normed_BTD, placed_BTD = self._embedded(first.norm, tokens_BT, positions_TD)
        added = first.attention(normed_BTD, placed_BTD)
        seen.append(placed_BTD)
        for block in self.blocks[1:]:
            stream_BTD, normed_BTD, placed_BTD = self._after(block.norm, stream_BTD, added, positions_TD)
            added = block.attention(normed_BTD, placed_BTD)
            seen.append(placed_BTD)
        return self._after(self.final_norm, stream_BTD, added)[0], seen

    @jax.named_scope("embed")
    def _embedded(
        self, norm: nnx.LayerNorm, tokens_BT: Int[Array, "B T"], positions_TD: Float[Array, "T D"]
    ) -> tuple[Float[Array, "B T D"], ...]:
        """The stream at its beginning, its norm, and the norm with positions."""
        table_VD, products = self.embed[...], self._kernels_that_fit(tokens_BT.shape[1])
        if products is not None:
            from llcjax.models.kernels.residual_norm import Norm, embedding_norm  # Pallas loads slowly

            parameters = Norm(*_scale_and_shift(norm), positions_TD)
            return embedding_norm(products, self.activations, table_VD, tokens_BT, parameters)
        # Rows are rounded after they are taken, so that their gradients are added up in float32: faster, and exact.
        stream_BTD = jnp.take(table_VD, tokens_BT, axis=0).astype(self.activations)
        return stream_BTD, *_with_positions(norm(stream_BTD), positions_TD)

    @jax.named_scope("norm")
    def _after(
        self,
        norm: nnx.LayerNorm,
        stream_BTD: Float[Array, "B T D"],
        added: _Added,
        positions_TD: Float[Array, "T D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], ...]:
        """The stream after a block, its norm, and the norm with positions; without positions the norm alone."""
        (added_BTD, bias_D), products = added, self._kernels_that_fit(stream_BTD.shape[1])
        if products is not None:
            from llcjax.models.kernels.residual_norm import Norm, residual_norm  # Pallas loads slowly

            parameters = Norm(*_scale_and_shift(norm), positions_TD)
            return residual_norm(products, stream_BTD, added_BTD, bias_D, parameters)
        stream_BTD = stream_BTD + (added_BTD + bias_D.astype(added_BTD.dtype))
        found = _with_positions(norm(stream_BTD), positions_TD)
        return found if positions_TD is None else (stream_BTD, *found)

    def _kernels_that_fit(self, num_tokens: int) -> Products | None:
        """Those between blocks, where they are taken."""
        products = kernel_products(self.kernels, self.activations.name)
        if products is None:
            return None
        from llcjax.models.kernels.residual_norm import fits  # Pallas loads slowly

        return products if fits(num_tokens, self.embed.shape[1]) else None


def _with_positions(
    normed_BTD: Float[Array, "B T D"], positions_TD: Float[Array, "T D"] | None
) -> tuple[Float[Array, "B T D"], ...]:
    if positions_TD is None:
        return (normed_BTD,)
    return normed_BTD, normed_BTD + positions_TD.astype(normed_BTD.dtype)


def _scale_and_shift(norm: nnx.LayerNorm) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    scale, shift = norm.scale, norm.bias
    if scale is None or shift is None:
        raise ValueError("norm has no scale or no shift; make it with both, as flax does by default.")
    return scale[...], shift[...]


def _std(config: AttentionOnlyConfig) -> float:
    """Of all weights at the start: 0.8 / sqrt(D), which is 0.05 at the paper's width."""
    return 0.8 / math.sqrt(config.model_width)
