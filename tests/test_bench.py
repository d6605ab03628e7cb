"""Throughput: the numbers belong together, the command prints and stores them, and bad input gets a sentence."""

import json
import math

import pytest

from benchmarks import (
    breakdown,
    checkpoints,
    compile_time,
    efficiency,
    harness,
    load,
    precision,
    prng,
    scaling,
    throughput,
)
from llcjax import bench, cli


def test_a_measurement_counts_what_the_model_does(tmp_path):
    one = bench.throughput("toy", 8, num_draws=5, repeats=1)
    assert (one.num_params, one.runs) == (340, 8)
    # Two layers: forward, and gradients of all weights and of the hidden layer, at 2 operations each.
    products = 256 * (16 * 16 * 2 + 16 * 4 * 3)
    assert one.flops == pytest.approx(2 * products, rel=0.15)
    best = bench.Ceilings(flops=1e9, bandwidth=1e9)
    assert one.share_of_product(best) == pytest.approx(one.flops * one.chain_steps / 1e9 / 4)  # four simulated devices
    assert one.nbytes is not None
    assert one.share_of_pass(best) == pytest.approx(one.nbytes * one.chain_steps / 1e9 / 4)
    # What a step cannot do without: examples, hidden layer and logits with their gradients, weights read and written.
    least = 4 * (256 * (16 + 2 * 16 + 2 * 4) + 2 * 340)
    assert least < one.nbytes < 15 * least
    more = bench.throughput("toy", 16, num_draws=5, repeats=1)
    assert more.nbytes == pytest.approx(one.nbytes, rel=0.3)


PARAMETERS = {"toy": 340, "mlp": 50_890, "regression": 51_717, "language": 3_355_016}


@pytest.mark.parametrize("name", bench.WORKLOADS)
def test_workloads_are_what_they_say(name):
    work = bench.WORKLOADS[name]()
    batch = [leaf[: work.batch_size] for leaf in (work.data if isinstance(work.data, tuple) else (work.data,))]
    assert len(batch[0]) == work.batch_size
    assert bench.num_params(work.params) == PARAMETERS[name.split("-")[0]]


def test_the_command_prints_and_stores(tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    small = ["--runs", "8", "--draws", "5", "--repeats", "1"]
    cli.main(["bench", "--workloads", "toy", *small, "--out", str(out)])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("toy", "340", "TFLOP/s", "GB/s"))
    facts = json.loads(out.read_text())
    (row,) = facts["rows"]
    assert row["chain-steps a second"] == pytest.approx(1e6 / row["time a chain step (us)"]) and facts["provenance"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--workloads", "huge"], "workload='huge' is unknown"), (["--runs", "0"], "must be at least 1")],
)
def test_bad_input_is_one_sentence(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *arguments])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and words in lines[0]


def test_the_benchmark_runs(tmp_path):
    path = harness.run("throughput", throughput.measure, ["--toy", "--out", str(tmp_path)])
    facts = json.loads(path.read_text())
    assert [row["chains at once"] for row in facts["rows"]] == [8, 8]  # at least two on each of four devices
    assert "TFLOP/s" in facts["notes"][0]


@pytest.mark.parametrize(
    "module",
    [prng, compile_time, checkpoints, load, efficiency, scaling, precision, breakdown],
    ids=lambda module: module.__name__,
)
def test_every_benchmark_runs_at_toy_size(module, tmp_path):
    name = module.__name__.removeprefix("benchmarks.")
    rows = json.loads(harness.run(name, module.measure, ["--toy", "--out", str(tmp_path)]).read_text())["rows"]
    assert rows
    for row in rows:
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert numbers and all(math.isfinite(value) for value in numbers)


def test_the_generator_of_the_library_does_not_depend_on_the_batch(tmp_path):
    rows = json.loads(harness.run("prng", prng.measure, ["--toy", "--out", str(tmp_path)]).read_text())["rows"]
    (ours,) = [row for row in rows if row["llcjax uses it"]]
    assert ours["generator"] == "threefry2x32" and ours["same alone and in a batch"] == "yes"


def test_every_part_of_the_transformer_is_told_apart():
    found = breakdown.rows("regression", "highest", 4, 1)
    assert {row["part"] for row in found} >= {*breakdown.PARTS, breakdown.REST, "by the clock"}
    shares = [row["share (%)"] for row in found if row["part"] in (*breakdown.PARTS, breakdown.REST)]
    assert sum(shares) == pytest.approx(100)
    assert all(row["backward (us)"] > 0 for row in found if row["part"] in ("attention", "mlp", "norm", "qkv"))
