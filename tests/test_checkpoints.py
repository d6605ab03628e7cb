import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

from llcjax.bank_import import import_bank
from llcjax.checkpoints import CheckpointBank, load_bank, save_bank


@pytest.fixture
def bank():
    rng = np.random.default_rng(0)
    params = {
        "block": {"0": {"kernel": rng.normal(size=(4, 3, 2)).astype(np.float32)}},
        "bias": np.zeros((4, 2), np.float32),
    }
    return CheckpointBank(
        params=params, steps=np.array([0, 1, 10, 100]), config={"a": 1}, metrics={"loss": np.arange(4.0)}
    )


def assert_equal(a, b):
    np.testing.assert_array_equal(a.steps, b.steps)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_round_trip_is_exact(bank, tmp_path):
    save_bank(bank, tmp_path / "b")
    loaded = load_bank(tmp_path / "b")
    assert_equal(bank, loaded)
    assert loaded.config == {"a": 1} and loaded.fingerprint() == bank.fingerprint()
    np.testing.assert_array_equal(loaded.metrics["loss"], bank.metrics["loss"])
    assert_equal(bank, import_bank(tmp_path / "b"))


def test_slices_are_banks(bank):
    assert len(bank[1:3]) == 2 and bank[1:3].steps.tolist() == [1, 10]
    assert bank[[0, 3]].metrics["loss"].tolist() == [0, 3]
    assert bank.at_steps([100, 0]).steps.tolist() == [0, 100]
    assert bank.checkpoint(2)["bias"].shape == (2,)
    with pytest.raises(ValueError, match="no step 7; its nearest is 10"):
        bank.at_steps([7])


def test_orbax_v1_reads_our_folder(bank, tmp_path):
    v1 = pytest.importorskip("orbax.checkpoint.experimental.v1")  # its place before orbax 1.0
    save_bank(bank, tmp_path / "b")
    load = getattr(v1, "load", None) or v1.load_pytree
    read = load(tmp_path / "b" / "params")
    assert jax.tree.structure(read) == jax.tree.structure(bank.params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, read, bank.params)))


def test_import_per_step_orbax_folders(bank, tmp_path):
    manager = ocp.CheckpointManager(tmp_path / "managed")
    for i, step in enumerate(bank.steps.tolist()):
        manager.save(step, args=ocp.args.StandardSave(bank.checkpoint(i)))
        with ocp.StandardCheckpointer() as plain:
            plain.save(tmp_path / "plain" / f"step_{step}", bank.checkpoint(i))
    manager.wait_until_finished()
    assert_equal(bank, import_bank(tmp_path / "managed"))
    assert_equal(bank, import_bank(tmp_path / "plain"))


def test_import_npz_and_safetensors(bank, tmp_path):
    for kind in ("npz", "safetensors"):
        (tmp_path / kind).mkdir()
    for i, step in enumerate(bank.steps.tolist()):
        p = bank.checkpoint(i)
        flat = {"block/0/kernel": np.ascontiguousarray(p["block"]["0"]["kernel"]), "bias": p["bias"]}
        np.savez(tmp_path / "npz" / f"step_{step:06d}.npz", **flat)
        save_file(flat, tmp_path / "safetensors" / f"model-{step}.safetensors")
    assert_equal(bank, import_bank(tmp_path / "npz"))
    assert_equal(bank, import_bank(tmp_path / "safetensors"))


def test_bad_banks_get_a_sentence(bank, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no checkpoints"):
        import_bank(tmp_path / "empty")
    with pytest.raises(ValueError, match="has no checkpoints"):
        import_bank(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no bank"):
        load_bank(tmp_path / "absent")
    with pytest.raises(ValueError, match="no checkpoints"):
        CheckpointBank(params=np.zeros((0, 2)), steps=np.array([], np.int64))
    with pytest.raises(ValueError, match="5 is followed by 5"):
        CheckpointBank(params=np.zeros((2, 2)), steps=np.array([5, 5]))
    with pytest.raises(ValueError, match="2 checkpoints but 1 steps"):
        CheckpointBank(params=np.zeros((2, 2)), steps=np.array([5]))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "step_3.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="no readable .npz"):
        import_bank(tmp_path / "bad")
    (tmp_path / "mixed").mkdir()
    np.savez(tmp_path / "mixed" / "1.npz", a=np.zeros(2))
    np.savez(tmp_path / "mixed" / "2.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="one model"):
        import_bank(tmp_path / "mixed")
    np.savez(tmp_path / "mixed" / "x1.npz", a=np.array([object()]))
    with pytest.raises(ValueError, match="no readable .npz"):
        import_bank(tmp_path / "mixed")


def test_parameters_are_float32_and_nothing_else():
    halves = CheckpointBank(params={"w": np.ones((1, 2), np.float16)}, steps=np.array([0]))
    assert halves.params["w"].dtype == np.float32
    with pytest.raises(ValueError, match="the parameter count has type int64"):
        CheckpointBank(params={"w": np.ones((1, 2)), "count": np.zeros(1, np.int64)}, steps=np.array([0]))


def test_a_step_that_orbax_had_not_finished_is_no_checkpoint(bank, tmp_path):
    for i, step in enumerate(bank.steps.tolist()[:2]):
        with ocp.StandardCheckpointer() as plain:
            plain.save(tmp_path / f"step_{step}", bank.checkpoint(i))
    (tmp_path / "step_1").rename(tmp_path / "step_1.orbax-checkpoint-tmp-1700000000")
    assert import_bank(tmp_path).steps.tolist() == [0]


@pytest.mark.parametrize("damaged", ["bank.json", "params"])
def test_a_bank_that_is_not_what_was_saved_is_refused(bank, tmp_path, damaged):
    save_bank(bank, tmp_path / "b")
    if damaged == "params":  # whole by itself, of another bank
        save_bank(CheckpointBank(params=jax.tree.map(np.negative, bank.params), steps=bank.steps), tmp_path / "other")
        shutil.rmtree(tmp_path / "b" / "params")
        shutil.copytree(tmp_path / "other" / "params", tmp_path / "b" / "params")
    else:
        text = (tmp_path / "b" / damaged).read_text()
        (tmp_path / "b" / damaged).write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="b (does not hold the checkpoints that were saved|holds no bank)"):
        load_bank(tmp_path / "b")
