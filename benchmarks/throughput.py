"""Chain-steps a second of SGLD against the number of chains at once: what `llcjax bench` shows, stored.

`--only` takes workloads by name. On a GPU products are in bf16 where activations are, and else in TF32.
"""

from __future__ import annotations

from benchmarks.harness import Measured, Options, run
from llcjax import bench


def measure(options: Options) -> Measured:
    """Every workload at the precision that suits it."""
    names = options.only or (("toy",) if options.toy else tuple(bench.suitable_workloads()))
    size = {"runs": (2, 4), "num_draws": 5, "repeats": 3} if options.toy else {}
    best = {precision: bench.ceilings(precision) for precision in dict.fromkeys(map(bench.own_precision, names))}
    rows = []
    for name in names:
        precision = bench.own_precision(name)
        rows += bench.rows(best[precision], (name,), precision=precision, **size)
    notes = [
        f"A matrix product at precision {name} reaches {one.flops / 1e12:.3g} TFLOP/s here, a pass over memory "
        f"{one.bandwidth / 1e9:.3g} GB/s."
        for name, one in best.items()
    ]
    return Measured(title="Throughput of SGLD", rows=rows, settings={"examples": bench.NUM_EXAMPLES}, notes=notes)


if __name__ == "__main__":
    run("throughput", measure)
