"""Whether the LLCs of stories260K stand on a plateau: step size x localization x n_beta, for everything and some heads.

python experiments/pretrained/calibrate.py [--data DIR] [--out DIR] [--num-draws N]

Writes `plateau.csv` and `plateau.png`; README.md says what is in them.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from stories import sampled

import llcjax
from llcjax.calibrate import judge_settings

NAMES = ["full", "block_0/attention/head_0", "block_1/attention/head_3", "block_4/attention/head_5"]
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
parser.add_argument("--out", type=Path, default=Path("runs/stories260K-plateau"))
parser.add_argument("--n-beta", type=float, nargs="+", default=[30.0, 100.0])
parser.add_argument("--localization", type=float, nargs="+", default=[1000.0, 3000.0, 10000.0])
parser.add_argument("--step-size", type=float, nargs="+", default=[1e-5, 3e-5, 1e-4])
parser.add_argument("--num-draws", type=int, default=100)
parser.add_argument("--num-burnin-steps", type=int, default=50)
parser.add_argument("--names", nargs="+", default=NAMES)
arguments = parser.parse_args()

config, params = llcjax.load_pretrained(arguments.data / "stories260K.bin")
apply = llcjax.decoder(config)
data = sampled(apply, params, jax.random.key(0), 2048, 32)
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
table = llcjax.estimates(facts)
for name in arguments.names:
    here = np.flatnonzero(facts["component"].values == name)
    judged = judge_settings(facts.isel(setting=here), table.isel(setting=here)).isel(checkpoint=0)
    one = table.isel(setting=here, checkpoint=0)
    for i in range(len(here)):
        row = one.isel(setting=i)
        print(
            f"{name:26s} n_beta {float(row['n_beta']):6g} gamma {float(row['localization']):6g} "
            f"eps {float(row['step_size']):.0e} LLC {float(row['llc']):8.3f} +- {float(row['llc_stderr']):.3f} "
            f"{row['verdict'].item()!s:10s}",
            {str(k): judged[k].values[i].item() for k in judged if judged[k].ndim},
        )
