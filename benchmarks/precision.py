"""Does a faster precision of the matrix products change the LLC? `highest`, `tf32` and `bf16` with the same keys.

Batches and noise are the same, so that chains of two precisions differ by rounding alone: until they drift apart,
their difference is far smaller than the error of either. Its mean over the chains is the bias of a precision, its own
standard error says how well that is known, and the Monte-Carlo error of the estimate what may be ignored.

The model is that of `benchmarks.paired_baseline`: the paper's transformer from the bank that the environment variable
LLCJAX_BENCH_BANK names, or the small one of the quick preset, trained first. A CPU has float32 only, and there the
policies are one program.
"""

from __future__ import annotations

import dataclasses
from typing import get_args

import jax
import numpy as np

import llcjax
from benchmarks.harness import Measured, Options, Row, run
from benchmarks.paired_baseline import Case, transformer
from llcjax.config import Precision, as_dict
from llcjax.forecast import forecast
from llcjax.types import LossFn


def policies(case: Case) -> dict[str, tuple[LossFn, Precision]]:
    """The precisions of the products, and on a GPU 16 bits for what stands between them too."""
    found: dict[str, tuple[LossFn, Precision]] = {name: (case.loss_fn, name) for name in get_args(Precision)}
    if jax.default_backend() == "gpu":
        for activations, precision in (("float16", "tf32"), ("bfloat16", "bf16")):
            found[f"{precision}, {activations} activations"] = (case.loss_with(activations), precision)
    return found


def rows(case: Case, repeats: int) -> list[Row]:
    """One row a checkpoint and precision."""
    tables, times = {}, {}
    for name, (loss_fn, precision) in policies(case).items():
        config = dataclasses.replace(case.at(case.n_beta[0]), precision=precision)
        tables[name] = llcjax.estimates(llcjax.sweep(loss_fn, case.bank, case.data, config)).isel(setting=0)
        times[name] = forecast(loss_fn, case.bank, case.data, config, repeats=repeats).seconds_per_step
    return [_row(case, index, precision, tables, times) for index in range(len(case.bank)) for precision in tables]


def _row(case: Case, index: int, precision: str, tables: dict, times: dict[str, float]) -> Row:
    table, exact = tables[precision].isel(checkpoint=index), tables["highest"].isel(checkpoint=index)
    difference = table["llc_per_chain"].values - exact["llc_per_chain"].values
    bias, error = float(difference.mean()), float(table["llc_stderr"])
    return {
        "model": case.model,
        "checkpoint (step)": int(case.bank.steps[index]),
        "precision": precision,
        "LLC": float(table["llc"]),
        "s.e.": error,
        "less highest": bias,
        "s.e. of that": float(difference.std(ddof=1) / np.sqrt(len(difference))),
        "in standard errors of the LLC": bias / error,
        "verdict": str(table["verdict"].item()),
        "time a chain step (us)": 1e6 * times[precision],
        "highest takes": times["highest"] / times[precision],
    }


def measure(options: Options) -> Measured:
    """All policies at two checkpoints."""
    case = transformer(options.toy)
    found = rows(case, 1 if options.toy else 5)
    worst = max(abs(row["in standard errors of the LLC"]) for row in found)
    notes = [f"The largest difference is {worst:.2g} standard errors of the LLC."]
    if jax.default_backend() == "cpu":
        notes.append("A CPU has float32 only: the policies are one program there.")
    return Measured(
        title="LLC against the precision of the matrix products, same keys",
        rows=found,
        settings={case.model: {"steps": case.bank.steps.tolist(), **as_dict(case.at(case.n_beta[0]))}},
        notes=notes,
    )


if __name__ == "__main__":
    run("precision", measure)
