"""Chain-steps a second of SGLD against the number of chains at once: what `llcjax bench` shows, stored.

`--only` takes workloads by name. On a GPU each runs in float32, TF32 and bf16 products.
"""

from __future__ import annotations

import jax

from benchmarks.harness import Measured, Options, run
from llcjax import bench
from llcjax.config import Precision


def measure(options: Options) -> Measured:
    """Every workload at every precision that the device tells apart."""
    cpu = jax.default_backend() == "cpu"
    precisions: tuple[Precision, ...] = ("highest",) if cpu else ("highest", "tf32", "bf16")
    names = options.only or (("toy",) if options.toy else tuple(bench.suitable_workloads()))
    size = {"runs": (2, 4), "num_draws": 5, "repeats": 3} if options.toy else {}
    best = {precision: bench.ceilings(precision) for precision in precisions}
    rows = [row for name, one in best.items() for row in bench.rows(one, names, precision=name, **size)]
    notes = [
        f"A matrix product at precision {name} reaches {one.flops / 1e12:.3g} TFLOP/s here, a pass over memory "
        f"{one.bandwidth / 1e9:.3g} GB/s."
        for name, one in best.items()
    ]
    return Measured(title="Throughput of SGLD", rows=rows, settings={"examples": bench.NUM_EXAMPLES}, notes=notes)


if __name__ == "__main__":
    run("throughput", measure)
