import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from arviz_stats.base import array_stats

import llcjax
from llcjax import diagnostics, estimators
from llcjax.checkpoints import CheckpointBank, bank_of
from llcjax.config import SweepConfig
from llcjax.verdicts import VERDICTS


def made_sweep(trace, *, n_beta=10.0, chance=None, burnin=0, localization=1.0, step_size=1e-3, distance=0.1, base=1.0):
    """A sweep of one checkpoint and setting whose excess loss is `trace` (chain, draw)."""
    trace = np.asarray(trace, np.float32)[None, None]
    dims = ("checkpoint", "setting", "chain", "draw")
    broken = ~np.isfinite(trace)
    first = np.where(broken.any(-1), broken.argmax(-1), -1)
    attrs = {"num_burnin_steps": burnin, "num_params": 4}
    if chance is not None:
        attrs["chance"] = chance
    return xr.Dataset(
        {
            "loss": (dims, trace + np.float32(base)),
            "baseline_loss": (dims, np.full_like(trace, base)),
            "distance": (dims, np.broadcast_to(np.float32(distance), trace.shape)),
            "first_nonfinite_step": (dims[:3], first.astype(np.int32)),
            "num_draws_done": (dims[:2], np.full((1, 1), trace.shape[-1], np.int32)),
        },
        coords={
            "checkpoint": [0], "setting": [0], "chain": np.arange(trace.shape[2]), "draw": np.arange(trace.shape[3]),
            "n_beta": ("setting", [n_beta]), "localization": ("setting", [localization]),
            "step_size": ("setting", [step_size]),
        },
        attrs=attrs,
    )  # fmt: skip


def noise(chains=4, draws=200, mean=0.5, sd=0.1, seed=0):
    return mean + sd * np.random.default_rng(seed).normal(size=(chains, draws))


def judge(sweep, **options):
    table = llcjax.estimates(sweep, **options).isel(checkpoint=0, setting=0)
    assert table["verdict"].item() in VERDICTS
    return table


def test_llc_and_error_are_their_definitions():
    trace = noise()
    table = judge(made_sweep(trace))
    per_chain = 10 * trace.mean(1)
    assert float(table["llc"]) == pytest.approx(per_chain.mean(), rel=1e-5)
    assert float(table["llc_stderr"]) == pytest.approx(per_chain.std(ddof=1) / 2, rel=1e-3)
    half = float(table["llc_upper"] - table["llc"])
    assert half / float(table["llc_stderr"]) == pytest.approx(3.182, rel=1e-3)  # t, 3 degrees of freedom, 97.5%
    assert float(table["init_loss"]) == pytest.approx(1.0) and float(table["mean_loss"]) == pytest.approx(1.5, abs=0.01)
    assert float(table["rhat"]) < 1.02 and float(table["ess_bulk"]) > 400
    assert table["verdict"].item() == "ok"


def test_error_of_correlated_draws_comes_from_the_spread_between_chains():
    rng = np.random.default_rng(1)
    step = rng.normal(size=(200, 400)) * 0.1
    trace = np.zeros_like(step)
    for t in range(1, 400):  # an AR(1) process with autocorrelation time 39 draws
        trace[:, t] = 0.95 * trace[:, t - 1] + step[:, t]
    errors, spread = [], (10 * trace.mean(1)).reshape(50, 4).mean(1).std(ddof=1)
    for four in trace.reshape(50, 4, 400):
        errors.append(float(judge(made_sweep(four + 0.5))["llc_stderr"]))
    # Root mean square over 50 estimates with 3 degrees of freedom each: 6% Monte-Carlo error, spread itself 10%.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.35)


def test_one_chain_takes_its_error_from_the_autocorrelation():
    table = judge(made_sweep(noise(chains=1, draws=2000)))
    assert float(table["llc_stderr"]) == pytest.approx(10 * 0.1 / np.sqrt(2000), rel=0.2)


def test_burnin_and_thinning_are_chosen_on_the_stored_sweep():
    trace = noise(draws=100)
    trace[:, :50] = 9.0
    sweep = made_sweep(trace, burnin=50)
    assert float(judge(sweep)["llc"]) == pytest.approx(10 * trace[:, 50:].mean(), rel=1e-5)
    assert float(judge(sweep, num_burnin_steps=0)["llc"]) == pytest.approx(10 * trace.mean(), rel=1e-5)
    assert float(judge(sweep, num_burnin_steps=60, thin=5)["llc"]) == pytest.approx(
        10 * trace[:, 60::5].mean(), rel=1e-5
    )
    with pytest.raises(ValueError, match="leaves no draws"):
        judge(sweep, num_burnin_steps=100)
    with pytest.raises(ValueError, match="thin=0"):
        judge(sweep, thin=0)


