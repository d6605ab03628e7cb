"""One pure function for the decoder-only transformers of others: GPT-2, GPT-NeoX (Pythia) and Llama layouts.

The layouts differ in a handful of choices, which are fields of `DecoderConfig`; parameters have one set of names, so
that components of any of them are selected alike:

    embed, positions, blocks/0/{norm_1,norm_2}/{scale,bias}, blocks/0/attention/{query,key,value,output}/{kernel,bias},
    blocks/0/mlp/{up,gate,down}/{kernel,bias}, final_norm/{scale,bias}, unembed/kernel

Kernels are (inputs, outputs); what a model does not have is absent. Shape letters: B batch, T tokens, D model width,
H heads, G heads of keys and values, C head width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from llcjax import checks
from llcjax.types import ApplyFn, Params

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]
LARGEST = 2**24
"""No vocabulary, context or width of a model is larger; what a file says beyond it would fill the memory."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Sizes and choices of a decoder-only transformer."""

    num_layers: int
    num_heads: int
    num_key_value_heads: int
    """Heads of keys and values; queries of several heads share one where it is smaller than num_heads."""
    model_width: int
    head_width: int
    mlp_width: int
    vocabulary: int
    num_tokens: int
    """Longest sequence."""
    norm: Literal["layer", "rms"]
    norm_epsilon: float
    activation: Activation
    gated: bool
    """Whether the MLP multiplies its activations by a second projection (Llama)."""
    parallel: bool = False
    """Whether attention and MLP read the same residual stream (GPT-NeoX)."""
    rotary_width: int = 0
    """Leading entries of each head that are rotated by position; 0: positions are a learned table."""
    rotary_base: float = 10000.0
    rotary_frequencies: tuple[float, ...] | None = None
    """Frequencies of the pairs, where they are not rotary_base ** (-2 i / rotary_width)."""
    rotary_interleaved: bool = False
    """Whether pairs are neighbours (llama2.c) or half a rotary width apart (Hugging Face)."""
    tied: bool = False
    """Whether the unembedding is the embedding."""

    def __post_init__(self) -> None:
        """Checks the sizes, which come from files.

        Raises:
            ValueError: a size that is none, or heads that do not divide.
        """
        sizes = ("num_layers", "num_heads", "num_key_value_heads", "model_width", "head_width", "mlp_width")
        for name in (*sizes, "vocabulary", "num_tokens"):
            checks.count(name, getattr(self, name), 1, LARGEST)
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_key_value_heads={self.num_key_value_heads}; "
                "heads of queries share those of keys and values evenly."
            )
        if not 0 <= self.rotary_width <= self.head_width:
            raise ValueError(f"rotary_width={self.rotary_width} must be between 0 and head_width={self.head_width}.")
        for name in ("norm_epsilon", "rotary_base"):
            checks.number(name, getattr(self, name))


class Pretrained(NamedTuple):
    """A model from disk."""

    config: DecoderConfig
    params: Params


def decoder(config: DecoderConfig, *, rematerialize: bool = False) -> ApplyFn:
    """The forward pass of a configuration.

    Args:
        config: sizes and choices.
        rematerialize: recomputes each block in the backward pass instead of keeping its activations: memory of one
            block, a third more arithmetic.

    Returns:
        `apply(params, tokens)`: token ids `(batch, token)` to logits `(batch, token, vocabulary)`, in float32.
    """
    one_block = lambda params, x: _block(config, params, x)  # noqa: E731
    one_block = jax.checkpoint(one_block) if rematerialize else one_block

    def apply(params: Params, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        length = tokens_BT.shape[1]
        if length > config.num_tokens:
            raise ValueError(f"tokens are {length} long, but the model takes at most {config.num_tokens}; cut them.")
        with jax.named_scope("embed"):
            x_BTD = jnp.take(params["embed"], tokens_BT, axis=0)
            if not config.rotary_width:
                x_BTD = x_BTD + params["positions"][:length]
        for layer in range(config.num_layers):
            x_BTD = one_block(params["blocks"][str(layer)], x_BTD)
        x_BTD = _norm(config, params["final_norm"], x_BTD)
        with jax.named_scope("unembed"):
            return x_BTD @ params["embed"].T if config.tied else _linear(params["unembed"], x_BTD)

    return apply


def _block(config: DecoderConfig, params: Params, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    mixed_BTD = x_BTD + _attention(config, params["attention"], _norm(config, params["norm_1"], x_BTD))
    read_BTD = x_BTD if config.parallel else mixed_BTD
    return mixed_BTD + _mlp(config, params["mlp"], _norm(config, params["norm_2"], read_BTD))


@jax.named_scope("norm")
def _norm(config: DecoderConfig, params: Params, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    if config.norm == "layer":
        x_BTD = x_BTD - jnp.mean(x_BTD, -1, keepdims=True)
    scaled = x_BTD * jax.lax.rsqrt(jnp.mean(jnp.square(x_BTD), -1, keepdims=True) + config.norm_epsilon)
    scaled = scaled * params["scale"]
    return scaled + params["bias"] if "bias" in params else scaled


def _linear(params: Params, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
    y = x @ params["kernel"]
    return y + params["bias"] if "bias" in params else y


@jax.named_scope("mlp")
def _mlp(config: DecoderConfig, params: Params, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    functions: dict[str, Any] = {
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": jax.nn.gelu,
        "silu": jax.nn.silu,
        "relu": jax.nn.relu,
    }
    act = functions[config.activation]
    if config.gated:
        return _linear(params["down"], act(_linear(params["gate"], x_BTD)) * _linear(params["up"], x_BTD))
    return _linear(params["down"], act(_linear(params["up"], x_BTD)))


@jax.named_scope("attention")
def _attention(config: DecoderConfig, params: Params, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    shape = x_BTD.shape[:2]
    q_BTHC = _linear(params["query"], x_BTD).reshape(*shape, config.num_heads, config.head_width)
    k_BTGC, v_BTGC = (
        _linear(params[name], x_BTD).reshape(*shape, config.num_key_value_heads, config.head_width)
        for name in ("key", "value")
    )
    if config.rotary_width:
        q_BTHC, k_BTGC = (_rotated(config, part) for part in (q_BTHC, k_BTGC))
    mixed_BTHC = jax.nn.dot_product_attention(q_BTHC, k_BTGC, v_BTGC, is_causal=True)
    return _linear(params["output"], mixed_BTHC.reshape(*shape, -1))


def _rotated(config: DecoderConfig, x_BTHC: Float[Array, "B T H C"]) -> Float[Array, "B T H C"]:
    """Rotates pairs of entries by their position times a frequency (Su et al. 2021, arXiv 2104.09864)."""
    width, half = config.rotary_width, config.rotary_width // 2
    frequencies = config.rotary_frequencies or config.rotary_base ** (-np.arange(half) * 2 / width)
    angles_TE = np.arange(x_BTHC.shape[1])[:, None] * np.asarray(frequencies)
    cos, sin = (jnp.asarray(f(angles_TE), jnp.float32)[:, None, :] for f in (np.cos, np.sin))
    rotary, rest = x_BTHC[..., :width], x_BTHC[..., width:]
    if config.rotary_interleaved:
        a, b = rotary[..., ::2], rotary[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(rotary.shape)
    else:
        a, b = rotary[..., :half], rotary[..., half:]
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([turned, rest], -1)
