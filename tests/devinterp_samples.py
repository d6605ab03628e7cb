"""Samples a tiny torch model with devinterp 2.0.1; writes its stores and what its functions make of them.

PYTHON_WITH_DEVINTERP tests/devinterp_samples.py FOLDER

`tests/data/devinterp.tar.xz` is what it wrote, so that the stores of devinterp are read where it is not installed.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from datasets import Dataset
from devinterp.slt.bif import compute_bif
from devinterp.slt.llc import compute_llc
from devinterp.slt.sampling import sample
from devinterp.slt.susceptibilities import compute_susceptibilities


class Bigram(torch.nn.Module):
    """Logits of the next token, from a table and a bias."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(5, 5)
        self.bias = torch.nn.Parameter(torch.zeros(5))

    def forward(self, ids):
        return self.table(ids) + self.bias


STORES = {
    "full": {},
    "bias": {"param_masks": {"bias": None}},
    "late": {"num_burnin_steps": 4, "num_steps_bw_draws": 2, "gradient_accumulation_steps": 2, "save_metrics": True,
             "match_sampling_input_ids_across_chains": False},
}  # fmt: skip


def main(folder):
    torch.manual_seed(0)
    ids = torch.randint(0, 5, (40, 4))
    data, other = (
        Dataset.from_dict({"input_ids": part.tolist()}).with_format("torch") for part in (ids[:32], ids[32:])
    )
    model, trees, theirs = Bigram(), {}, {}
    for name, options in STORES.items():
        sample(model, data, {"data": (data, 2), "other": (other, 1)}, lr=1e-3, n_beta=20.0, localization=20.0,
               num_chains=2, num_draws=8, batch_size=2, device="cpu", output_path=folder / name, **options)  # fmt: skip
        trees[name] = xr.open_datatree(str(folder / name), engine="zarr", consolidated=False)
        llc = compute_llc(trees[name])
        theirs[f"{name}_llc"], theirs[f"{name}_trace"] = llc["llc_mean"], llc["loss_trace"]
        theirs[f"{name}_init"] = llc["init_loss"]
        for kind in ("correlation", "covariance"):
            bif = compute_bif(trees[name], compute_covariance=kind == "covariance", device="cpu")
            theirs[f"{name}_{kind}"] = bif["influences"]  # (example, example, token, token)
    chi = compute_susceptibilities({name: trees[name] for name in ("full", "bias")}, "data", ["other"])
    theirs["susceptibilities"] = chi["susceptibilities"]["sus"]
    np.savez_compressed(folder / "theirs.npz", **theirs)


main(Path(sys.argv[1]))