def test_running_llc_starts_after_the_burnin_and_ends_at_the_estimate():
    trace = noise(draws=60)
    sweep = made_sweep(trace, burnin=20)
    running = llcjax.running_llc(sweep)
    assert running.dims == ("checkpoint", "setting", "chain", "draw")
    values = running.values[0, 0]
    assert np.isnan(values[:, :20]).all()
    np.testing.assert_allclose(values[:, 20:], 10 * np.cumsum(trace[:, 20:], 1) / np.arange(1, 41), rtol=1e-4)
    np.testing.assert_allclose(values[:, -1], judge(sweep)["llc_per_chain"], rtol=1e-5)


def test_a_broken_chain_is_left_out_counted_and_reported():
    trace = noise()
    trace[1, 150:] = np.nan
    table = judge(made_sweep(trace))
    assert int(table["num_chains_used"]) == 3
    assert float(table["llc"]) == pytest.approx(10 * trace[[0, 2, 3]].mean(), rel=1e-5)
    assert np.isnan(table["llc_per_chain"].values[1])
    assert table["verdict"].item() == "diverged" and "1 of 4 chains" in table["sentence"].item()


def test_a_dead_chain_stays_dead_in_the_running_llc():
    trace = noise(draws=60)
    trace[1, 30:] = np.nan
    running = llcjax.running_llc(made_sweep(trace)).values[0, 0]
    assert np.isfinite(running[1, :30]).all() and np.isnan(running[1, 30:]).all()
    assert np.isfinite(running[0]).all()


def test_too_little_to_judge_is_not_ok():
    assert judge(made_sweep(noise(chains=1, draws=1)))["verdict"].item() == "noisy"
    assert judge(made_sweep(np.full((4, 20), 0.5)))["verdict"].item() == "noisy"


def test_all_chains_broken_is_failed():
    table = judge(made_sweep(np.full((4, 20), np.nan)))
    assert table["verdict"].item() == "failed" and np.isnan(table["llc"]) and np.isnan(table["llc_stderr"])


CASES = {
    "noisy": dict(trace=noise(sd=3.0, draws=40)),
    "biased": dict(trace=noise(), step_size=0.3),
    "not_minimum": dict(trace=noise(mean=-0.5)),
    "left_basin": dict(trace=noise(mean=4.0), chance=3.0),
    "not_mixed": dict(trace=noise() + np.arange(4)[:, None]),
    "diverged": dict(trace=noise(), distance=50.0),
    "stuck": dict(trace=noise(mean=1e-4, sd=1e-4), distance=np.sqrt(np.arange(200)), localization=1e-4, step_size=1e-6),
}


@pytest.mark.parametrize("name", CASES)
def test_verdicts(name):
    case = dict(CASES[name])
    table = judge(made_sweep(case.pop("trace"), **case))
    assert table["verdict"].item() == name, table["sentence"].item()
    assert len(table["sentence"].item()) > 20


def test_an_unfinished_sweep_is_failed_not_averaged():
    sweep = made_sweep(noise(draws=40))
    sweep["num_draws_done"][:] = 30
    table = judge(sweep)
    assert table["verdict"].item() == "failed" and "30 of 40" in table["sentence"].item()


def test_positions_average_to_the_llc(one_device):
    def loss(w, x):
        return jnp.stack([jnp.square(x @ w), 2 * jnp.square(x @ w)], 1)

    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    config = SweepConfig(n_beta=50.0, localization=1.0, step_size=1e-3, num_draws=50, batch_size=16, per_position=True)
    table = llcjax.estimates(llcjax.sweep(loss, bank_of(jnp.zeros(3)), x, config, devices=one_device))
    np.testing.assert_allclose(table["llc_position"].mean("position"), table["llc"], rtol=1e-4)
    np.testing.assert_allclose(
        table["llc_position"].sel(position=2), 2 * table["llc_position"].sel(position=1), rtol=1e-4
    )
    assert np.all(table["llc_position_stderr"] > 0)


