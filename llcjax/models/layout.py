"""What the layouts of Hugging Face have in common: two functions each, and the words of their configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from llcjax.models.decoder import DecoderConfig
from llcjax.models.tensors import Tensors
from llcjax.types import Params

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu", "swish": "silu", "relu": "relu",
}  # fmt: skip


class Layout(NamedTuple):
    """How one kind of model is read."""

    config: Callable[[Mapping[str, Any]], DecoderConfig]
    params: Callable[[Tensors, DecoderConfig], Params]


def activation(name: str) -> Any:
    """Our name of an activation.

    Raises:
        ValueError: it is unknown.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r:.100} is unknown; llcjax has {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def plain_rope(rope: Mapping[str, Any]) -> None:
    """Refuses scaled rotary positions, which would be read wrongly.

    Raises:
        ValueError: any other kind than the plain one.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"rope_type={kind!r} is not read by llcjax; it has 'default', and 'llama3' for Llama.")
