"""The tensors of a folder of safetensors files, by name and shape, and the layers that torch makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llcjax.models.decoder import DecoderConfig
from llcjax.types import Params
from llcjax.untrusted import reason


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
        except Exception as error:  # as above
            kind = opened.get_slice(found).get_dtype()
            raise ValueError(
                f"the tensor {found!r} of shape {shape} in {path} has type {kind} ({reason(error)})."
            ) from error

    def _found(self, name: str) -> str | None:
        # Files of the bare model leave the prefix out.
        bare = name.split(".", 1)[-1]
        return next((known for known in (name, bare) if known in self.files), None)


def norm(tensors: Tensors, name: str, width: int) -> Params:
    """Scale, and bias where there is one, of a norm."""
    found = {"scale": tensors.get(f"{name}.weight", (width,))}
    return {**found, "bias": tensors.get(f"{name}.bias", (width,))} if f"{name}.bias" in tensors else found


def dense(tensors: Tensors, name: str, shape: tuple[int, int]) -> Params:
    """A layer that torch keeps as (outputs, inputs)."""
    found = {"kernel": tensors.get(f"{name}.weight", shape[::-1]).T}
    return {**found, "bias": tensors.get(f"{name}.bias", shape[1:])} if f"{name}.bias" in tensors else found


def unembed(tensors: Tensors, c: DecoderConfig, name: str) -> Params:
    """The unembedding; none where it is the embedding."""
    return {} if c.tied else {"unembed": dense(tensors, name, (c.model_width, c.vocabulary))}
