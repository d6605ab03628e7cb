"""What the configurations of the transformers share."""

from __future__ import annotations

from typing import Any, Literal

Activations = Literal["float32", "float16", "bfloat16"]
"""How what stands between the layers of a model is stored."""


def check_sizes(config: Any, *sizes: int) -> None:
    """Refuses a configuration with a size below 1, or whose heads do not divide its width.

    Args:
        config: has `model_width` and `num_heads`.
        sizes: all of its sizes.

    Raises:
        ValueError: the sentence names the sizes and the fix.
    """
    if min(sizes) < 1:
        raise ValueError(f"model sizes must be at least 1, but got {config}.")
    if config.model_width % config.num_heads:
        raise ValueError(
            f"model_width={config.model_width} is not a multiple of num_heads={config.num_heads}; "
            "choose a width that the heads divide."
        )
