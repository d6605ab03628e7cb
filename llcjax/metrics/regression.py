"""Behaviour of in-context regression models over training (arXiv 2402.02364, section 4.2 and its code)."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float

from llcjax import trees
from llcjax.checkpoints import CheckpointBank
from llcjax.keys import as_key
from llcjax.tasks.regression import RegressionTask, SequenceParts, predictions, ridge_predictions
from llcjax.types import ApplyFn, Params

OOD_GAINS = (3.0, 5.0, 10.0, 100.0)
"""Factors by which inputs or tasks are scaled out of distribution."""

LONG_NAMES = {
    "test_loss": "loss on fresh sequences",
    "test_loss_position": "loss of each position k",
    "ridge_distance": "squared distance to the ridge predictor",
    "ridge_distance_position": "squared distance to the ridge predictor at k",
    "zero_prediction": "mean squared prediction (0 = predicts the task mean)",
    "weight_norm": "Euclidean norm of the parameters",
    "icl": "in-context learning score, loss at b less loss at a",
    "ood_inputs": "loss with inputs scaled by g",
    "ood_tasks": "loss with hidden tasks scaled by g",
}


def regression_metrics(
    apply: ApplyFn,
    bank: CheckpointBank,
    task: RegressionTask,
    *,
    num_sequences: int = 4096,
    seed: int = 1_000_003,
) -> xr.Dataset:
    """Measures every checkpoint of a bank on the same fresh sequences.

    Args:
        apply: the model.
        bank: checkpoints.
        task: where sequences come from.
        num_sequences: fresh sequences.
        seed: of these sequences; away from the seeds of training.

    Returns:
        Dimensions `(checkpoint[, position])`, squared errors a prediction. `icl_a_b` is the loss at position b
        less that at a (negative = learns in context); `ood_inputs_g` scales x by g and `ood_tasks_g` the hidden
        task; y follows, and its noise keeps its size. Attributes `ridge_loss` (the Bayes optimum for M = infinity) and
        `chance` (the zero predictor), both on these sequences or exact.
    """
    parts = task.sample_parts(as_key(seed), num_sequences)
    ridge = ridge_predictions(parts.sequences(), task.noise_variance)
    measure = jax.jit(lambda params, parts, ridge: _measure(apply, params, parts, ridge))
    rows = [measure(bank.checkpoint(i), parts, ridge) for i in range(len(bank))]
    columns = trees.stack(rows)
    dims = {True: ("checkpoint", "position"), False: ("checkpoint",)}
    result = xr.Dataset(
        {name: (dims[values.ndim == 2], values, _attrs(name)) for name, values in columns.items()},
        coords={"checkpoint": bank.steps, "position": np.arange(1, task.num_pairs + 1)},
        attrs={"ridge_loss": float(jnp.mean(jnp.square(ridge - parts.sequences().y))), "chance": task.chance},
    )
    return result


def _attrs(name: str) -> dict[str, str]:
    units = "parameters" if name == "weight_norm" else "squared error"
    return {"long_name": LONG_NAMES[re.sub(r"(_\d+)+$", "", name)], "units": units}


def _measure(
    apply: ApplyFn, params: Params, parts: SequenceParts, ridge: Float[Array, "batch position"]
) -> dict[str, Array]:
    sequences = parts.sequences()
    guess = predictions(apply, params, sequences)
    loss_position = jnp.mean(jnp.square(guess - sequences.y), 0)
    ridge_position = jnp.mean(jnp.square(guess - ridge), 0)
    return {
        "test_loss": jnp.mean(loss_position),
        "test_loss_position": loss_position,
        "ridge_distance": jnp.mean(ridge_position),
        "ridge_distance_position": ridge_position,
        "zero_prediction": jnp.mean(jnp.square(guess)),
        "weight_norm": optax.tree.norm(params),
        **_icl_scores(loss_position),
        **_out_of_distribution(apply, params, parts),
    }


def _icl_scores(loss_position: Float[Array, " position"]) -> dict[str, Array]:
    """In-context learning between the first, the middle and the last position (1, 4 and 8 for the paper's K)."""
    last = loss_position.shape[0]
    middle = max(last // 2, 1)
    pairs = [(1, middle), (middle, last), (1, last)]
    return {f"icl_{a}_{b}": loss_position[b - 1] - loss_position[a - 1] for a, b in pairs}


def _out_of_distribution(apply: ApplyFn, params: Params, parts: SequenceParts) -> dict[str, Array]:
    """Loss with x (and y with it), or with the hidden task, scaled by each gain."""
    scores = {}
    for gain in OOD_GAINS:
        for name, moved in (
            ("inputs", parts.sequences(input_gain=gain)),
            ("tasks", parts.sequences(task_gain=gain)),
        ):
            error = predictions(apply, params, moved) - moved.y
            scores[f"ood_{name}_{gain:g}"] = jnp.mean(jnp.square(error))
    return scores
