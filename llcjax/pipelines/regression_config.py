"""The whole configuration of the in-context regression experiment, and its presets."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from llcjax.config import SweepConfig
from llcjax.models.icl_transformer import TransformerConfig
from llcjax.models.kernels import Kernels
from llcjax.pipelines.experiment_config import ExperimentConfig
from llcjax.tasks.regression import RegressionTask
from llcjax.train import TrainConfig

PUBLISHED_BOUNDARIES = (1_000, 40_000, 126_000, 320_000)
"""Ends of the stages LR1 to LR4 (arXiv 2402.02364, table 2)."""
MARKED_STEPS = (*PUBLISHED_BOUNDARIES, 10_000, 50_000)
"""Steps near which a selection of checkpoints always has one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisConfig:
    """What is measured beside the LLC: curvature of the loss, attention, paths of outputs and hidden activations."""

    num_probes: int = 128
    """Hutchinson probes of the trace of the Hessian, each with a batch of its own; 0 leaves the curvature out."""
    probe_batch_size: int = 1024
    """Sequences a probe."""
    num_lanczos_batches: int = 4
    """Batches of the top eigenvalues."""
    lanczos_batch_size: int = 4096
    """Sequences of each."""
    num_lanczos_steps: int = 20
    """Products with the Hessian a batch: the three top eigenvalues of the paper's models have converged after 12 to 20
    (residuals below 0.02 where the eigenvalues are 11 to 180), and more change no digit."""
    num_sequences: int = 8192
    """Fixed sequences for attention and for the path of the outputs."""
    num_hidden_sequences: int = 512
    """How many of them hidden activations are measured on."""

    def __post_init__(self) -> None:
        """Checks counts.

        Raises:
            ValueError: a value out of range.
        """
        if self.num_probes == 1 or self.num_probes < 0 or self.num_lanczos_batches < 2:
            raise ValueError(
                f"num_probes={self.num_probes} must be 0 or at least 2, and "
                f"num_lanczos_batches={self.num_lanczos_batches} at least 2, for an error."
            )
        least = (self.probe_batch_size, self.lanczos_batch_size, self.num_sequences, self.num_hidden_sequences)
        if min(least) < 2 or self.num_lanczos_steps < 3:
            raise ValueError(f"batches and sequences must be at least 2 and Lanczos steps at least 3, but got {self}.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RegressionExperiment(ExperimentConfig):
    """In-context linear regression: train, sweep, metrics, stages, report."""

    marked_steps: ClassVar[tuple[int, ...]] = MARKED_STEPS

    task: RegressionTask = dataclasses.field(default_factory=RegressionTask)
    model: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    num_examples: int = 2**20
    """Sequences of the fixed set on which the LLC is estimated (n)."""
    data_seed: int = 7
    """Seed of that set."""
    num_test_sequences: int = 8192
    """Fresh sequences for the metrics."""
    kernels: Kernels = "auto"
    """How blocks are computed: xla, pallas for kernels of our own, or auto, which takes them on a GPU."""
    analysis: AnalysisConfig = dataclasses.field(default_factory=AnalysisConfig)

    def __post_init__(self) -> None:
        """Checks sizes, and that the swept seeds are trained.

        Raises:
            ValueError: a value out of range.
        """
        ExperimentConfig.__post_init__(self)
        if min(self.num_examples, self.num_test_sequences) < 2:
            raise ValueError("num_examples and num_test_sequences must be at least 2.")


PRESETS: dict[str, RegressionExperiment] = {
    # The phenomenon in small, for 2 cores: loss falls from 2.1 to 0.75, in-context learning sets in near step 200.
    # A few minutes, compilation included.
    "quick": RegressionExperiment(
        task=RegressionTask(dimension=2),
        model=TransformerConfig(num_heads=2, model_width=32, mlp_width=32),
        train=TrainConfig(
            num_steps=3000,
            batch_size=128,
            learning_rate=5e-3,
            num_log_checkpoints=20,
            num_linear_checkpoints=13,
        ),
        sweep=SweepConfig(
            n_beta=(66.67,),
            localization=(1000.0,),
            step_size=(1.5e-4,),
            num_chains=4,
            num_draws=150,
            num_burnin_steps=50,
            batch_size=64,
            per_position=True,
            num_control_draws=32,
            draws_per_chunk=50,
        ),
        num_examples=2**14,
        num_test_sequences=2048,
        analysis=AnalysisConfig(
            num_probes=8,
            probe_batch_size=64,
            num_lanczos_batches=2,
            lanczos_batch_size=128,
            num_lanczos_steps=8,
            num_sequences=512,
            num_hidden_sequences=64,
        ),
    ),
    # The paper (arXiv 2402.02364): 5 seeds x 500,000 steps, its published SGLD setting on the 190 checkpoints of seed 0
    # and on 40 of each other seed; then the parts under `further`. Expect a final test loss of 1.73 to 1.76 a seed
    # (ridge optimum 1.653), and 17.5 million chain steps in the published setting alone.
    "paper": RegressionExperiment(
        train=TrainConfig(num_seeds=5),
        sweep_seeds=(0, 1, 2, 3, 4),
        num_further_checkpoints=40,
        further=("calibrated", "relative", "finite_tasks", "no_layer_norm", "weight_decay", "gradient_noise"),
        sweep=SweepConfig(
            n_beta=(66.67,),
            localization=(6.667,),
            step_size=(3e-4,),
            num_chains=10,
            num_draws=5000,
            batch_size=1024,
            num_control_draws=64,
            baseline="dataset",
            precision="tf32",
        ),
        # Rounds like the products in TF32; benchmarks/README.md has the LLCs of both beside exact ones.
        activations="float16",
    ),
}

GRIDS: dict[str, SweepConfig] = {
    # 9 settings x 5 checkpoints x 4 chains x 200 steps: about as much as the sweep of the preset.
    "quick": dataclasses.replace(
        PRESETS["quick"].sweep,
        localization=(300.0, 1000.0, 3000.0),
        step_size=(5e-5, 1.5e-4, 5e-4),
        num_draws=120,
        num_burnin_steps=80,
        per_position=False,
    ),
    # Around n_beta 67, localization 1000, whose chains stay local where those of the published setting do not.
    # 24 settings x 5 checkpoints x 4 chains x 1,000 steps = 480,000 chain steps.
    "paper": dataclasses.replace(
        PRESETS["paper"].sweep,
        n_beta=(66.67, 300.0),
        localization=(1000.0, 1500.0, 2000.0, 3000.0),
        step_size=(2.5e-5, 5e-5, 1e-4),
        num_chains=4,
        num_draws=700,
        num_burnin_steps=300,
        baseline="paired",
    ),
}
"""The grid of `llcjax calibrate` for each preset."""
