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
from llcjax.tasks.regression import (
    RegressionTask,
    SequenceParts,
    discrete_predictions,
    first_example_predictions,
    predictions,
    ridge_predictions,
)
from llcjax.types import ApplyFn, Params

OOD_GAINS = (3.0, 5.0, 10.0, 100.0)
"""Factors by which inputs or tasks are scaled out of distribution."""

LONG_NAMES = {
    "test_loss": "loss on fresh sequences",
    "test_loss_position": "loss of each position k",
    "ridge_distance": "squared distance to the ridge predictor",
    "ridge_distance_position": "squared distance to the ridge predictor at k",
    "zero_prediction": "mean squared prediction (0 = predicts the task mean)",
    "zero_prediction_position": "mean squared prediction at k",
    "mean_task_distance": "squared distance to the predictor of the mean task (finite M)",
    "discrete_distance": "squared distance to the Bayes predictor of the M tasks (finite M)",
    "first_example_distance": "squared distance to the ridge predictor that knows the first pair alone",
    "first_example_distance_position": "squared distance to the ridge predictor of the first pair at k",
    "weight_norm": "Euclidean norm of the parameters",
    "icl": "in-context learning score, loss at b less loss at a",
    "ood_inputs": "loss with inputs scaled by g",
    "ood_tasks": "loss with hidden tasks scaled by g",
    "ood_icl_inputs": "in-context score of the first to the last position over g, inputs scaled by g",
    "ood_icl_tasks": "in-context score of the first to the last position over g, tasks scaled by g",
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
        task; y follows, and its noise keeps its size; `ood_icl_*` is (loss_K - loss_1)/g there. With a fixed set of
        tasks, `mean_task_distance` and `discrete_distance` compare with predictors that know the set. Attributes
        `ridge_loss` (the Bayes optimum for M = infinity) and `chance` (the zero predictor), both on these sequences or
        exact.
    """
    parts = task.sample_parts(as_key(seed), num_sequences)
    sequences = parts.sequences()
    ridge = ridge_predictions(sequences, task.noise_variance)
    known = {"ridge_distance": ridge, "first_example_distance": first_example_predictions(sequences, task)}
    if task.num_tasks is not None:
        known |= {
            "mean_task_distance": sequences.x @ jnp.mean(task.task_set(), 0),
            "discrete_distance": discrete_predictions(sequences, task),
        }
    measure = jax.jit(lambda params, parts, known: _measure(apply, params, parts, known))
    rows = [measure(bank.checkpoint(i), parts, known) for i in range(len(bank))]
    columns = trees.stack(rows)
    dims = {True: ("checkpoint", "position"), False: ("checkpoint",)}
    result = xr.Dataset(
        {name: (dims[values.ndim == 2], values, _attrs(name)) for name, values in columns.items()},
        coords={"checkpoint": bank.steps, "position": np.arange(1, task.num_pairs + 1)},
        attrs={"ridge_loss": float(jnp.mean(jnp.square(ridge - sequences.y))), "chance": task.chance},
    )
    return result


def _attrs(name: str) -> dict[str, str]:
    units = "parameters" if name == "weight_norm" else "squared error"
    return {"long_name": LONG_NAMES[re.sub(r"(_\d+)+$", "", name)], "units": units}


def _measure(
    apply: ApplyFn, params: Params, parts: SequenceParts, known: dict[str, Float[Array, "batch position"]]
) -> dict[str, Array]:
    sequences = parts.sequences()
    guess = predictions(apply, params, sequences)
    by_position = {
        "test_loss": jnp.mean(jnp.square(guess - sequences.y), 0),
        "zero_prediction": jnp.mean(jnp.square(guess), 0),
        **{name: jnp.mean(jnp.square(guess - other), 0) for name, other in known.items()},
    }
    return {
        **{name: jnp.mean(values) for name, values in by_position.items()},
        **{f"{name}_position": values for name, values in by_position.items() if f"{name}_position" in LONG_NAMES},
        "weight_norm": optax.tree.norm(params),
        **_icl_scores(by_position["test_loss"]),
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
            loss_position = jnp.mean(jnp.square(predictions(apply, params, moved) - moved.y), 0)
            scores[f"ood_{name}_{gain:g}"] = jnp.mean(loss_position)
            scores[f"ood_icl_{name}_{gain:g}"] = (loss_position[-1] - loss_position[0]) / gain
    return scores
