"""Models that others trained: Hugging Face folders (GPT-2, GPT-NeoX, Llama) and llama2.c files, without torch.

A folder has `config.json` and `model.safetensors` (or shards with `model.safetensors.index.json`). Fused projections
are cut, kernels are turned to (inputs, outputs), and names become those of `llcjax.models.decoder`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from llcjax import checks, trees
from llcjax.models import gpt2, gpt_neox, llama, llama2c
from llcjax.models.decoder import DecoderConfig, Pretrained
from llcjax.models.layout import Layout
from llcjax.models.tensors import Tensors
from llcjax.types import Params
from llcjax.untrusted import read_json, reason

LAYOUTS = {
    "gpt2": Layout(gpt2.config_of, gpt2.params_of),
    "gpt_neox": Layout(gpt_neox.config_of, gpt_neox.params_of),
    "llama": Layout(llama.config_of, llama.params_of),
}
"""By the `model_type` of a config."""


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
