"""llcjax: local learning coefficients of neural networks in JAX.

    task -> train -> CheckpointBank -> sweep -> store -> estimates -> stages -> report

Each arrow is one pure function and one type. `estimate_llc` is the one call for one model; `sweep` is its batched
form over a bank of checkpoints.
"""

from llcjax import _compat
from llcjax._version import __version__

_compat.check_versions()

from llcjax.bank_import import import_bank  # noqa: E402
from llcjax.calibrate import Calibration, calibrate  # noqa: E402
from llcjax.chain import Recording, run_chain  # noqa: E402
from llcjax.checkpoints import CheckpointBank, load_bank, save_bank  # noqa: E402
from llcjax.comparison import compare_sweeps  # noqa: E402
from llcjax.components import component_masks, head_names  # noqa: E402
from llcjax.config import Setting, SweepConfig  # noqa: E402
from llcjax.covariances import bif, chain_covariance, loss_kernel, principal_components  # noqa: E402
from llcjax.devinterp import export_devinterp, import_devinterp  # noqa: E402
from llcjax.estimate import LLCEstimate, estimate_llc  # noqa: E402
from llcjax.estimators import estimates, excess_loss, running_llc, wbic  # noqa: E402
from llcjax.forecast import Forecast, forecast  # noqa: E402
from llcjax.free_energy import free_energy, integration_rule, temperature_curve  # noqa: E402
from llcjax.interrupt import Interrupted  # noqa: E402
from llcjax.models.decoder import DecoderConfig, decoder  # noqa: E402
from llcjax.models.pretrained import load_pretrained  # noqa: E402
from llcjax.posterior import LocalPosterior  # noqa: E402
from llcjax.samplers import SAMPLERS, Sampler, sgld  # noqa: E402
from llcjax.stages import Stages, find_stages, llc_stages  # noqa: E402
from llcjax.store import open_sweep  # noqa: E402
from llcjax.streamed import StreamedBank, pretrained_bank  # noqa: E402
from llcjax.susceptibility import susceptibilities  # noqa: E402
from llcjax.sweep import sweep  # noqa: E402
from llcjax.tasks.text import next_token_loss  # noqa: E402
from llcjax.tokens import read_tokens, token_rows  # noqa: E402
from llcjax.train import TrainConfig, train  # noqa: E402
from llcjax.verdicts import Verdict  # noqa: E402
from llcjax.verify import Verification, verify  # noqa: E402

__all__ = [
    "SAMPLERS",
    "Calibration",
    "CheckpointBank",
    "DecoderConfig",
    "Forecast",
    "Interrupted",
    "LLCEstimate",
    "LocalPosterior",
    "Recording",
    "Sampler",
    "Setting",
    "Stages",
    "StreamedBank",
    "SweepConfig",
    "TrainConfig",
    "Verdict",
    "Verification",
    "__version__",
    "bif",
    "calibrate",
    "chain_covariance",
    "compare_sweeps",
    "component_masks",
    "decoder",
    "estimate_llc",
    "estimates",
    "excess_loss",
    "export_devinterp",
    "find_stages",
    "forecast",
    "free_energy",
    "head_names",
    "import_bank",
    "import_devinterp",
    "integration_rule",
    "llc_stages",
    "load_bank",
    "load_pretrained",
    "loss_kernel",
    "next_token_loss",
    "open_sweep",
    "pretrained_bank",
    "principal_components",
    "read_tokens",
    "run_chain",
    "running_llc",
    "save_bank",
    "sgld",
    "susceptibilities",
    "sweep",
    "temperature_curve",
    "token_rows",
    "train",
    "verify",
    "wbic",
]
