"""The whole language experiment in small: corpora, parts in subfolders, resumed, remade, with tables over all."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
import xarray as xr

import llcjax
from llcjax.checkpoints import CheckpointBank
from llcjax.cli import main
from llcjax.config import SweepConfig, as_dict
from llcjax.metrics.repeats import repeat_metrics, unigram_loss
from llcjax.models import AttentionOnlyConfig
from llcjax.pipelines.experiment_config import part_experiment
from llcjax.pipelines.language import PRESETS, LanguageExperiment, LanguageRun
from llcjax.pipelines.language_corpus import load_rows
from llcjax.pipelines.language_parts import DIP, PARTS
from llcjax.pipelines.language_results import BEYOND, best_head, events
from llcjax.tasks.synthetic_language import SyntheticLanguage
from llcjax.train import TrainConfig

LANGUAGE = SyntheticLanguage(num_words=6, num_tokens=16, shortest=3, longest=5)
TINY = LanguageExperiment(
    source="synthetic",
    synthetic=LANGUAGE,
    model=AttentionOnlyConfig(num_heads=2, model_width=8, num_tokens=16, vocabulary=7),
    train=TrainConfig(num_steps=40, batch_size=8, num_log_checkpoints=4, num_linear_checkpoints=7, schedule="constant"),
    sweep=SweepConfig(num_draws=6, num_chains=3, batch_size=8, localization=(100.0,), step_size=(1e-4,)),
    num_rows=64,
    num_test_rows=32,
    num_probes=32,
    further=("one_layer",),
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    run = LanguageRun(TINY, tmp_path_factory.mktemp("study"), progress=False, say=lambda _: None)
    run.sweeps()
    return run


@pytest.fixture(scope="module")
def study(swept):
    run = swept
    for part in run.parts().values():
        part.sweeps()
        part.report()
    folder, met = run.tables()
    return run, folder, met


def rows(folder, name):
    with open(folder / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_tables_and_reports_hold_both_models(study):
    run, folder, met = study
    assert {row["part"] for row in rows(folder, "llc")} == {"two_layers", "one_layer"}
    for row in rows(folder, "verdicts"):
        counted = sum(int(one.split()[0]) for one in row["others"].split("; ") if one != "none")
        assert int(row["ok"]) + counted == int(row["checkpoints"]) and float(row["chance"]) == pytest.approx(
            np.log(7), rel=1e-5
        )
    assert {row["event"] for row in rows(folder, "events")} >= {"bigrams", "positions", "prefix-matching head"}
    known = rows(folder, "known")
    assert float(known[0]["bigram_entropy"]) == pytest.approx(LANGUAGE.bigram_entropy(), rel=1e-4)
    assert float(known[0]["induction_optimum"]) < float(known[0]["unigram_loss"]) < float(known[0]["bigram_entropy"])
    assert "k_composition[0,1]" in rows(folder, "metrics_two_layers")[0]
    assert "prefix_matching_1_2" in rows(folder, "metrics_one_layer")[0]
    assert {path.name for path in folder.glob("*.png")} >= {
        "parts.png",
        "curve_one_layer.png",
        "circuit.png",
        "metrics_two_layers.png",
    }
    assert len(met) == 10 and all(row["met"] in ("yes", "no") for row in met)
    page = (run.out / "report.html").read_text()
    assert "uniform predictor" in page and "Attention of each head" in page
    assert (run.out / "figures" / "attention.png").exists() and (run.out / "repeats.csv").exists()
    facts = llcjax.open_sweep(run.out / "parts" / "one_layer" / "sweeps" / "seed_0")
    assert facts.attrs["chance"] == pytest.approx(np.log(7))


@pytest.mark.slow
def test_a_finished_study_is_not_run_again(study):
    run, folder, _ = study
    before = {
        path: path.stat().st_mtime_ns for path in run.out.rglob("*") if path.is_file() and folder not in path.parents
    }
    for part in LanguageRun(TINY, run.out, progress=False).parts().values():
        part.sweeps()
        part.report()
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_calibrate_through_the_command_line(tmp_path, capsys):
    sizes = "--model.num-heads 2 --model.model-width 8 --model.num-tokens 16 --model.vocabulary 7"
    language = "--synthetic.num-words 6 --synthetic.num-tokens 16 --synthetic.shortest 3 --synthetic.longest 5"
    training = "--train.num-steps 20 --train.batch-size 4 --num-rows 64 --num-test-rows 32 --num-probes 32"
    grid = "--sweep.num-draws 6 --sweep.num-burnin-steps 2 --sweep.num-chains 2 --sweep.batch-size 4 --checkpoints 20"
    words = f"calibrate language --preset synthetic --no-progress {sizes} {language} {training} {grid}"
    main([*words.split(), "--sweep.step-size", "1e-4", "--sweep.localization", "300", "--out", str(tmp_path)])
    assert "LLC at steps 20" in capsys.readouterr().out
    assert (tmp_path / "calibration" / "calibration.html").exists()


def test_a_sweep_is_made_again_bit_for_bit_and_its_folder_is_its_own(swept, tmp_path, capsys):
    main(["rerun", "--no-progress", str(swept.out / "sweeps" / "seed_0"), "--out", str(tmp_path / "again")])
    assert "bit for bit" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another config"):
        LanguageRun(dataclasses.replace(TINY, split_seed=1), swept.out, progress=False)
    with pytest.raises(SystemExit):
        main(["run", "regression", "--out", str(swept.out), "--no-progress"])
    assert "another config" in capsys.readouterr().err


def test_a_bank_of_other_rows_is_said(swept, tmp_path):
    bank, said = str(swept.out / "banks" / "seed_0"), []
    for seed in (0, 1):
        experiment = dataclasses.replace(TINY, bank=bank, split_seed=seed)
        LanguageRun(experiment, tmp_path / str(seed), progress=False, say=said.append)
    (sentence,) = said
    assert "was trained with other rows than this experiment has" in sentence and bank in sentence


@pytest.mark.slow
def test_a_report_is_made_again(study, capsys):
    run, *_ = study
    main(["report", str(run.out)])
    printed = capsys.readouterr().out
    assert "verdicts of" in printed and str(run.out / "tables") in printed


def test_presets_come_back_from_json_and_their_parts_are_valid():
    for preset in PRESETS.values():
        assert LanguageRun.experiment_from(json.loads(json.dumps(as_dict(preset)))) == preset
        for name in preset.further:
            assert part_experiment(preset, PARTS, name) != preset
    paper = PRESETS["paper"]
    steps = paper.train.snapshot_steps()
    assert {*range(0, 50_001, 100)} <= {*steps.tolist()} and len(paper.swept_steps(steps)) == 100
    dip = part_experiment(paper, PARTS, "dip")
    assert dip.swept_steps(steps).tolist() == [*DIP] and dip.sweep.num_chains == 20
    later = part_experiment(paper, PARTS, "later").sweep
    assert (later.n_beta, later.localization, later.step_size, later.batch_size) == ((30.0,), (200.0,), (1e-3,), 32)
    assert paper.sweep.n_beta[0] == pytest.approx(21.715, abs=1e-3)


@pytest.mark.slow
def test_local_chains_in_relative_coordinates_and_on_rows_that_training_never_saw(tmp_path):
    """On the same checkpoints: w* is the same model, and its loss is that of the rows that are swept."""
    experiment = dataclasses.replace(TINY, further=("calibrated", "relative", "held_out"), num_checkpoints=6)
    run = LanguageRun(experiment, tmp_path, progress=False, say=lambda _: None)
    facts = {name: part.sweeps()[0] for name, part in run.parts().items() if name != "two_layers"}
    counts = {name: (one.sizes["checkpoint"], one.attrs["num_examples"]) for name, one in facts.items()}
    assert counts == {"calibrated": (6, 64), "relative": (6, 64), "held_out": (6, 32)}
    assert float(facts["relative"]["localization"][0]) == 120
    corpus, bank = run.rows.corpus, run.banks()[0]
    for name, rows_of in (("calibrated", corpus.train), ("relative", corpus.train), ("held_out", corpus.held_out)):
        losses, weights = run.loss(bank.checkpoint(len(bank) - 1), np.asarray(rows_of))
        wanted = (losses * weights).sum() / np.broadcast_to(weights, losses.shape).sum()
        found = llcjax.estimates(facts[name])["init_loss"].values[-1, 0]
        tolerance = 0.15  # baselines are means over 3 x 106 batches of 8 rows, whose losses lie within 0.5
        assert found == pytest.approx(float(wanted), abs=tolerance), name


def test_what_local_parts_refuse(tmp_path):
    with pytest.raises(ValueError, match="swept_rows='test'"):
        dataclasses.replace(TINY, swept_rows="test")
    run = LanguageRun(dataclasses.replace(TINY, further=("relative",)), tmp_path, progress=False)
    with pytest.raises(ValueError, match="coordinates='relative' cannot be calibrated"):
        run.parts(["relative"])["relative"].calibrate()


def test_rows_of_every_source(tmp_path):
    small = {"model": AttentionOnlyConfig(num_heads=1, model_width=4, num_tokens=8, vocabulary=300), "held_out": 0.2}
    tokens = np.random.default_rng(0).integers(1, 300, 400)
    tokens[::20] = 0
    np.save(tmp_path / "t.npy", tokens)
    found = load_rows(LanguageExperiment(source="given", tokens=str(tmp_path / "t.npy"), **small))
    assert found.corpus.train.shape == (45, 8) and found.word(5) == "5"
    with pytest.raises(ValueError, match="none of text, tokens and dataset"):
        load_rows(LanguageExperiment(source="given", **small))
    with pytest.raises(ValueError, match="text and tokens"):
        load_rows(LanguageExperiment(text=("a",), tokens="b", **small))
    with pytest.raises(ValueError, match="do not fit the synthetic language"):
        LanguageExperiment(source="synthetic", **small)
    pytest.importorskip("tokenizers")
    (tmp_path / "t.txt").write_text("\n\n".join("one two three " * 200 for _ in range(4)))
    found = load_rows(LanguageExperiment(text=(str(tmp_path / "t.txt"),), **small))
    assert found.corpus.train.max() < 300 and any(found.word(token).isalpha() for token in range(260, 280))


def test_text_has_no_answers_but_all_other_measures(tmp_path):
    np.save(tmp_path / "t.npy", np.random.default_rng(0).integers(0, 7, 2000))
    experiment = dataclasses.replace(TINY, source="given", tokens=str(tmp_path / "t.npy"), further=())
    run = LanguageRun(experiment, tmp_path / "run", progress=False, say=lambda _: None)
    assert run.training().data.dtype == np.uint16
    (bank,) = run.banks().values()
    measured = run.analyses(0, bank)
    assert measured.repeats is None and measured.attention["attention"].shape == (2, 2, 16, 16)
    assert run.forecast().num_runs == 3 * len(bank)


def test_events_are_where_curves_have_half_of_their_change():
    steps = [0, 10, 20, 30]
    curves = {
        "bigram_score": [3.0, 2.1, 2.5, 2.6], "test_loss": [3.0, 2.0, 2.0, 2.0],
        "test_loss_no_positions": [3.0, 2.0, 2.4, 3.0], "icl_3_32": [0.0, -1.2, -1.3, -2.1],
        "previous_token_1_1": [0.1, 0.1, 0.9, 0.9], "previous_token_1_2": [0.1, 0.2, 0.2, 0.2],
        "previous_token_2_1": [0.1, 0.95, 0.95, 0.95], "prefix_matching_2_1": [0.0, 0.0, 0.1, 0.5],
    }  # fmt: skip
    metrics = xr.Dataset({name: ("checkpoint", values) for name, values in curves.items()},
                         coords={"checkpoint": steps}, attrs={"bigram_floor": 2.0})  # fmt: skip
    found = {row["event"]: (row["head"], row["step"], round(row["change"], 6)) for row in events(metrics)}
    assert found == {
        "bigrams": ("", 10, 0.1), "positions": ("", 30, 1.0), "previous-token head": ("1:1", 20, 0.8),
        "prefix-matching head": ("2:1", 30, 0.5), "in-context learning": ("", 30, 0.9),
    }  # fmt: skip
    assert best_head(metrics, "previous_token")[0] == "1:1"
    control = metrics.assign(icl_3_32=("checkpoint", [0.0, -1.2, -1.25, -1.3]))
    assert {row["event"]: row["step"] for row in events(metrics, control)}[BEYOND] == 30
    assert BEYOND not in {row["event"] for row in events(metrics, control.isel(checkpoint=[0, 1]))}


def test_events_of_many_checkpoints_do_not_hang_on_one_of_them():
    steps = np.arange(300)
    icl = np.where(steps < 200, 0.0, -1.0)
    icl[50], icl[-1] = -0.9, -2.5
    bigram = np.abs(steps - 10) / 100 + 2.0
    flat = np.zeros(300)
    curves = {"bigram_score": bigram, "test_loss": flat, "test_loss_no_positions": flat, "icl_3_32": icl,
              "previous_token_1_1": flat, "prefix_matching_1_1": flat}  # fmt: skip
    metrics = xr.Dataset({name: ("checkpoint", values) for name, values in curves.items()},
                         coords={"checkpoint": steps}, attrs={"bigram_floor": 2.0})  # fmt: skip
    found = {row["event"]: row["step"] for row in events(metrics)}
    assert found["in-context learning"] == 200 and found["bigrams"] == 10


def test_losses_on_repeats_of_models_that_are_known():
    """A model that says the table pays its entropy; the best without copying lies between it and the optimum."""
    table = np.log(np.pad(LANGUAGE.table(), ((1, 0), (1, 0)), constant_values=1e-9)).astype(np.float32)
    bank = CheckpointBank(params={"table": table[None]}, steps=np.array([0]))
    found = repeat_metrics(lambda params, tokens: params["table"][tokens], LANGUAGE, bank, num_rows=2048)
    for name in ("repeat_loss", "first_loss"):
        assert float(found[name][0]) == pytest.approx(LANGUAGE.bigram_entropy(), abs=0.06)  # 4 s.e. over 2,048 rows
    tokens, lengths = LANGUAGE.sample_parts(jax.random.key(0), 2048)
    assert found.attrs["induction_optimum"] < unigram_loss(LANGUAGE, tokens, lengths) < LANGUAGE.bigram_entropy()
