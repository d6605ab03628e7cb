"""Checkpoints that others saved, as a bank: per-step orbax folders, `.npz` or `.safetensors` files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llcjax import checks, trees
from llcjax.checkpoints import CheckpointBank, is_bank, load_bank, restore_tree
from llcjax.types import Params
from llcjax.untrusted import check_expansion, reason

_UNFINISHED = ".orbax-checkpoint-tmp"
"""In the name of a folder that orbax has not finished, and moves to its place when it has."""


def import_bank(folder: Path | str) -> CheckpointBank:
    """Imports a series of checkpoints: per-step orbax folders, or `.npz` or `.safetensors` files.

    The last number in the name of each folder or file is its training step. Parameters keep the names of the
    file; a `/` in a name nests. A bank that llcjax saved is loaded as it is. Folders that orbax was writing when it
    was stopped are left out.

    Raises:
        ValueError: no checkpoint found, two of one step, or parameters of unequal names or shapes.
    """
    folder = checks.path("folder", folder)
    if is_bank(folder):
        return load_bank(folder)
    found = sorted((step, path, read) for path, read in _readers(folder) if (step := _step_in(path)) is not None)
    if not found:
        raise ValueError(
            f"{folder} has no checkpoints; it needs folders written by orbax, or .npz or .safetensors files, "
            "with the training step in each name."
        )
    trees_read = [read(path) for _, path, read in found]
    _check_alike(trees_read, [path for _, path, _ in found])
    return CheckpointBank(params=trees.stack(trees_read), steps=np.array([step for step, _, _ in found]))


def _step_in(path: Path) -> int | None:
    numbers = re.findall(r"\d+", path.stem if path.is_file() else path.name)
    return int(numbers[-1]) if numbers else None


def _readers(folder: Path) -> Iterator[tuple[Path, Callable[[Path], Params]]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix == ".npz":
            yield path, _read_npz
        elif path.suffix == ".safetensors":
            yield path, _read_safetensors
        elif path.is_dir() and _UNFINISHED not in path.name and _orbax_item(path) is not None:
            yield path, lambda found: restore_tree(_orbax_item(found) or found)


def _orbax_item(path: Path) -> Path | None:
    """The folder with the arrays: the step itself, or the single item below it (CheckpointManager's layout)."""
    candidates = [path, *sorted(child for child in path.iterdir() if child.is_dir() and _UNFINISHED not in child.name)]
    return next((found for found in candidates if (found / "_METADATA").exists()), None)


def _read_npz(path: Path) -> Params:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            check_expansion("it", path.stat().st_size, sum(member.file_size for member in arrays.zip.infolist()))
            return _nested({name: arrays[name] for name in arrays.files})
    except Exception as error:  # numpy and zipfile raise many types on broken files
        raise ValueError(f"{path} is no readable .npz file ({reason(error)}).") from error


def _read_safetensors(path: Path) -> Params:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ValueError("reading .safetensors needs the extra: pip install 'llcjax[pretrained]'.") from error
    try:
        return _nested(load_file(path))
    except Exception as error:  # safetensors has its own error type, not exported by older releases
        raise ValueError(f"{path} is no readable .safetensors file ({reason(error)}).") from error


def _nested(flat: dict[str, np.ndarray]) -> Params:
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


def _check_alike(params: list[Params], paths: list[Path]) -> None:
    for tree, path in zip(params[1:], paths[1:], strict=True):
        if different := trees.difference(tree, params[0]):
            raise ValueError(f"{path} differs from {paths[0]} at {different}; a bank holds checkpoints of one model.")
