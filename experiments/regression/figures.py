"""Draws figures of README.md from the tables in results/, without the sweeps.

python experiments/regression/figures.py
"""

import csv
from pathlib import Path

import numpy as np
import xarray as xr

from llcjax.pipelines.regression import PRESETS
from llcjax.plots import plot_mean_loss, plot_regimes

RESULTS = Path(__file__).parent / "results"
TEXT = ("verdict",)


def table(name: str) -> xr.Dataset:
    """One of the tables as the estimates of a sweep with one setting."""
    with open(RESULTS / name, newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    numbers = {name: np.array(values, str if name in TEXT else float) for name, values in columns.items()}
    steps = numbers.pop("step").astype(int)
    settings = {name: ("setting", numbers.pop(name)[:1]) for name in ("n_beta", "localization", "step_size")}
    variables = {name: (("checkpoint", "setting"), values[:, None]) for name, values in numbers.items()}
    chance = {"chance": PRESETS["paper"].task.chance}
    return xr.Dataset(variables, coords={"checkpoint": steps, **settings}, attrs=chance)


def main() -> None:
    """Draws both regimes in one figure, and where each one's chains went."""
    published, local = table("llc.csv"), table("local_llc.csv")
    names = {"published: localization 6.667": published, "calibrated: localization 1500": local}
    plot_regimes(names).savefig(RESULTS / "regimes.png", dpi=110)
    for curve, name in ((published, "mean_loss.png"), (local, "local_mean_loss.png")):
        plot_mean_loss(curve).savefig(RESULTS / name, dpi=110)


if __name__ == "__main__":
    main()
