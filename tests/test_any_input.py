"""Arguments of any type and size, and numbers that are none: a result, one sentence, or a status; nothing else."""

import contextlib
import io
import json
import math
import socket
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import llcjax
from llcjax.agreement import boundary_agreement, curves_stages
from llcjax.checkpoints import CheckpointBank
from llcjax.cli import main
from llcjax.config import SweepConfig
from llcjax.config_file import load_sweep_config
from llcjax.curve_verdict import curve_verdict, loss_copy
from llcjax.free_energy import integration_rule
from llcjax.stages import find_stages, llc_stages, read_curve
from llcjax.sweep import sweep
from llcjax.tokens import token_rows

QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BANK = CheckpointBank(params=np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32), steps=np.arange(5) * 10)
DATA = np.random.default_rng(1).normal(size=(16, 7)).astype(np.float32)
GOOD = {"n_beta": 10.0, "step_size": 1e-3, "localization": 1.0, "num_chains": 2, "num_draws": 8, "batch_size": 4}

NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 2**31 - 1, 2**31, 2**63, 10**30, 10**400, 1e308, 1e-320]),
    st.booleans(), st.complex_numbers(), st.builds(np.int64, st.integers(-9, 9)), st.builds(np.float32, st.just(0.5)),
)  # fmt: skip
LEAVES = st.one_of(st.none(), NUMBERS, st.text(max_size=8), st.binary(max_size=8), st.just(object()), st.just(len))
ARRAYS = hnp.arrays(
    st.sampled_from(["f4", "f8", "i8", "u8", "c8", "?", "U3", "O", "M8[s]"]), hnp.array_shapes(min_dims=0, min_side=0)
)
ANYTHING = st.one_of(
    LEAVES, ARRAYS, st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
                                 | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)),
)  # fmt: skip


class Computing(Exception):
    """All checks are passed."""


@pytest.fixture
def nothing_is_computed(monkeypatch):
    def computing(*_, **__):
        raise Computing

    monkeypatch.setattr(sys.modules["llcjax.sweep"], "prepared_store", computing)  # `llcjax.sweep` is the function


