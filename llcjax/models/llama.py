"""Llama as Hugging Face keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llcjax import checks
from llcjax.models.decoder import LARGEST, DecoderConfig
from llcjax.models.layout import activation, plain_rope
from llcjax.models.tensors import Tensors, dense, norm, unembed
from llcjax.types import Params


def config_of(facts: Mapping[str, Any]) -> DecoderConfig:
    """The sizes that a `config.json` of Llama states; a fact that it lacks is a KeyError."""
    width, heads = facts["hidden_size"], facts["num_attention_heads"]
    head_width = facts.get("head_dim") or width // heads
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    base = rope.get("rope_theta", facts.get("rope_theta", 10000.0))
    return DecoderConfig(
        num_layers=facts["num_hidden_layers"],
        num_heads=heads,
        num_key_value_heads=facts.get("num_key_value_heads") or heads,
        model_width=width,
        head_width=head_width,
        mlp_width=facts["intermediate_size"],
        vocabulary=facts["vocab_size"],
        num_tokens=facts["max_position_embeddings"],
        norm="rms",
        norm_epsilon=facts.get("rms_norm_eps", 1e-6),
        activation=activation(facts.get("hidden_act", "silu")),
        gated=True,
        rotary_width=head_width,
        rotary_base=base,
        rotary_frequencies=_llama3_frequencies(rope, base, head_width),
        tied=facts.get("tie_word_embeddings", False),
    )


def _llama3_frequencies(rope: Mapping[str, Any], base: float, width: int) -> tuple[float, ...] | None:
    """Frequencies of Llama 3.1: slow ones divided by `factor`, a smooth step between (its reference code)."""
    if rope.get("rope_type", rope.get("type", "default")) != "llama3":
        return plain_rope(rope)
    checks.count("head_width", width, 1, LARGEST)
    frequencies = base ** (-np.arange(width // 2) * 2 / width)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return tuple((frequencies * (smooth + (1 - smooth) / rope["factor"])).tolist())


def params_of(tensors: Tensors, c: DecoderConfig) -> Params:
    """The parameters in the names of the decoder."""

    def block(layer: int) -> Params:
        at = f"model.layers.{layer}."
        d, m = c.model_width, c.mlp_width
        wide, narrow = c.num_heads * c.head_width, c.num_key_value_heads * c.head_width
        return {
            "norm_1": norm(tensors, f"{at}input_layernorm", d),
            "norm_2": norm(tensors, f"{at}post_attention_layernorm", d),
            "attention": {
                "query": dense(tensors, f"{at}self_attn.q_proj", (d, wide)),
                "key": dense(tensors, f"{at}self_attn.k_proj", (d, narrow)),
                "value": dense(tensors, f"{at}self_attn.v_proj", (d, narrow)),
                "output": dense(tensors, f"{at}self_attn.o_proj", (wide, d)),
            },
            "mlp": {
                "gate": dense(tensors, f"{at}mlp.gate_proj", (d, m)),
                "up": dense(tensors, f"{at}mlp.up_proj", (d, m)),
                "down": dense(tensors, f"{at}mlp.down_proj", (m, d)),
            },
        }

    return {
        "embed": tensors.get("model.embed_tokens.weight", (c.vocabulary, c.model_width)),
        "blocks": {str(layer): block(layer) for layer in range(c.num_layers)},
        "final_norm": norm(tensors, "model.norm", c.model_width),
        **unembed(tensors, c, "lm_head"),
    }
