"""What the configuration of every experiment holds, and the parts that follow its first one."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from llcjax.config import SweepConfig
from llcjax.models.sizes import Activations
from llcjax.train import TrainConfig
from llcjax.untrusted import reason

PIPELINE = "pipeline"
"""Key under which the folder of a run and the recipe of a sweep name their experiment."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfig:
    """Training, sweep, and which checkpoints are swept; each experiment adds its task, model and measures."""

    marked_steps: ClassVar[tuple[int, ...]] = ()
    """Steps near which a selection of checkpoints always has one."""

    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    sweep: SweepConfig = dataclasses.field(default_factory=SweepConfig)
    sweep_seeds: tuple[int, ...] = (0,)
    """Model seeds whose checkpoints are swept."""
    num_checkpoints: int | None = None
    """Checkpoints swept of the first seed, spread, with the published boundaries among them; none = all."""
    num_further_checkpoints: int | None = None
    """The same for every other seed."""
    activations: Activations = "float32"
    """How activations of the model are stored: float32; float16, which rounds like TF32; or bfloat16."""
    coordinates: Literal["weights", "relative"] = "weights"
    """Units of localization and step size: weights, or weights over the root mean square of their tensor."""
    further: tuple[str, ...] = ()
    """Parts of the experiment that follow in subfolders; README.md of the experiment lists them."""
    bank: str | None = None
    """Folder of checkpoints to sweep instead of training: a bank, per-step orbax folders, .npz or .safetensors."""

    def __post_init__(self) -> None:
        """Checks counts, and that the swept seeds are trained.

        Raises:
            ValueError: a value out of range.
        """
        trained = range(self.train.seed, self.train.seed + self.train.num_seeds)
        least = len(self.marked_steps) + 2
        for name in ("num_checkpoints", "num_further_checkpoints"):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}, or none for all.")
        if self.coordinates not in ("weights", "relative"):
            raise ValueError(f"coordinates={self.coordinates!r} is unknown; choose weights or relative.")
        if not all(type(seed) is int and seed >= 0 for seed in self.sweep_seeds):  # they name folders
            raise ValueError(f"sweep_seeds={self.sweep_seeds!r:.100} must be whole numbers of 0 or more.")
        missing = [seed for seed in self.sweep_seeds if seed not in trained]
        if self.bank is None and (missing or not self.sweep_seeds):
            raise ValueError(
                f"sweep_seeds={self.sweep_seeds} must name at least one of the trained seeds {list(trained)}."
            )

    def swept_steps(
        self, steps: Int[np.ndarray, " checkpoint"], seed: int | None = None
    ) -> Int[np.ndarray, " selected"]:
        """Which checkpoints of a seed are swept; None is the first seed."""
        first = seed in (None, self.sweep_seeds[0])
        count = self.num_checkpoints if first else self.num_further_checkpoints
        return selected_steps(steps, count, self.marked_steps)

    def alone(self, seed: int) -> typing.Self:
        """The experiment of one swept seed, without further parts, whose paths hold in any folder."""
        first = seed == self.sweep_seeds[0]
        count = self.num_checkpoints if first else self.num_further_checkpoints
        bank = None if self.bank is None else str(Path(self.bank).absolute())
        return dataclasses.replace(self, sweep_seeds=(seed,), num_checkpoints=count, further=(), bank=bank)


Options = TypeVar("Options")
Experiment = TypeVar("Experiment", bound=ExperimentConfig)


class Part(NamedTuple):
    """A variation of an experiment."""

    words: str
    vary: Callable[[Any], Any]
    trains: bool
    """Whether it trains models of its own; otherwise it takes those of the first part."""


def part_experiment(experiment: Experiment, parts: Mapping[str, Part], name: str) -> Experiment:
    """The experiment of a part.

    Raises:
        ValueError: no part has this name.
    """
    if name not in parts:
        raise ValueError(f"further={name!r} is no part of the experiment; choose from {', '.join(parts)}.")
    return dataclasses.replace(parts[name].vary(experiment), further=())


def selected_steps(
    steps: Int[np.ndarray, " checkpoint"], count: int | None, marks: Sequence[int] = ()
) -> Int[np.ndarray, " selected"]:
    """`count` of the steps: the ends, those nearest to the marks, then always the one furthest from all chosen.

    Distance is counted in checkpoints, which lie evenly in a mixture of steps and their logarithm.

    Example:
        >>> selected_steps(np.arange(0, 600_000, 10_000), 5, (40_000,)).tolist()
        [0, 40000, 310000, 450000, 590000]
    """
    if count is None or count >= steps.size:
        return steps
    chosen = {0, steps.size - 1, *(int(np.abs(steps - mark).argmin()) for mark in marks)}
    places = np.arange(steps.size)
    while len(chosen) < count:
        chosen.add(int(np.abs(places[:, None] - sorted(chosen)).min(1).argmax()))
    return steps[sorted(chosen)]


def recipe(pipeline: str, options: Any) -> str:
    """What the store of a sweep says about how to make it again, as JSON; paths in it are absolute."""
    facts = {PIPELINE: pipeline, "options": dataclasses.asdict(options)}
    return json.dumps(facts, default=lambda path: str(path.absolute()))


def rebuilt(kind: type[Options], config: dict[str, Any]) -> Options:
    """A configuration from the JSON values of its folder or of a recipe.

    Raises:
        ValueError: a field that this version does not know.
    """
    hints = typing.get_type_hints(kind)

    def field(name: str, value: Any) -> Any:
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            return typing.cast("type", hint)(**value)
        if hint is Path:
            return Path(value)
        if typing.get_origin(hint) is tuple:
            return tuple(Path(one) if Path in typing.get_args(hint) else one for one in value)
        return value

    try:
        return kind(**{name: field(name, value) for name, value in config.items() if name != PIPELINE})
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"the config is broken or of another version of llcjax ({reason(error)}); run the command again."
        ) from error
