"""The whole regression experiment in small: parts in subfolders, resumed, with tables over all of them."""

import csv
import dataclasses

import jax
import numpy as np
import pytest

from llcjax.checkpoints import CheckpointBank, bank_of, save_bank
from llcjax.config import SweepConfig
from llcjax.models.icl_transformer import TransformerConfig
from llcjax.pipelines import experiment_run, regression_parts
from llcjax.pipelines.experiment_config import part_experiment
from llcjax.pipelines.regression import PRESETS, RegressionExperiment, RegressionRun
from llcjax.pipelines.regression_config import AnalysisConfig
from llcjax.pipelines.regression_parts import PARTS
from llcjax.pipelines.regression_results import targets_by_seed
from llcjax.rescale import FLOOR, relative
from llcjax.tasks.regression import RegressionTask
from llcjax.train import TrainConfig

SWEEP = SweepConfig(num_draws=6, num_chains=3, batch_size=16, localization=(100.0,), step_size=(1e-4,))
TINY = RegressionExperiment(
    task=RegressionTask(dimension=1, num_pairs=2),
    model=TransformerConfig(num_layers=1, num_heads=1, model_width=4, mlp_width=4),
    train=TrainConfig(num_steps=40, batch_size=8, num_log_checkpoints=4, num_linear_checkpoints=8, num_seeds=2),
    sweep=SWEEP,
    sweep_seeds=(0, 1),
    num_examples=64,
    num_test_sequences=32,
    num_further_checkpoints=8,
    analysis=AnalysisConfig(
        num_probes=4, probe_batch_size=8, num_lanczos_batches=2, lanczos_batch_size=8, num_lanczos_steps=4,
        num_sequences=16, num_hidden_sequences=4,
    ),
    further=("calibrated", "relative", "weight_decay"),
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(regression_parts, "calibrated_sweep", lambda sweep: dataclasses.replace(sweep, localization=(200.0,)))
    run = RegressionRun(TINY, tmp_path_factory.mktemp("study"), progress=False, say=lambda _: None)
    for part in run.parts().values():
        part.sweeps()
        part.analyses(part.experiment.sweep_seeds[0], part.banks()[part.experiment.sweep_seeds[0]])
    folder, met = run.tables()
    yield run, folder, met
    patch.undo()


def rows(folder, name):
    with open(folder / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_part_and_seed_is_in_the_tables(study):
    _, folder, met = study
    llc = {(row["part"], row["seed"]) for row in rows(folder, "llc")}
    assert llc == {("published", "0"), ("published", "1"), ("calibrated", "0"), ("calibrated", "1"),
                   ("relative", "0"), ("relative", "1"), ("weight_decay", "0")}  # fmt: skip
    steps = {row["step"] for row in rows(folder, "llc") if row["part"] == "published" and row["seed"] == "1"}
    assert len(steps) == 8
    assert met == [], "a run of 40 steps has none of the paper's targets"
    changes = rows(folder, "changes")
    assert {row["stage"] for row in changes} == {"LR1"} and changes[0]["paper_delta_llc"] == "21.4"
    published = [row for row in rows(folder, "llc") if (row["part"], row["seed"]) == ("published", "1")]
    llcs = {row["step"]: float(row["llc"]) for row in published}
    windows = [row for row in rows(folder, "windows") if row["seed"] == "1"]
    assert windows and windows[0]["first_draw"] == "1"
    for step in {row["step"] for row in windows}:
        mine = [row for row in windows if row["step"] == step]
        draws = [int(row["last_draw"]) - int(row["first_draw"]) + 1 for row in mine]
        mean = np.average([float(row["llc"]) for row in mine], weights=draws)
        assert len(mine) == 5 and mean == pytest.approx(llcs[step], rel=1e-4), "windows make up the whole"
    assert len(rows(folder, "curvature")) >= 16 and "attention_self" in rows(folder, "attention_tokens")[0]
    assert {"behaviour", "structure", "attention", "paths", "stages"} <= {path.stem for path in folder.glob("*.csv")}
    assert {path.name for path in folder.glob("*.png")} >= {"regimes.png", "seeds_published.png"}


@pytest.mark.slow
def test_settings_share_models_and_trainings_have_their_own(study):
    run, *_ = study
    assert not (run.out / "parts" / "calibrated" / "banks").exists()
    assert (run.out / "parts" / "weight_decay" / "banks" / "seed_0").exists()
    parts = run.parts()
    assert parts["weight_decay"].experiment.train.optimizer == "adamw"
    assert parts["relative"].experiment.coordinates == "relative"


@pytest.mark.slow
def test_a_finished_study_is_not_run_again(study):
    run, folder, _ = study
    before = {
        path: path.stat().st_mtime_ns for path in run.out.rglob("*") if path.is_file() and folder not in path.parents
    }
    for part in RegressionRun(TINY, run.out, progress=False).parts().values():
        part.sweeps()
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_bank_from_elsewhere_is_read_once_for_all_parts(tmp_path, monkeypatch):
    run = RegressionRun(TINY, tmp_path / "own", progress=False)
    save_bank(bank_of(run.init(jax.random.key(0)), 7), tmp_path / "bank")
    read, original = [], experiment_run.import_bank
    monkeypatch.setattr(experiment_run, "import_bank", lambda path: read.append(path) or original(path))
    given = dataclasses.replace(TINY, bank=str(tmp_path / "bank"))
    parts = RegressionRun(given, tmp_path / "given", progress=False).parts(("published", "calibrated"))
    assert len(read) == 1 and list(parts) == ["published", "calibrated"]
    assert parts["calibrated"].banks()[0] is parts["published"].banks()[0]


def test_targets_of_all_seeds_stand_in_one_row():
    limits = {"target": "LLC at 40k", "lower": 167.0, "upper": 173.0}
    rows = [{"seed": 0, **limits, "value": 170.5, "met": "yes"}, {"seed": 3, **limits, "value": 164.6, "met": "no"}]
    assert targets_by_seed(rows) == [{**limits, "seed_0": 170.5, "seed_3": 164.6, "met": "1 of 2"}]


def test_unknown_parts_get_a_sentence(tmp_path):
    run = RegressionRun(TINY, tmp_path, progress=False)
    with pytest.raises(ValueError, match="part='nothing'"):
        run.parts(("nothing",))
    assert list(run.parts(("calibrated",))) == ["calibrated"]
    with pytest.raises(ValueError, match="further='nothing'"):
        part_experiment(TINY, PARTS, "nothing")


def test_every_part_of_the_paper_preset_is_a_valid_experiment():
    paper = PRESETS["paper"]
    for name in paper.further:
        varied = part_experiment(paper, PARTS, name)
        assert (varied.task, varied.model, varied.train) != (paper.task, paper.model, paper.train) or not PARTS[
            name
        ].trains
        assert varied.sweep.localization != paper.sweep.localization and varied.further == ()
    assert paper.sweep.num_draws == 5000 and paper.num_further_checkpoints == 40
    steps = paper.train.snapshot_steps()
    chosen = paper.swept_steps(steps, 1)
    assert len(chosen) == 40 and {0, 40_292, 500_000} <= set(chosen.tolist())
    assert np.abs(np.log(chosen[1:] + 1) - np.log(chosen[:-1] + 1)).max() < 2


def test_relative_coordinates_are_the_same_models():
    rng = np.random.default_rng(0)
    bank = CheckpointBank(params={"w": rng.normal(size=(2, 3, 4)), "b": np.zeros((2, 4))}, steps=np.arange(2))

    def loss(params, batch):
        return batch @ params["w"] + params["b"]

    changed, moved, mask = relative(loss, bank)
    batch = rng.normal(size=(5, 3)).astype(np.float32)
    for index in range(2):
        np.testing.assert_allclose(
            changed(moved.checkpoint(index), batch), loss(bank.checkpoint(index), batch), rtol=1e-5, atol=1e-6
        )
    size = np.sqrt(np.mean(np.square(moved.params["relative"]["w"]), (1, 2)))
    np.testing.assert_allclose(size, 1, rtol=1e-3)
    np.testing.assert_allclose(moved.params["scale"]["b"], FLOOR)
    assert jax.tree.leaves(mask["relative"]) == [True, True] and jax.tree.leaves(mask["scale"]) == [False, False]
