"""A bank of checkpoints that stay on disk and are read launch by launch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llcjax import checks, trees
from llcjax.checkpoints import CheckpointBank
from llcjax.config import fingerprint
from llcjax.models.decoder import DecoderConfig
from llcjax.models.pretrained import read_config, read_params
from llcjax.types import Params


class StreamedBank(CheckpointBank):
    """Checkpoints that are read when they are asked for; one at a time is kept in memory.

    It stands wherever a `CheckpointBank` does that nobody asks for all parameters at once.
    """

    def __init__(
        self,
        read: Callable[[Path], Params],
        paths: Sequence[Path],
        steps: Sequence[int],
        config: dict[str, Any] | None = None,
    ) -> None:
        """Takes where the checkpoints are.

        Args:
            read: `path -> params`.
            paths: one a checkpoint.
            steps: training steps, strictly increasing.
            config: whatever made the checkpoints.
        """
        super().__init__(params=np.zeros(len(paths)), steps=np.asarray(steps), config=config or {})
        object.__setattr__(self, "read", read)
        object.__setattr__(self, "paths", tuple(paths))
        object.__setattr__(self, "_kept", {})

    read: Callable[[Path], Params]
    paths: tuple[Path, ...]
    _kept: dict[int, Params]

    def checkpoint(self, index: int) -> Params:
        """The parameters of one checkpoint, from disk unless it was the last one."""
        index = range(len(self))[index]
        if index not in self._kept:
            self._kept.clear()
            self._kept[index] = self.read(self.paths[index])
        return self._kept[index]

    def rows(self, index: np.ndarray) -> Params:
        """Some checkpoints, stacked."""
        return trees.stack([self.checkpoint(int(one)) for one in index])

    def __getitem__(self, index: Any) -> StreamedBank:
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return StreamedBank(self.read, [self.paths[one] for one in chosen], self.steps[chosen], self.config)

    def finite(self) -> np.ndarray:
        """All True: what is not finite fails by itself when its chains run, as looking would read everything."""
        return np.ones(len(self), bool)

    def fingerprint(self) -> str:
        """A hash of steps, names and sizes of the files."""
        files = [sorted(path.glob("*")) if path.is_dir() else [path] for path in self.paths]
        facts = [[(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in part] for part in files]
        return fingerprint(self.steps.tolist(), facts)


def pretrained_bank(paths: Sequence[Path | str]) -> tuple[DecoderConfig, StreamedBank]:
    """A bank of models on disk, such as the revisions of one training run.

    Args:
        paths: Hugging Face folders or llama2.c files. Training steps are the numbers after `step` or `checkpoint` in
            their names, else the last number; a single model without `step` in its name is step 0.

    Returns:
        The configuration that they share, and the bank, sorted by step.

    Raises:
        ValueError: none, no step in a name, or models of different sizes.
    """
    checks.instance("model", paths, (tuple, list), "a list of folders or files")
    paths = [checks.path("model", path) for path in paths]
    found = sorted((_step(Path(path), alone=len(paths) == 1), Path(path)) for path in paths)
    if not found:
        raise ValueError("model is empty; give at least one folder.")
    config = read_config(found[0][1])
    for _, path in found[1:]:
        if (other := read_config(path)) != config:
            raise ValueError(f"{path} has {other}, but {found[0][1]} has {config}; a bank holds one kind of model.")
    files = [path for _, path in found]
    return config, StreamedBank(lambda path: read_params(path, config), files, [step for step, _ in found])


def _step(path: Path, *, alone: bool) -> int:
    if named := re.findall(r"(?:step|checkpoint)[-_]?(\d+)", path.name):
        return int(named[-1])
    numbers = re.findall(r"\d+", path.name)
    if alone:
        return 0
    if not numbers:
        raise ValueError(f"model={path} has no training step in its name; call the folders step0, step1000, ...")
    return int(numbers[-1])
