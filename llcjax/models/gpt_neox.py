"""GPT-NeoX (Pythia) as Hugging Face keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llcjax.models.decoder import DecoderConfig
from llcjax.models.layout import activation, plain_rope
from llcjax.models.tensors import Tensors, dense, norm, unembed
from llcjax.types import Params


def config_of(facts: Mapping[str, Any]) -> DecoderConfig:
    """The sizes that a `config.json` of GPT-NeoX states; a fact that it lacks is a KeyError."""
    width, heads = facts["hidden_size"], facts["num_attention_heads"]
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    plain_rope(rope)
    share = rope.get("partial_rotary_factor", facts.get("rotary_pct", facts.get("partial_rotary_factor", 0.25)))
    return DecoderConfig(
        num_layers=facts["num_hidden_layers"],
        num_heads=heads,
        num_key_value_heads=heads,
        model_width=width,
        head_width=width // heads,
        mlp_width=facts["intermediate_size"],
        vocabulary=facts["vocab_size"],
        num_tokens=facts["max_position_embeddings"],
        norm="layer",
        norm_epsilon=facts.get("layer_norm_eps", 1e-5),
        activation=activation(facts.get("hidden_act", "gelu")),
        gated=False,
        parallel=facts.get("use_parallel_residual", True),
        rotary_width=int(width // heads * share),
        rotary_base=rope.get("rope_theta", facts.get("rotary_emb_base", facts.get("rope_theta", 10000.0))),
        tied=facts.get("tie_word_embeddings", False),
    )


def params_of(tensors: Tensors, c: DecoderConfig) -> Params:
    """The parameters in the names of the decoder."""

    def block(layer: int) -> Params:
        at = f"gpt_neox.layers.{layer}."
        d, m, heads = c.model_width, c.mlp_width, c.num_heads
        # Query, key and value of a head follow each other.
        fused = tensors.get(f"{at}attention.query_key_value.weight", (3 * d, d)).reshape(heads, 3, c.head_width, d)
        kernels = {name: fused[:, i].reshape(d, d).T for i, name in enumerate(("query", "key", "value"))}
        biases = {}
        if f"{at}attention.query_key_value.bias" in tensors:
            joined = tensors.get(f"{at}attention.query_key_value.bias", (3 * d,)).reshape(heads, 3, c.head_width)
            biases = {name: {"bias": joined[:, i].reshape(d)} for i, name in enumerate(kernels)}
        return {
            "norm_1": norm(tensors, f"{at}input_layernorm", d),
            "norm_2": norm(tensors, f"{at}post_attention_layernorm", d),
            "attention": {
                **{name: {"kernel": kernel, **biases.get(name, {})} for name, kernel in kernels.items()},
                "output": dense(tensors, f"{at}attention.dense", (d, d)),
            },
            "mlp": {
                "up": dense(tensors, f"{at}mlp.dense_h_to_4h", (d, m)),
                "down": dense(tensors, f"{at}mlp.dense_4h_to_h", (m, d)),
            },
        }

    return {
        "embed": tensors.get("gpt_neox.embed_in.weight", (c.vocabulary, c.model_width)),
        "blocks": {str(layer): block(layer) for layer in range(c.num_layers)},
        "final_norm": norm(tensors, "gpt_neox.final_layer_norm", c.model_width),
        **unembed(tensors, c, "embed_out"),
    }
