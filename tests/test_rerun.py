"""`llcjax rerun`: a store makes its sweep again, and says whether the arrays are the same."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zarr

import llcjax
from llcjax.checkpoints import bank_of
from llcjax.cli import main
from llcjax.comparison import comparison_sentence
from llcjax.config import SweepConfig

TINY_WORDS = """--train.num-steps 20 --train.batch-size 8 --train.num-log-checkpoints 3 --train.num-linear-checkpoints 2
--model.model-width 8 --model.mlp-width 8 --task.num-pairs 2 --num-examples 32 --num-test-sequences 16
--sweep.num-chains 2 --sweep.batch-size 8 --sweep.num-draws 6 --sweep.num-burnin-steps 2"""
TINY = TINY_WORDS.split()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    main(["sweep", "regression", "--out", str(out), "--no-progress", *TINY])
    return out


def rerun(*words, code=0):
    if code == 0:
        return main(["rerun", "--no-progress", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main(["rerun", "--no-progress", *map(str, words)])
    assert stopped.value.code == code


def test_a_store_makes_itself_again_bit_for_bit(swept, tmp_path, capsys):
    rerun(swept / "sweeps" / "seed_0", "--out", tmp_path / "again")
    said = capsys.readouterr().out
    assert "The same: all " in said and "bit for bit" in said and " was " not in said
    assert not (tmp_path / "again" / "banks").exists()


def test_training_again_gives_the_same_arrays(swept, tmp_path, capsys):
    """The same config and seed, from nothing, on one machine."""
    rerun(swept / "sweeps" / "seed_0", "--out", tmp_path / "again", "--retrain")
    assert "bit for bit" in capsys.readouterr().out and (tmp_path / "again" / "banks" / "seed_0").is_dir()


def test_a_changed_value_is_found_and_named(swept, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(swept, copy)
    store = copy / "sweeps" / "seed_0"
    loss = zarr.open_group(str(store), mode="r+")["loss"]
    value = loss[1, 0, 1, 3]
    loss[1, 0, 1, 3] = value + np.float32(0.25)
    rerun(store, code=1)
    said = capsys.readouterr().out
    assert "Not the same: the largest difference is 0.25 in 'loss'" in said and "; 1 of " in said
    assert (copy / "sweeps" / "seed_0-rerun").is_dir()
    rerun(store, "--tolerance", "0.5")
    assert "The same within the tolerance of 0.5" in capsys.readouterr().out
    rerun(store, "--tolerance", "-1", code=2)


def test_other_checkpoints_are_said_to_be_others(swept, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(swept, copy)
    (bank,) = (copy / "banks").iterdir()
    held = llcjax.load_bank(bank)
    params = jax.tree.map(lambda leaf: leaf + np.float32(0.01), held.params)
    moved = llcjax.CheckpointBank(params=params, steps=held.steps, config=held.config)
    llcjax.save_bank(moved, bank)
    rerun(copy / "sweeps" / "seed_0", code=1)
    assert "checkpoints, the data or the settings that went in are not the same" in capsys.readouterr().out


def test_what_cannot_be_made_again_says_what_is_missing(swept, tmp_path, capsys):
    config = SweepConfig(n_beta=1.0, localization=1.0, step_size=0.01, num_chains=2, num_draws=4, batch_size=None)
    llcjax.sweep(lambda w, _: jnp.sum(w**2), bank_of(jnp.ones(2)), None, config, out=tmp_path / "mine")
    rerun(tmp_path / "mine", code=2)
    assert "the loss function, the checkpoints and the data came from Python" in capsys.readouterr().err
    unfinished = tmp_path / "unfinished"
    shutil.copytree(swept / "sweeps" / "seed_0", unfinished)
    zarr.open_group(str(unfinished), mode="r+")["num_draws_done"][0, 0] = 3
    rerun(unfinished, code=2)
    assert "is not finished" in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(swept / "sweeps" / "seed_0", broken)
    for recipe in ("{", json.dumps({"pipeline": "regression", "options": {"nonsense": 1}})):
        zarr.open_group(str(broken), mode="r+").attrs["rerun"] = recipe
        rerun(broken, code=2)
        assert "llcjax: " in capsys.readouterr().err


def test_sweeps_of_different_things_are_not_compared():
    def one(draws=4, **options):
        config = SweepConfig(
            n_beta=1.0, localization=1.0, step_size=0.01, num_chains=2, num_draws=draws, batch_size=None, **options
        )
        return llcjax.sweep(lambda w, _: jnp.sum(w**2), bank_of(jnp.ones(2)), None, config)

    facts = one()
    same, sentence = comparison_sentence(llcjax.compare_sweeps(facts, one()))
    assert same and "bit for bit" in sentence
    _, sentence = comparison_sentence(llcjax.compare_sweeps(facts, one(seed=1)))
    assert sentence.startswith("Not the same")
    broken = facts.assign(loss=facts["loss"].where(facts["chain"] == 0))
    worst = {gap.name: gap for gap in llcjax.compare_sweeps(facts, broken)}["loss"]
    assert worst.largest == np.inf and worst.num_different == 4
    with pytest.raises(ValueError, match="differ in 'draw'"):
        llcjax.compare_sweeps(facts, one(draws=5))
    with pytest.raises(ValueError, match="only one of the two sweeps holds 'baseline_loss'"):
        llcjax.compare_sweeps(facts, facts.drop_vars("baseline_loss"))