def test_paired_and_dataset_baselines_estimate_the_same_with_less_noise_for_the_pair(one_device):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 5)).astype(np.float32)
    y = (x @ np.ones(5) + rng.normal(size=256)).astype(np.float32)
    best = np.linalg.lstsq(x, y, rcond=None)[0].astype(np.float32)
    tables = {}
    for baseline in ("paired", "dataset"):
        config = SweepConfig(
            n_beta=40.0, localization=1.0, step_size=2e-3, num_chains=32, num_draws=300, num_burnin_steps=100,
            batch_size=16, baseline=baseline,
        )  # fmt: skip
        result = llcjax.sweep(
            lambda w, b: jnp.square(b[0] @ w - b[1]),
            bank_of(jnp.asarray(best)),
            (x, y),
            config,
            devices=one_device,
        )
        tables[baseline] = llcjax.estimates(result).isel(checkpoint=0, setting=0)
    paired, dataset = tables["paired"], tables["dataset"]
    difference = float(paired["llc"] - dataset["llc"])
    assert abs(difference) < 4 * np.hypot(paired["llc_stderr"], dataset["llc_stderr"])
    assert float(paired["llc_stderr"]) < 0.8 * float(dataset["llc_stderr"])


def test_wbic_only_where_it_means_something(one_device):
    x = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    size, n_beta = 100, 100 / np.log(100)

    def nll(w, batch):
        return 0.5 * jnp.sum(jnp.square(batch - w), 1)

    def run(n_beta):
        config = SweepConfig(n_beta=n_beta, localization=1.0, step_size=1e-3, num_draws=50, batch_size=None)
        return llcjax.sweep(nll, bank_of(jnp.asarray(x.mean(0))), x, config, devices=one_device)

    value = float(llcjax.wbic(run(n_beta), log_likelihood=True)[0, 0])
    least = size * float(jnp.mean(nll(x.mean(0), x)))
    assert least < value < least + 5 * np.log(100)
    with pytest.raises(ValueError, match="n / ln"):
        llcjax.wbic(run(5.0), log_likelihood=True)
    with pytest.raises(ValueError, match="log-likelihood"):
        llcjax.wbic(run(n_beta), log_likelihood=False)


def test_excess_loss_says_what_is_missing():
    with pytest.raises(ValueError, match="per_position=True"):
        estimators.excess_loss(made_sweep(noise()), "_position")


def _directly(trace, usable, **options):
    """A measure of arviz-stats on each group by itself."""
    measure, result = options.pop("measure"), np.full(trace.shape[:2], np.nan)
    for group in np.ndindex(result.shape):
        chains = trace[group][usable[group]]
        if len(chains) and np.ptp(chains) > 0:
            result[group] = measure(chains, chain_axis=0, draw_axis=1, **options)
    return result


@pytest.mark.parametrize("draws", [4, 7, 8, 9, 300])
@pytest.mark.parametrize("chains", [1, 2, 5])
def test_convergence_is_that_of_arviz_stats(draws, chains):
    rng = np.random.default_rng(draws * chains)
    trace = rng.normal(size=(6, 2, chains, draws)).cumsum(-1)
    trace[1] = np.round(trace[1])  # ties
    trace[2, 0] = 1.0
    usable = rng.random(trace.shape[:3]) < 0.8
    usable[3, 0] = False
    trace[~usable] = np.nan
    found = diagnostics.convergence(trace, usable)
    wanted = {
        "rhat": {"measure": array_stats.rhat},
        "ess_bulk": {"measure": array_stats.ess, "method": "bulk"},
        "ess_tail": {"measure": array_stats.ess, "method": "tail", "prob": (0.05, 0.95)},
        "llc_mcse": {"measure": array_stats.mcse},
    }
    for name, options in wanted.items():
        np.testing.assert_allclose(found[name], _directly(trace, usable, **options), rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("per_position", [False, True])
def test_blocks_of_checkpoints_change_nothing(monkeypatch, per_position):
    config = SweepConfig(
        n_beta=(20.0, 40.0),
        localization=1.0,
        step_size=1e-3,
        num_chains=3,
        num_draws=40,
        batch_size=4,
        per_position=per_position,
    )
    params = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    bank = CheckpointBank(params=params, steps=np.arange(7))
    data = np.ones((8, 4, 3), np.float32)
    sweep = llcjax.sweep(lambda w, batch: (batch @ w) ** 2, bank, data, config, chance=5.0)
    whole = llcjax.estimates(sweep)
    monkeypatch.setattr(estimators, "BLOCK", 2 * sweep["loss_position" if per_position else "loss"].size // 7)
    assert [block.sizes["checkpoint"] for block in estimators.checkpoint_blocks(sweep)] == [2, 2, 2, 1]
    blocked = llcjax.estimates(sweep)
    assert list(blocked) == list(whole) and blocked.attrs == whole.attrs
    xr.testing.assert_allclose(blocked, whole, rtol=1e-13)  # sums over another shape may round otherwise
