"""Models that others trained: Hugging Face folders (GPT-2, GPT-NeoX, Llama) and llama2.c files, without torch.

A folder has `config.json` and `model.safetensors` (or shards with `model.safetensors.index.json`). Fused projections
are cut, kernels are turned to (inputs, outputs), and names become those of `llcjax.models.decoder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from llcjax import checks, trees
from llcjax.models import llama2c
from llcjax.models.decoder import DecoderConfig, Pretrained, check_numbers
from llcjax.types import Params
from llcjax.untrusted import read_json, reason

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu", "swish": "silu", "relu": "relu",
}  # fmt: skip


def load_pretrained(path: Path | str) -> Pretrained:
    """Loads a Hugging Face folder or a llama2.c file as float32.

    Args:
        path: a folder with `config.json` and safetensors, or a `.bin` file in the first format of llama2.c.

    Raises:
        ValueError: something is missing or does not fit; the sentence names the tensor, the shape and the file.
    """
    path = checks.path("model", path)
    if path.is_file() and path.suffix == ".bin":
        return llama2c.read(path)
    config = read_config(path)
    return Pretrained(config, read_params(path, config))


def read_config(path: Path | str) -> DecoderConfig:
    """The configuration of a model on disk, without its parameters."""
    path = Path(path)
    if path.is_file() and path.suffix == ".bin":
        return llama2c.read_config(path)
    facts, kind = _facts(path)
    try:
        return LAYOUTS[kind].config(facts)
    except KeyError as error:
        raise ValueError(f"{path / 'config.json'} lacks {error} of a {kind} model; add it.") from None
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path / 'config.json'} has a value of the wrong type ({reason(error)}).") from None


def read_params(path: Path | str, config: DecoderConfig) -> Params:
    """The parameters of a Hugging Face folder or a llama2.c file in the names of the decoder."""
    path = Path(path)
    if path.is_file():
        return llama2c.read(path).params
    kind = _facts(path)[1]
    return LAYOUTS[kind].params(Tensors(path), config)


def save_pretrained(params: Params, path: Path | str) -> None:
    """Saves parameters as one safetensors file, `blocks/0/mlp/up/kernel` and so on, that `import_bank` reads."""
    from safetensors.numpy import save_file

    leaves = jax.tree_util.tree_leaves_with_path(params)
    save_file({trees.path_name(name): np.ascontiguousarray(leaf) for name, leaf in leaves}, str(path))


class Tensors:
    """Tensors of a folder by name, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ValueError("reading models needs the extra: pip install 'llcjax[pretrained]'.") from error
        self.folder = folder
        self.files: dict[str, Any] = {}
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise ValueError(f"{folder} has no .safetensors file; save the model with safe_serialization.")
        for path in paths:
            try:
                opened = safe_open(path, framework="numpy")
                self.files.update(dict.fromkeys(opened.keys(), (path, opened)))  # no mapping
            except Exception as error:  # safetensors has its own error type, not exported by older releases
                raise ValueError(f"{path} is no readable .safetensors file ({reason(error)}).") from error

    def __contains__(self, name: str) -> bool:
        return self._found(name) is not None

    def get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor as float32.

        Raises:
            ValueError: it is missing, has another shape, or a type that numpy does not know.
        """
        found = self._found(name)
        if found is None:
            raise ValueError(f"{self.folder} has no tensor {name!r} of shape {shape}; its files hold another model.")
        path, opened = self.files[found]
        held = tuple(opened.get_slice(found).get_shape())
        if held != shape:
            raise ValueError(f"the tensor {found!r} of {path} has shape {held}, but the config asks for {shape}.")
        try:
            return np.asarray(opened.get_tensor(found)).astype(np.float32)
        except Exception as error:  # safetensors has its own error type, not exported by older releases
            kind = opened.get_slice(found).get_dtype()
            raise ValueError(
                f"the tensor {found!r} of shape {shape} in {path} has type {kind} ({reason(error)})."
            ) from error

    def _found(self, name: str) -> str | None:
        # Files of the bare model leave the prefix out.
        bare = name.split(".", 1)[-1]
        return next((known for known in (name, bare) if known in self.files), None)


class Layout(NamedTuple):
    """How one kind of model is read."""

    config: Callable[[Mapping[str, Any]], DecoderConfig]
    params: Callable[[Tensors, DecoderConfig], Params]


def _facts(folder: Path) -> tuple[dict[str, Any], str]:
    file = folder / "config.json"
    try:
        facts = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file} cannot be read ({reason(error)}); give a Hugging Face folder or a llama2.c .bin."
        ) from None
    kind = facts.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        raise ValueError(f"{file} has model_type {kind!r:.100}; llcjax reads {', '.join(LAYOUTS)}.")
    return facts, kind


def _activation(name: str) -> Any:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r:.100} is unknown; llcjax has {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _gpt2_config(facts: Mapping[str, Any]) -> DecoderConfig:
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
        activation=_activation(facts.get("activation_function", "gelu_new")),
        gated=False,
        tied=facts.get("tie_word_embeddings", True),
    )


def _gpt2_params(tensors: Tensors, c: DecoderConfig) -> Params:
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
            "norm_1": _norm(tensors, f"{at}ln_1", d),
            "norm_2": _norm(tensors, f"{at}ln_2", d),
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
        "final_norm": _norm(tensors, "transformer.ln_f", c.model_width),
        **_unembed(tensors, c, "lm_head"),
    }


def _neox_config(facts: Mapping[str, Any]) -> DecoderConfig:
    width, heads = facts["hidden_size"], facts["num_attention_heads"]
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    _plain_rope(rope)
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
        activation=_activation(facts.get("hidden_act", "gelu")),
        gated=False,
        parallel=facts.get("use_parallel_residual", True),
        rotary_width=int(width // heads * share),
        rotary_base=rope.get("rope_theta", facts.get("rotary_emb_base", facts.get("rope_theta", 10000.0))),
        tied=facts.get("tie_word_embeddings", False),
    )


def _neox_params(tensors: Tensors, c: DecoderConfig) -> Params:
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
            "norm_1": _norm(tensors, f"{at}input_layernorm", d),
            "norm_2": _norm(tensors, f"{at}post_attention_layernorm", d),
            "attention": {
                **{name: {"kernel": kernel, **biases.get(name, {})} for name, kernel in kernels.items()},
                "output": _dense(tensors, f"{at}attention.dense", (d, d)),
            },
            "mlp": {
                "up": _dense(tensors, f"{at}mlp.dense_h_to_4h", (d, m)),
                "down": _dense(tensors, f"{at}mlp.dense_4h_to_h", (m, d)),
            },
        }

    return {
        "embed": tensors.get("gpt_neox.embed_in.weight", (c.vocabulary, c.model_width)),
        "blocks": {str(layer): block(layer) for layer in range(c.num_layers)},
        "final_norm": _norm(tensors, "gpt_neox.final_layer_norm", c.model_width),
        **_unembed(tensors, c, "embed_out"),
    }


def _llama_config(facts: Mapping[str, Any]) -> DecoderConfig:
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
        activation=_activation(facts.get("hidden_act", "silu")),
        gated=True,
        rotary_width=head_width,
        rotary_base=base,
        rotary_frequencies=_llama3_frequencies(rope, base, head_width),
        tied=facts.get("tie_word_embeddings", False),
    )


def _plain_rope(rope: Mapping[str, Any]) -> None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type={kind!r} is not read by llcjax; it has 'default', and 'llama3' for Llama.")


def _llama3_frequencies(rope: Mapping[str, Any], base: float, width: int) -> tuple[float, ...] | None:
    """Frequencies of Llama 3.1: slow ones divided by `factor`, a smooth step between (its reference code)."""
    if rope.get("rope_type", rope.get("type", "default")) != "llama3":
        return _plain_rope(rope)
    check_numbers(head_width=width)
    frequencies = base ** (-np.arange(width // 2) * 2 / width)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return tuple((frequencies * (smooth + (1 - smooth) / rope["factor"])).tolist())


def _llama_params(tensors: Tensors, c: DecoderConfig) -> Params:
    def block(layer: int) -> Params:
        at = f"model.layers.{layer}."
        d, m = c.model_width, c.mlp_width
        wide, narrow = c.num_heads * c.head_width, c.num_key_value_heads * c.head_width
        return {
            "norm_1": _norm(tensors, f"{at}input_layernorm", d),
            "norm_2": _norm(tensors, f"{at}post_attention_layernorm", d),
            "attention": {
                "query": _dense(tensors, f"{at}self_attn.q_proj", (d, wide)),
                "key": _dense(tensors, f"{at}self_attn.k_proj", (d, narrow)),
                "value": _dense(tensors, f"{at}self_attn.v_proj", (d, narrow)),
                "output": _dense(tensors, f"{at}self_attn.o_proj", (wide, d)),
            },
            "mlp": {
                "gate": _dense(tensors, f"{at}mlp.gate_proj", (d, m)),
                "up": _dense(tensors, f"{at}mlp.up_proj", (d, m)),
                "down": _dense(tensors, f"{at}mlp.down_proj", (m, d)),
            },
        }

    return {
        "embed": tensors.get("model.embed_tokens.weight", (c.vocabulary, c.model_width)),
        "blocks": {str(layer): block(layer) for layer in range(c.num_layers)},
        "final_norm": _norm(tensors, "model.norm", c.model_width),
        **_unembed(tensors, c, "lm_head"),
    }


def _norm(tensors: Tensors, name: str, width: int) -> Params:
    found = {"scale": tensors.get(f"{name}.weight", (width,))}
    return {**found, "bias": tensors.get(f"{name}.bias", (width,))} if f"{name}.bias" in tensors else found


def _dense(tensors: Tensors, name: str, shape: tuple[int, int]) -> Params:
    """A layer that torch keeps as (outputs, inputs)."""
    found = {"kernel": tensors.get(f"{name}.weight", shape[::-1]).T}
    return {**found, "bias": tensors.get(f"{name}.bias", shape[1:])} if f"{name}.bias" in tensors else found


def _unembed(tensors: Tensors, c: DecoderConfig, name: str) -> Params:
    return {} if c.tied else {"unembed": _dense(tensors, name, (c.model_width, c.vocabulary))}


LAYOUTS = {
    "gpt2": Layout(_gpt2_config, _gpt2_params),
    "gpt_neox": Layout(_neox_config, _neox_params),
    "llama": Layout(_llama_config, _llama_params),
}