def outcome(call, *arguments, **options):
    """`result`, `computing`, or the sentence; anything else that is raised is a fault."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            call(*arguments, **options)
        except Computing:
            return "computing"
        except (ValueError, OSError) as error:
            return str(error)
    return "result"


def answered(said):
    """Whether a call gave a result, went on to compute, or said something that can be read."""
    return 0 < len(said) < 2500


def loss(w, batch):
    return jnp.square(batch @ w)


def estimate(**changes):
    arguments = {"loss_fn": loss, "params": np.ones(7, np.float32), "data": DATA, "key": 0, **GOOD, **changes}
    return llcjax.estimate_llc(arguments.pop("loss_fn"), arguments.pop("params"), arguments.pop("data"), **arguments)


OPTIONS_OF_ESTIMATE = [
    "loss_fn", "params", "data", "key", *GOOD, "num_burnin_steps", "num_steps_between_draws", "sampler",
    "sampler_options", "step_size_decay", "step_size_decay_time", "mask", "baseline", "num_baseline_batches",
    "precision", "chance", "progress",
]  # fmt: skip


@QUICK
@given(name=st.sampled_from(OPTIONS_OF_ESTIMATE), value=ANYTHING)
def test_estimate_llc_takes_anything(nothing_is_computed, name, value):
    assert answered(outcome(estimate, **{name: value}))


@QUICK
@given(name=st.sampled_from(SweepConfig.__slots__), value=ANYTHING)
def test_a_config_holds_what_json_and_a_device_can(name, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = SweepConfig(**{name: value})
        except ValueError as error:
            assert name in str(error) or "steps" in str(error), error
            return
    again = SweepConfig(**json.loads(json.dumps(llcjax.config.as_dict(config))))
    assert again == config
    for value in (*config.n_beta, *config.localization, *config.step_size):
        assert math.isfinite(np.float32(value)) and (np.float32(value) > 0) == (value > 0)


OPTIONS_OF_SWEEP = [
    "loss_fn", "bank", "data", "config", "out", "key", "mask", "components", "observe", "probes", "chance", "attrs",
    "on_chunk", "devices", "save_every_seconds", "progress",
]  # fmt: skip


@QUICK
@given(name=st.sampled_from(OPTIONS_OF_SWEEP), value=ANYTHING)
def test_sweep_takes_anything(nothing_is_computed, tmp_path_factory, name, value):
    folder = tmp_path_factory.mktemp("any")
    if name == "out" and isinstance(value, str):
        value = str(folder / value)
    arguments = {"loss_fn": loss, "bank": BANK, "data": DATA, "config": SweepConfig(**GOOD), name: value}
    assert answered(
        outcome(lambda loss_fn, bank, data, config, **rest: sweep(loss_fn, bank, data, config, **rest), **arguments)
    )


@QUICK
@given(name=st.sampled_from(["loss_fn", "bank", "data", "config", "checkpoints", "chance", "target_acceptance", "out"]),
       value=ANYTHING)  # fmt: skip
def test_calibrate_takes_anything(nothing_is_computed, tmp_path_factory, name, value):
    if name == "out" and isinstance(value, str):
        value = str(tmp_path_factory.mktemp("any") / value)
    arguments = {"loss_fn": loss, "bank": BANK, "data": DATA, "config": SweepConfig(**GOOD), name: value}
    call = llcjax.calibrate
    assert answered(
        outcome(lambda loss_fn, bank, data, config, **rest: call(loss_fn, bank, data, config, **rest), **arguments)
    )


@QUICK
@given(params=ANYTHING, steps=ANYTHING, metrics=ANYTHING)
def test_a_bank_takes_anything(params, steps, metrics):
    assert answered(outcome(CheckpointBank, params=params, steps=[0, 1]))
    assert answered(outcome(CheckpointBank, params=np.ones((2, 3)), steps=steps))
    assert answered(outcome(CheckpointBank, params=np.ones((2, 3)), steps=[0, 1], metrics=metrics))


READERS = [
    llcjax.import_bank, llcjax.load_bank, llcjax.load_pretrained, llcjax.read_tokens, llcjax.open_sweep,
    llcjax.import_devinterp, read_curve, load_sweep_config, lambda value: llcjax.pretrained_bank([value]),
    llcjax.pretrained_bank,
]  # fmt: skip


@QUICK
@given(value=ANYTHING)
def test_readers_take_anything_for_a_path(value):
    for read in READERS:
        assert answered(said := outcome(read, value)) and said != "result", (read, value)


@pytest.fixture(scope="module")
def swept():
    return sweep(loss, BANK, DATA, SweepConfig(**{**GOOD, "num_draws": 20}))


@QUICK
@given(name=st.sampled_from(["sweep", "num_burnin_steps", "thin"]), value=ANYTHING)
def test_estimates_take_anything(swept, name, value):
    arguments = {"sweep": swept, name: value}
    for call in (llcjax.estimates, llcjax.running_llc, llcjax.wbic, llcjax.temperature_curve, llcjax.free_energy):
        options = {"log_likelihood": True} if call is llcjax.wbic else {}
        if call is llcjax.free_energy:
            options = {"rule": integration_rule(10.0)}
        if name == "thin" and call is not llcjax.estimates:
            continue
        assert answered(
            outcome(lambda sweep, call=call, options=options, **rest: call(sweep, **options, **rest), **arguments)
        )


PARTS = ["loss", "n_beta", "draw", "num_draws_done", "llc", "verdict", "init_loss", "mean_loss", "llc_per_chain"]


@pytest.mark.parametrize("lost", PARTS)
def test_tables_that_lack_something_are_refused(swept, lost):
    facts, table = (one.drop_vars(lost, errors="ignore") for one in (swept, llcjax.estimates(swept)))
    for call in (llcjax.estimates, llcjax.running_llc):
        assert answered(outcome(call, facts))
    assert answered(outcome(llc_stages, table))
    for call in (curve_verdict, loss_copy):
        assert answered(outcome(call, table.isel(setting=0)))
    assert answered(said := outcome(llcjax.estimates, table)) and said != "result"
    assert answered(said := outcome(llc_stages, swept)) and said != "result"


@QUICK
@given(name=st.sampled_from(["loss", "setting", "method"]), value=ANYTHING)
def test_verdicts_take_anything(swept, name, value):
    table = llcjax.estimates(swept)
    for call in (loss_copy, curve_verdict, llc_stages, llcjax.excess_loss):
        assert answered(said := outcome(call, value)) and said != "result"
    assert answered(outcome(llc_stages, table, **{"method": "paper", name: value}))
    assert answered(outcome(loss_copy, table.isel(setting=0), tolerance=value))


STEPS = np.arange(8) * 10
OPTIONS_OF_STAGES = [
    "step", "value", "stderr", "loss", "method", "error_covariance", "tolerance", "min_width", "probability",
    "num_grid", "num_draws", "seed",
]  # fmt: skip


@settings(QUICK, max_examples=40)
@given(name=st.sampled_from(OPTIONS_OF_STAGES), value=ANYTHING)
def test_stages_take_anything(monkeypatch, name, value):
    monkeypatch.setattr(sys.modules["llcjax.stages"], "MOST_POINTS", 1000)
    options = {"num_grid": 60, "num_draws": 16, "step": STEPS, "value": np.sqrt(STEPS), name: value}
    if name == "error_covariance":
        options["stderr"] = None
    assert answered(outcome(find_stages, **options))


@settings(QUICK, max_examples=25)
@given(
    value=hnp.arrays("f8", 8, elements=st.floats(allow_nan=True)),
    steps=hnp.arrays("i8", 8, elements=st.integers(0, 2**62)),
)
def test_any_curve_has_stages_or_a_sentence(value, steps):
    assert answered(outcome(find_stages, steps, value, num_grid=60, num_draws=16))
    assert answered(outcome(find_stages, STEPS, value, method="paper"))
    found = curves_stages({"one": (STEPS, value, None)}, method="paper")
    boundary_agreement(found, [10.0, 40.0])


@QUICK
@given(value=ANYTHING, name=st.sampled_from(["n_beta", "num_nodes", "power"]))
def test_small_functions_take_anything(value, name):
    assert answered(outcome(integration_rule, **{"n_beta": 10.0, "num_nodes": 4, name: value}))
    assert answered(outcome(token_rows, value, 4))
    assert answered(outcome(token_rows, np.arange(16), value))
    assert answered(outcome(token_rows, np.arange(16), 4, value))
    assert answered(outcome(token_rows, np.arange(16), 4, None, value))


@settings(QUICK, max_examples=40)
@given(values=st.dictionaries(st.sampled_from(SweepConfig.__slots__) | st.text(max_size=5), ANYTHING, max_size=3))
def test_config_files_take_anything(tmp_path, values):
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        (tmp_path / "c.json").write_text(json.dumps(values))
        assert answered(outcome(load_sweep_config, tmp_path / "c.json"))


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["--out", "--preset", "--config", "--model", "--tokens", "--sweep.n-beta", "--sweep.num-draws", "--value", "nan",
     "-1", "1e999", "regression", "language", "--tolerance", "/", "", "--suite", "--runs", "99999999999999999999"]
)  # fmt: skip
COMMANDS = ["stages", "report", "rerun", "bench", "verify", "sweep", "run", "train", "calibrate"]


@settings(QUICK, max_examples=60)
@given(command=st.sampled_from(COMMANDS) | WORDS, words=st.lists(WORDS, max_size=4))
def test_the_command_line_takes_anything(monkeypatch, tmp_path, command, words):
    """Ends by itself, with a sentence and exit code 2 where it cannot go on; what it would compute is left out."""
    monkeypatch.chdir(tmp_path)
    computing = lambda *_, **__: (_ for _ in ()).throw(SystemExit(0))  # noqa: E731
    for place in ("pipelines.experiment_run.ExperimentRun.__init__", "cli.tools.verify", "cli.tools.bench.ceilings"):
        monkeypatch.setattr(f"llcjax.{place}", computing)
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            main([command, *words])
        except SystemExit as stop:
            assert stop.code in (0, 2, None), (stop.code, printed.getvalue())
            assert stop.code != 2 or printed.getvalue().strip()


# What is measured of numbers that are none.


def facts_of(bank=BANK, data=DATA, loss_fn=loss, **changes):
    return sweep(loss_fn, bank, data, SweepConfig(**{**GOOD, **changes}), devices=jax.local_devices()[:1])


@pytest.fixture(scope="module")
def whole():
    return facts_of()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("victim", [0, 2, 4])
def test_a_broken_checkpoint_is_a_status_and_the_others_are_unharmed(whole, victim, value):
    params = np.array(BANK.params)
    params[victim, 3] = value
    facts = facts_of(CheckpointBank(params=params, steps=BANK.steps))
    verdicts = llcjax.estimates(facts)["verdict"].values[:, 0]
    others = np.arange(5) != victim
    assert verdicts[victim] in ("failed", "diverged")
    assert facts["loss"].values[others].tobytes() == whole["loss"].values[others].tobytes()


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_loss_or_gradient_that_breaks_at_any_step_is_a_status(what, value, step):
    """Chains of the first checkpoint break once they have walked so many steps to the right; the others stay."""
    params = np.zeros((3, 1), np.float32)
    params[0] = 100.0 - step

    @jax.custom_vjp
    def broken(x):
        return x

    broken.defvjp(lambda x: (x, x), lambda x, g: (jnp.where(x >= 99.5, value, -1000.0 * jnp.sign(x)) * g,))

    def one(w, _):
        x = w[0]
        if what == "loss":
            return jnp.where(x >= 99.5, value, -1000.0 * jnp.abs(x))
        return broken(x)

    bank = CheckpointBank(params=params, steps=np.arange(3))
    facts = sweep(one, bank, None, SweepConfig(n_beta=2.0, step_size=1e-3, localization=0.0, num_chains=2, num_draws=10,
                                               batch_size=None), devices=jax.local_devices()[:1])  # fmt: skip
    first = facts["first_nonfinite_step"].values[:, 0]
    assert (first[0] >= step).all() and (first[0] <= step + 1).all(), first
    assert (first[1:] == -1).all()
    verdicts = llcjax.estimates(facts)["verdict"].values[:, 0]
    assert verdicts[0] == "failed" and not set(verdicts[1:]) & {"failed", "diverged"}


def test_nan_in_the_data_is_a_status():
    data = np.array(DATA)
    data[5, 2] = np.nan
    table = llcjax.estimates(facts_of(data=data, batch_size=None))
    assert (table["verdict"].values == "failed").all()
    assert all("its parameters and the data" in sentence for sentence in table["sentence"].values.flat)


def test_overflow_in_bfloat16_is_a_status():
    def half(w, batch):
        small = (batch @ w).astype(jnp.bfloat16)
        return (small * jnp.bfloat16(1e38) * jnp.bfloat16(10.0)).astype(jnp.float32)

    assert (llcjax.estimates(facts_of(loss_fn=half))["verdict"].values == "failed").all()


def test_a_sum_over_the_batch_is_refused_and_a_mean_is_not():
    with pytest.raises(ValueError, match="adds them up; return their mean"):
        estimate(loss_fn=lambda w, batch: jnp.square(batch @ w).sum())
    assert estimate(loss_fn=lambda w, batch: jnp.square(batch @ w).mean()).llc is not None
    with pytest.raises(ValueError, match="adds them up"):
        estimate(loss_fn=lambda w, x: (x @ w).sum(), data=lambda key: jax.random.normal(key, (4, 7)), batch_size=None)


def test_data_smaller_than_a_batch_and_none_at_all():
    with pytest.raises(ValueError, match="batch_size=17 is larger than the 16 examples"):
        facts_of(batch_size=17)
    with pytest.raises(ValueError, match="0 examples"):
        facts_of(data=DATA[:0])


@pytest.mark.parametrize("label", [-9, 3, 7, 2**40])
def test_labels_out_of_range_are_a_sentence_or_a_status(label):
    labels = np.arange(16) % 3
    labels[4] = label

    def cross_entropy(w, batch):
        x, y = batch
        scores = jax.nn.log_softmax(x @ w.reshape(7, 3))
        return -jnp.take_along_axis(scores, y[:, None], 1)[:, 0]

    bank = CheckpointBank(params=np.zeros((1, 21), np.float32), steps=[0])
    call = lambda: facts_of(bank, (DATA, labels), cross_entropy, batch_size=None)  # noqa: E731
    if abs(label) > 2**31:
        with pytest.raises(ValueError, match=r"32 bits hold"):
            call()
    else:
        assert llcjax.estimates(call())["verdict"].values[0, 0] == "failed"


@pytest.mark.parametrize(
    ("steps", "words"),
    [([0, 10, 10], "10 is followed by 10"), ([0, 20, 10], "20 is followed by 10"), ([0, 1.5, 2], "whole numbers"),
     ([0, 1, 2**63], "whole numbers"), ([0, np.nan, 2], "whole numbers"), ([[0, 1, 2]], "no checkpoints")],
)  # fmt: skip
def test_steps_that_are_no_steps_are_refused(steps, words):
    with pytest.raises(ValueError, match=words):
        CheckpointBank(params=np.ones((3, 2)), steps=steps)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_chains": 2**31}, "num_chains=2147483648 is too many"), ({"num_draws": 2**31}, "num_draws"),
     ({"num_draws": 2**30, "num_steps_between_draws": 4}, "too long"), ({"num_burnin_steps": 2**31 - 1}, "too long"),
     ({"num_chains": 2**30}, "5,368,709,120 runs"), ({"num_draws": 2**29}, "record at most"), ({"seed": 2**32}, "seed"),
     ({"n_beta": tuple(range(1, 1002)), "step_size": (1e-3,) * 1000}, "settings")],
)  # fmt: skip
def test_counts_that_would_overflow_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        facts_of(**options)


def test_seeds_that_jax_would_wrap_are_refused():
    for key in (-1, 2**32, 10**30):
        with pytest.raises(ValueError, match="must be a seed from 0"):
            estimate(key=key)


def test_no_network_at_run_time(monkeypatch, tmp_path):
    """A sweep into a store, its estimates and a report open no connection."""

    def refused(*_, **__):
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refused)
    with pytest.raises(AssertionError, match="connection"):
        socket.create_connection(("localhost", 1))
    facts = sweep(loss, BANK, DATA, SweepConfig(**GOOD), out=tmp_path / "s")
    table = llcjax.estimates(facts)
    from llcjax.report import write_report

    page = write_report(
        tmp_path, title="t", sweep=facts, estimates=table, metrics=None, stages=None, config={}, provenance={},
        command="", chance_name="",
    )  # fmt: skip
    assert page.exists()
