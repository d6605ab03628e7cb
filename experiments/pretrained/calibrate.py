"""Whether the LLCs of stories260K stand on a plateau: step size x localization x n_beta, of everything and of a head.

python experiments/pretrained/calibrate.py [--data DIR] [--out DIR] [--num-draws N]

Writes `plateau.csv` and `plateau.png`; README.md says what is in them.
"""

import argparse
import csv
from pathlib import Path

import jax
import numpy as np
from stories import sampled

import llcjax
from llcjax.calibrate import judge_settings
from llcjax.plots.style import legend_below, new_figure, ordered_colors

NAMES = ["full", "block_1/attention/head_3"]
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
parser.add_argument("--out", type=Path, default=Path("runs/stories260K-plateau"))
parser.add_argument("--n-beta", type=float, nargs="+", default=[30.0, 100.0])
parser.add_argument("--localization", type=float, nargs="+", default=[1000.0, 3000.0])
parser.add_argument("--step-size", type=float, nargs="+", default=[2.5e-5, 5e-5, 1e-4])
parser.add_argument("--num-draws", type=int, default=120)
parser.add_argument("--num-burnin-steps", type=int, default=40)
parser.add_argument("--num-sequences", type=int, default=2048)
parser.add_argument("--names", nargs="+", default=NAMES)
arguments = parser.parse_args()

config, params = llcjax.load_pretrained(arguments.data / "stories260K.bin")
apply = llcjax.decoder(config)
data = sampled(apply, params, jax.random.key(0), arguments.num_sequences, 32)
parts = llcjax.component_masks(
    params, arguments.names, num_heads=config.num_heads, num_key_value_heads=config.num_key_value_heads
)
settings = llcjax.SweepConfig(
    n_beta=tuple(arguments.n_beta), localization=tuple(arguments.localization), step_size=tuple(arguments.step_size),
    batch_size=8, num_chains=4, num_draws=arguments.num_draws, num_burnin_steps=arguments.num_burnin_steps,
)  # fmt: skip
facts = llcjax.sweep(
    llcjax.next_token_loss(apply), llcjax.checkpoints.bank_of(params), data, settings, components=parts,
    chance=float(np.log(config.vocabulary)), out=arguments.out / "sweep", progress=True,
)  # fmt: skip
HALVES = ["llc_first_half", "llc_last_half"]  # of the draws: does the LLC depend on how long chains are?
table = llcjax.estimates(facts)
halves = table["llc_per_chain_half"].mean("chain")
table = table.assign({name: halves.isel(half=half) for half, name in enumerate(HALVES)})
COLUMNS = ["n_beta", "localization", "step_size", "llc", "llc_stderr", *HALVES, "rhat", "autocorrelation_time"]
CRITERIA = ["lift", "sound", "step_plateau", "localization_plateau"]
figure, panels = new_figure(1, len(arguments.names), height=3.2)
with (arguments.out / "plateau.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["component", *COLUMNS, *CRITERIA, "verdict"])
    for name, axes in zip(arguments.names, panels, strict=True):
        here = facts["component"].values == name
        judged = judge_settings(facts.isel(setting=here), table.isel(setting=here))
        one = table.isel(setting=here).assign({key: judged[key] for key in CRITERIA})
        one = one.isel(checkpoint=0).sortby("step_size")
        for i in range(one.sizes["setting"]):
            row = one.isel(setting=i)
            writer.writerow(
                [name, *(f"{float(row[column]):.4g}" for column in COLUMNS + CRITERIA), row["verdict"].item()]
            )
        for color, n_beta in zip(ordered_colors(len(arguments.n_beta)), sorted(arguments.n_beta), strict=True):
            for dashes, gamma in zip(("-", "--", ":"), sorted(arguments.localization), strict=False):
                part = one.isel(setting=(one["n_beta"].values == n_beta) & (one["localization"].values == gamma))
                label = f"n_beta {n_beta:g}, localization {gamma:g}"
                axes.errorbar(part["step_size"], part["llc"], yerr=1.96 * part["llc_stderr"], ls=dashes, color=color,
                              lw=1.2, label=label)  # fmt: skip
                sound = part.isel(setting=part["sound"].values)
                axes.plot(sound["step_size"], sound["llc"], "o", color=color, ms=5)
        axes.set(xscale="log", yscale="log", xlabel="step size", ylabel=f"LLC of {name.split('/')[-1]}")
legend_below(figure, *panels, num_columns=2)
figure.savefig(arguments.out / "plateau.png", dpi=150)
print((arguments.out / "plateau.csv").read_text())
