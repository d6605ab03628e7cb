"""How near the LLC comes to the theorem on random deep linear networks of up to ten million parameters.

Teachers are those of `llcjax.reference.random_deep_linear` (widths, depths and rank cuts of arXiv 2308.12108, table 1),
seeds 0, 1, 2, ... without exception. The truth is lambda at the teacher, which is Aoyagi's lambda or a little more.
Chains are those of `llcjax verify`: SGNHT on the exact population loss, 4 chains, 1,000 to 4,000 steps of burn-in (by
class) and as many of draws, of which every tenth is recorded. `aligned` teachers have layers whose axes meet, so that
the posterior resolves every direction; `Gaussian` ones are the usual random matrices, whose products have singular
values near 0.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np
import scipy.stats

import llcjax
from benchmarks.harness import Measured, Options, Row, run
from llcjax.config import as_dict
from llcjax.trees import num_params
from llcjax.verify.networks import random_teacher


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Teachers of one class."""

    size_class: str
    aligned: bool
    count: int

    @property
    def name(self) -> str:
        """What `--only` calls it."""
        return f"{self.size_class}-{'aligned' if self.aligned else 'gaussian'}"


ON_CPU = (
    Group(size_class="1k", aligned=True, count=40),
    Group(size_class="10k", aligned=True, count=40),
    Group(size_class="1k", aligned=False, count=40),
)
ON_GPU = (
    Group(size_class="100k", aligned=True, count=12),
    Group(size_class="1M", aligned=True, count=12),
    Group(size_class="10M", aligned=True, count=4),
)


def teacher_row(group: Group, seed: int, *, toy: bool = False) -> Row:
    """Estimates one teacher."""
    start = time.perf_counter()
    problem = random_teacher(group.size_class, seed, aligned=group.aligned)
    (answer,), config = problem.answers, problem.config
    if toy:
        config = dataclasses.replace(config, num_burnin_steps=200, num_draws=20)
    facts = llcjax.sweep(problem.loss_fn, problem.bank, problem.data, config, key=problem.key, mask=problem.full_mask)
    found = llcjax.estimates(facts).isel(checkpoint=0, setting=0)
    truth, llc = float(answer.llc or np.nan), float(found["llc"])
    return {
        "teachers": group.name,
        "seed": seed,
        "parameters": num_params(answer.params["w"]),
        "lambda": truth,
        "global": answer.note,
        "LLC": llc,
        "s.e.": float(found["llc_stderr"]),
        "error (%)": 100 * (llc / truth - 1),
        "R-hat": float(found["rhat"]),
        "drift (%)": 100 * float(found["drift"]) / truth,
        "verdict": str(found["verdict"].item()),
        "time (s)": time.perf_counter() - start,
    }


def summary_row(rows: list[Row]) -> Row:
    """What the teachers of one class come to."""
    truth, found, error = (np.array([row[name] for row in rows]) for name in ("lambda", "LLC", "error (%)"))
    fine = np.array([row["verdict"] == "ok" for row in rows])
    size = np.abs(error)
    return {
        "teachers": rows[0]["teachers"],
        "networks": len(rows),
        "parameters": "{:,} to {:,}".format(*(pick(row["parameters"] for row in rows) for pick in (min, max))),
        "lambda": f"{truth.min():,g} to {truth.max():,g}",
        "median error (%)": float(np.median(size)),
        "90th percentile (%)": float(np.quantile(size, 0.9)),
        "largest (%)": float(size.max()),
        "mean signed (%)": float(error.mean()),
        "rank correlation": float(scipy.stats.spearmanr(truth, found).statistic),
        "verdict ok": int(fine.sum()),
        "largest where ok (%)": float(size[fine].max()) if fine.any() else None,
        "median R-hat": float(np.median([row["R-hat"] for row in rows])),
        "median drift (%)": float(np.median([abs(row["drift (%)"]) for row in rows])),
        "time a network (s)": float(np.median([row["time (s)"] for row in rows])),
    }


def measure(options: Options) -> Measured:
    """The classes that suit the device; `--only` takes names such as `1k-aligned`, and any class on any device."""
    known = (*ON_CPU, *ON_GPU)
    suited = ON_CPU if jax.default_backend() == "cpu" else ON_GPU
    groups = [group for group in (known if options.only else suited) if options.wants(group.name)]
    summaries, details = [], []
    for group in groups:
        rows = []
        for seed in range(2 if options.toy else group.count):
            rows.append(teacher_row(group, seed, toy=options.toy))
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
        summaries.append(summary_row(rows))
        details += rows
    return Measured(
        title="LLC of random deep linear networks against lambda",
        rows=summaries,
        details=details,
        settings={
            group.name: as_dict(random_teacher(group.size_class, 0, aligned=group.aligned).config) for group in groups
        },
        notes=[
            "Errors are relative to lambda at the teacher; drift is last third less first third of the draws, over "
            "lambda; the time of a network holds its compilation. Steps of a tenth of 1 / (largest curvature) inflate "
            "the stiffest variances by 2.5%, hence the mean signed error.",
        ],
    )


if __name__ == "__main__":
    run("deep_linear", measure)
