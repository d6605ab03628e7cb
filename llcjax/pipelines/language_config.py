"""The whole configuration of the language experiment, and its presets."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from jaxtyping import Int

from llcjax.config import SweepConfig
from llcjax.models.attention_only import AttentionOnlyConfig
from llcjax.models.kernels import Kernels
from llcjax.pipelines.experiment_config import ExperimentConfig
from llcjax.tasks.synthetic_language import SyntheticLanguage
from llcjax.train import TrainConfig

PUBLISHED_BOUNDARIES = (900, 6_500, 8_500, 17_000)
"""Ends of the stages LM1 to LM4 (arXiv 2402.02364, table 1)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LanguageExperiment(ExperimentConfig):
    """An attention-only language model: train, sweep, metrics, stages, report."""

    marked_steps: ClassVar[tuple[int, ...]] = PUBLISHED_BOUNDARIES

    model: AttentionOnlyConfig = dataclasses.field(default_factory=AttentionOnlyConfig)
    source: Literal["installed", "given", "synthetic"] = "installed"
    """Where rows come from: text that Python carries (pydoc_data.topics) unless text, tokens or dataset name some; only
    what they name (`given`); or the synthetic language."""
    text: tuple[str, ...] = ()
    """UTF-8 files: a document each; a single one is cut at blank lines."""
    tokens: str | None = None
    """File of token ids: .npy, .u16, .u16.xz, or a zarr array."""
    dataset: str | None = None
    """Folder of a Hugging Face dataset (.arrow or .parquet files)."""
    column: str = "text"
    """Its column of documents."""
    tokenizer: str | None = None
    """A tokenizer.json; none trains a byte-level BPE of model.vocabulary tokens. With tokens it names them."""
    start: int = 0
    """Token that begins documents and rows; the synthetic language and tokenizers of ours have 0."""
    held_out: float = 0.05
    """Share of the documents that training never sees."""
    split_seed: int = 0
    """Seed of which documents these are, and of the rows of the synthetic language."""
    synthetic: SyntheticLanguage = dataclasses.field(default_factory=SyntheticLanguage)
    swept_rows: Literal["train", "held_out"] = "train"
    """Rows whose loss is sampled: those of the training, or those that it never sees."""
    num_rows: int = 2**15
    """Rows of the synthetic language to train on."""
    num_test_rows: int = 1024
    """Most held-out rows of the metrics."""
    num_probes: int = 1024
    """Random sequences for the scores of the heads, a multiple of 32."""
    kernels: Kernels = "auto"
    """How attention and cross-entropy are computed: xla, pallas for our own kernels, or auto: those on a GPU."""
    sweep_steps: tuple[int, ...] = ()
    """Training steps to sweep, the nearest checkpoint of each; none = num_checkpoints of them, spread."""

    def __post_init__(self) -> None:
        """Checks counts, and that model and synthetic language fit.

        Raises:
            ValueError: a value out of range.
        """
        ExperimentConfig.__post_init__(self)
        if min(self.num_rows, self.num_test_rows) < 2:
            raise ValueError("num_rows and num_test_rows must be at least 2.")
        if self.swept_rows not in ("train", "held_out"):
            raise ValueError(f"swept_rows={self.swept_rows!r} is unknown; choose train or held_out.")
        wanted, model = (self.synthetic.vocabulary, self.synthetic.num_tokens), self.model
        if self.source == "synthetic" and (model.vocabulary, model.num_tokens) != wanted:
            raise ValueError(
                f"model.vocabulary={model.vocabulary} and model.num_tokens={model.num_tokens} do not fit the synthetic "
                f"language; set them to {wanted[0]} and {wanted[1]}."
            )

    def swept_steps(
        self, steps: Int[np.ndarray, " checkpoint"], seed: int | None = None
    ) -> Int[np.ndarray, " selected"]:
        """Which checkpoints of a seed are swept; None is the first seed."""
        if self.sweep_steps:
            return np.unique([steps[np.abs(steps - wanted).argmin()] for wanted in self.sweep_steps])
        return ExperimentConfig.swept_steps(self, steps, seed)

    def alone(self, seed: int) -> Self:
        """The experiment of one swept seed, without further parts, whose paths hold in any folder."""
        named = {name: str(Path(path).absolute()) for name in ("tokens", "dataset", "tokenizer")
                 if (path := getattr(self, name)) is not None}  # fmt: skip
        text = tuple(str(Path(path).absolute()) for path in self.text)
        return dataclasses.replace(ExperimentConfig.alone(self, seed), **named, text=text)


