"""A made-up sweep that is shaped like a real one, with estimates, stages and metrics.

``python tests/report_example.py FOLDER`` writes its report, to be looked at.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import xarray as xr

from llcjax.report import write_report
from llcjax.stages import Boundary, CurveFit, Plateau, Stage, Stages

STEPS = np.unique(np.r_[0, np.geomspace(1, 500_000, 46)].round().astype(np.int64))
CHANCE, RIDGE = 4.12, 0.95
ENDS = (
    ("LR1", 1000, "A"),
    ("LR2", 40_000, "A"),
    ("LR3", 126_000, "B"),
    ("LR4", 320_000, "B"),
    ("LR5", 500_000, "-"),
)


def example_llc(steps: np.ndarray) -> np.ndarray:
    """Return an LLC curve with a small rise, a large rise, two falls and a flat end."""
    x = np.log(steps + 1.0)

    def rise(where: float, width: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(x - np.log(where)) / width))

    return 20 * rise(60, 0.9) + 150 * rise(9000, 0.55) - 12 * rise(80_000, 0.15) - 44 * rise(200_000, 0.14)


def example_loss(steps: np.ndarray) -> np.ndarray:
    x = np.log(steps + 1.0)
    return 4.4 - 0.32 / (1 + np.exp(-(x - 4) / 0.9)) - 2.4 / (1 + np.exp(-(x - np.log(9000)) / 0.6))


def example_sweep(steps: np.ndarray = STEPS, num_settings: int = 1) -> xr.Dataset:
    rng, dims = np.random.default_rng(0), ("checkpoint", "setting", "chain", "draw")
    shape, draws = (len(steps), num_settings, 4, 250), np.arange(250) * 4
    n_beta = np.linspace(40, 80, num_settings) if num_settings > 1 else np.asarray([66.67])
    height = (example_llc(steps) + 3)[:, None] / n_beta
    climb = 1 - np.exp(-draws / 60.0)
    noise = rng.normal(size=shape) * 0.08 + np.cumsum(rng.normal(size=shape), -1) * 0.004
    baseline = example_loss(steps)[:, None, None, None] + rng.normal(size=shape) * 0.2
    excess = height[:, :, None, None] * (climb + 0.05 * rng.normal(size=(4, 1))) + noise
    return xr.Dataset(
        {
            "loss": (dims, baseline + excess),
            "baseline_loss": (dims, baseline),
            "first_nonfinite_step": (dims[:3], np.full(shape[:3], -1)),
            "num_draws_done": (dims[:2], np.full(shape[:2], shape[3])),
        },
        coords={"checkpoint": steps, "draw": draws, "chain": np.arange(4), **_settings(n_beta)},
        attrs={"chance": CHANCE, "num_burnin_steps": 300},
    )


def _settings(n_beta: np.ndarray) -> dict[str, tuple[str, np.ndarray]]:
    ones = np.ones(len(n_beta))
    return {
        "n_beta": ("setting", n_beta),
        "localization": ("setting", 6.67 * ones),
        "step_size": ("setting", 0.003 * ones),
    }


def example_estimates(steps: np.ndarray = STEPS, num_settings: int = 1) -> xr.Dataset:
    rng, dims, shape = np.random.default_rng(1), ("checkpoint", "setting"), (len(steps), num_settings)
    n_beta = example_sweep(steps[:1], num_settings)["n_beta"].values
    stderr, loss = rng.uniform(1.0, 3.0, shape), example_loss(steps)[:, None] * np.ones(shape)
    llc = example_llc(steps)[:, None] + 3 + 0.8 * stderr * rng.normal(size=shape) + 10 * np.arange(num_settings)
    variables = {
        "llc": llc,
        "llc_stderr": stderr,
        "rhat": 1.003 + rng.exponential(0.004, shape),
        "ess_bulk": rng.uniform(150, 700, shape),
        "num_chains_used": np.full(shape, 4),
        "init_loss": loss,
        "mean_loss": loss + llc / n_beta,
        "verdict": np.full(shape, "ok", dtype=object),
        "sentence": np.full(shape, "Every check passed.", dtype=object),
    }
    dataset = xr.Dataset({name: (dims, value) for name, value in variables.items()}, attrs={"chance": CHANCE})
    dataset["llc_position"] = ((*dims, "position"), llc[:, :, None] * np.linspace(0.4, 1.3, 8))
    dataset["llc_position_stderr"] = xr.full_like(dataset["llc_position"], 2.0)
    return dataset.assign_coords(checkpoint=steps, position=np.arange(1, 9), **_settings(n_beta))


def troubled_estimates() -> xr.Dataset:
    """Return estimates with a checkpoint of each bad kind, one without a number and one far off the scale."""
    estimates = example_estimates()
    troubles = (
        *((0, "not_minimum", -900.0), (3, "noisy", None), (9, "diverged", np.nan), (22, "not_mixed", None)),
        *((28, "biased", None), (33, "left_basin", None), (34, "left_basin", None), (40, "stuck", 12.0)),
    )
    for index, verdict, value in troubles:
        place = {"checkpoint": index, "setting": 0}
        estimates["verdict"][place] = verdict
        estimates["sentence"][place] = f"This one is {verdict}: the step size 0.003 is too large, try 0.001."
        if value is not None:
            estimates["llc"][place] = value
        if value is not None and not np.isfinite(value):
            for name in ("llc_stderr", "rhat", "ess_bulk", "mean_loss"):
                estimates[name][place] = np.nan
    estimates["rhat"][{"checkpoint": 22}] = 1.4
    return estimates


def example_stages() -> Stages:
    grid = np.expm1(np.linspace(0, np.log(500_001), 300))
    mean, slope = example_llc(grid) + 3, np.gradient(example_llc(grid), np.log(grid + 1))
    bands = {"lower": mean - 3, "upper": mean + 3, "slope_lower": slope - 6, "slope_upper": slope + 6}
    numbers = {
        "amplitude": 60.0,
        "length_scale": 1.2,
        "noise_sd": 1.5,
        "time_scale": 1.0,
        "point_noise_sd": 0 * STEPS,
    }
    kinds = (("plateau", 0.99), ("zero_slope", 0.96), ("least_slope", 0.41), ("plateau", 0.83))
    boundaries = [
        Boundary(step=end, lower=0.8 * end, upper=1.15 * end, kind=kind, probability=probability)
        for (_, end, _), (kind, probability) in zip(ENDS, kinds, strict=False)
    ]
    starts = [0, *(end for _, end, _ in ENDS)]
    changes = np.diff(example_llc(np.asarray(starts)))
    stages = [
        Stage(
            name=name,
            start=start,
            end=end,
            kind=kind,
            delta_value=change,
            delta_value_stderr=2.1,
            delta_loss=-0.07,
        )
        for start, (name, end, kind), change in zip(starts, ENDS, changes, strict=False)
    ]
    plateaus = [Plateau(start=400, end=1500, probability=0.99), Plateau(start=3e5, end=5e5, probability=0.9)]
    fit = CurveFit(step=grid, mean=mean, slope=slope, **bands, **numbers)
    return Stages(
        method="gp",
        fit=fit,
        boundaries=tuple(boundaries),
        plateaus=tuple(plateaus),
        stages=tuple(stages),
        tolerance=3.0,
    )


def example_metrics() -> xr.Dataset:
    loss = example_loss(STEPS)
    named = {
        "test_loss": (loss, "test loss"),
        "ridge_distance": (loss - RIDGE, "distance to ridge regression"),
        "zero_prediction": (4.5 - loss, "mean squared prediction"),
        "icl_1_4": ((loss - 4.4) * 0.5, "in-context learning 1 to 4"),
        "icl_4_8": ((loss - 4.4) * 0.3, "in-context learning 4 to 8"),
        "ood_inputs_3": (loss * 2, "loss on inputs scaled by 3"),
        "ood_inputs_10": (loss**3 * 4, "loss on inputs scaled by 10"),
        "weight_norm": (20 + 2 * np.log1p(STEPS), "weight norm"),
        "test_loss_position": (loss[:, None] * np.linspace(1.2, 0.6, 16), "test loss by position"),
    }
    dims = ("checkpoint", "position")
    metrics = xr.Dataset({name: (dims[: value.ndim], value) for name, (value, _) in named.items()})
    for name, (_, long_name) in named.items():
        metrics[name].attrs = {"long_name": long_name, "units": "squared error"}
    metrics = metrics.assign_coords(checkpoint=STEPS, position=np.arange(1, 17))
    return metrics.assign_attrs(chance=CHANCE, ridge_loss=RIDGE)


def write_example(folder: Path, *, sweep: xr.Dataset | None = None, **changes: object) -> Path:
    fields = {
        "title": "In-context linear regression, seed 1",
        "estimates": troubled_estimates(),
        "metrics": example_metrics(),
        "stages": example_stages(),
        "config": {"sweep": {"num_chains": 4, "n_beta": [66.67]}, "task": {"noise": 0.125}},
        "provenance": {"llcjax": "0.1.0", "devices": {"kind": "cpu", "count": 1}},
        "command": "llcjax run regression --seed 1",
        "notes": ["One seed: spread between training runs is not in the error bars."],
    }
    return write_report(folder, sweep=example_sweep() if sweep is None else sweep, **{**fields, **changes})


if __name__ == "__main__":
    print(write_example(Path(sys.argv[1])))
