"""GPT-2 as Hugging Face keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llcjax.models.decoder import DecoderConfig
from llcjax.models.layout import activation
from llcjax.models.tensors import Tensors, norm, unembed
from llcjax.types import Params


def config_of(facts: Mapping[str, Any]) -> DecoderConfig:
    """The sizes that a `config.json` of GPT-2 states; a fact that it lacks is a KeyError."""
    if facts.get("scale_attn_by_inverse_layer_idx"):
        raise ValueError("scale_attn_by_inverse_layer_idx is on, which llcjax does not have.")
    width, heads = facts["n_embd"], facts["n_head"]
    return DecoderConfig(
        num_layers=facts["n_layer"],
        num_heads=heads,
        num_key_value_heads=heads,
        model_width=width,
        head_width=width // heads,
        mlp_width=facts.get("n_inner") or 4 * width,
        vocabulary=facts["vocab_size"],
        num_tokens=facts["n_positions"],
        norm="layer",
        norm_epsilon=facts.get("layer_norm_epsilon", 1e-5),
        activation=activation(facts.get("activation_function", "gelu_new")),
        gated=False,
        tied=facts.get("tie_word_embeddings", True),
    )


def params_of(tensors: Tensors, c: DecoderConfig) -> Params:
    """The parameters in the names of the decoder."""

    def block(layer: int) -> Params:
        at = f"transformer.h.{layer}."
        d, m = c.model_width, c.mlp_width
        # GPT-2 keeps kernels as (inputs, outputs) already.
        kernels = np.split(tensors.get(f"{at}attn.c_attn.weight", (d, 3 * d)), 3, axis=1)
        biases = np.split(tensors.get(f"{at}attn.c_attn.bias", (3 * d,)), 3)
        parts = zip(("query", "key", "value"), kernels, biases, strict=True)

        def dense(name: str, shape: tuple[int, int]) -> Params:
            return {"kernel": tensors.get(f"{name}.weight", shape), "bias": tensors.get(f"{name}.bias", shape[1:])}

        return {
            "norm_1": norm(tensors, f"{at}ln_1", d),
            "norm_2": norm(tensors, f"{at}ln_2", d),
            "attention": {
                **{name: {"kernel": kernel, "bias": bias} for name, kernel, bias in parts},
                "output": dense(f"{at}attn.c_proj", (d, d)),
            },
            "mlp": {"up": dense(f"{at}mlp.c_fc", (d, m)), "down": dense(f"{at}mlp.c_proj", (m, d))},
        }

    return {
        "embed": tensors.get("transformer.wte.weight", (c.vocabulary, c.model_width)),
        "positions": tensors.get("transformer.wpe.weight", (c.num_tokens, c.model_width)),
        "blocks": {str(layer): block(layer) for layer in range(c.num_layers)},
        "final_norm": norm(tensors, "transformer.ln_f", c.model_width),
        **unembed(tensors, c, "lm_head"),
    }