_SMALL_MODEL = AttentionOnlyConfig(num_heads=4, model_width=64, num_tokens=64, vocabulary=512)
_SMALL_SWEEP = SweepConfig(
    n_beta=(30.0,), localization=(1000.0,), step_size=(1e-4,), num_chains=4, num_draws=80, num_burnin_steps=40,
    batch_size=16, draws_per_chunk=40, num_control_draws=32,
)  # fmt: skip
"""What the presets for 2 cores share."""

PRESETS: dict[str, LanguageExperiment] = {
    # The pipeline in small on text that every Python carries, for 2 cores; README.md of experiments/language has the
    # figures.
    "quick": LanguageExperiment(
        model=_SMALL_MODEL,
        train=TrainConfig(
            num_steps=1500,
            batch_size=32,
            optimizer="adamw",
            learning_rate=4e-3,
            schedule="constant",
            weight_decay=0.05,
            num_log_checkpoints=14,
            num_linear_checkpoints=7,
        ),
        sweep=_SMALL_SWEEP,
        held_out=0.1,
        num_test_rows=128,
        num_probes=128,
    ),
    # A language with known answers: one layer cannot copy, two layers learn to; for 2 cores.
    "synthetic": LanguageExperiment(
        source="synthetic",
        model=dataclasses.replace(_SMALL_MODEL, vocabulary=33),
        train=TrainConfig(
            num_steps=1500,
            batch_size=64,
            optimizer="adamw",
            learning_rate=3e-3,
            schedule="constant",
            weight_decay=0.05,
            num_log_checkpoints=12,
            num_linear_checkpoints=13,
        ),
        sweep=_SMALL_SWEEP,
        num_test_rows=512,
        num_probes=256,
        further=("one_layer",),
    ),
    # The paper (arXiv 2402.02364): 50,000 steps of AdamW on 100 x 1,024 tokens, and its published SGLD setting with the
    # initial loss measured on all rows; then the parts under `further`. Needs --tokens (or --text, --dataset).
    "paper": LanguageExperiment(
        source="given",
        train=TrainConfig(
            num_steps=50_000,
            batch_size=100,
            optimizer="adamw",
            learning_rate=1e-3,
            schedule="constant",
            weight_decay=0.05,
            num_log_checkpoints=100,
            num_linear_checkpoints=501,
        ),
        sweep=SweepConfig(
            n_beta=(100 / math.log(100),),
            localization=(300.0,),
            step_size=(3e-3,),
            num_chains=4,
            num_draws=200,
            batch_size=100,
            baseline="dataset",
            num_control_draws=64,
            precision="bf16",
            chains_at_once=4,
        ),
        activations="bfloat16",
        num_checkpoints=100,
        num_test_rows=1024,
        num_probes=512,
        further=("later", "calibrated", "relative", "held_out", "dip", "one_layer"),
    ),
}

GRIDS: dict[str, SweepConfig] = {
    name: dataclasses.replace(
        PRESETS[name].sweep, localization=localization, step_size=step_size, num_chains=4, baseline="paired"
    )
    for name, localization, step_size in (
        ("quick", (300.0, 1000.0, 3000.0), (3e-5, 1e-4)),
        ("synthetic", (300.0, 1000.0, 3000.0), (3e-5, 1e-4)),
        ("paper", (3e3, 1e4, 3e4), (5e-6, 2e-5)),
    )
}
"""The grid of `llcjax calibrate` for each preset."""
