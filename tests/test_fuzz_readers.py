"""Whatever is in a file, its reader returns a value or ends with one sentence: nothing else is raised or run."""

import ast
import json
import lzma
import pickle
import resource
import shutil
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import zarr
from safetensors.numpy import save_file

import llcjax
from llcjax import untrusted
from llcjax.bank_import import import_bank
from llcjax.checkpoints import CheckpointBank, load_bank, save_bank
from llcjax.config import SweepConfig
from llcjax.config_file import load_sweep_config, save_sweep_config
from llcjax.models.pretrained import read_config
from llcjax.pipelines.regression import PRESETS, RegressionRun
from llcjax.pipelines.run_folder import load_config, write_rows
from llcjax.report import write_report
from llcjax.stages import read_curve
from llcjax.sweep import sweep
from tests.mutations import DEEP, Evil, mutate

HERE = Path(__file__).parent
FEW, MANY = 12, 500
PARAMS = {"w": np.arange(4.0, dtype=np.float32), "deep": {"b": np.ones((3, 2), np.float32)}}
LLAMA = {"dim": 8, "hidden": 12, "layers": 1, "heads": 2, "kv_heads": 1, "vocabulary": 11, "length": 16}


def a_bank():
    params = {"w": np.ones((2, 4)), "deep": {"b": np.zeros((2, 3, 2))}}
    return CheckpointBank(params=params, steps=np.array([0, 10]), metrics={"train_loss": np.arange(2.0)})


def make_npz(folder):
    for step in (0, 10):
        np.savez_compressed(folder / f"step_{step}.npz", w=PARAMS["w"], **{"deep/b": PARAMS["deep"]["b"]})
    return folder


def make_safetensors(folder):
    for step in (0, 10):
        save_file({"w": PARAMS["w"], "deep/b": PARAMS["deep"]["b"]}, folder / f"step_{step}.safetensors")
    return folder


def make_orbax(folder):
    for step in (0, 10):
        with ocp.StandardCheckpointer() as plain:
            plain.save((folder / f"step_{step}").absolute(), PARAMS)
    return folder


def make_bank(folder):
    save_bank(a_bank(), folder / "bank")
    return folder / "bank"


def make_llama2c(folder):
    sizes = np.array(list(LLAMA.values()), "<i4")
    (folder / "model.bin").write_bytes(sizes.tobytes() + np.zeros(3000, "<f4").tobytes())
    return folder / "model.bin"


def _dense(layer, **shapes):
    return {f"{layer}.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}


def make_gpt2(folder):
    d = 8
    block = "transformer.h.0."
    tensors = {
        "transformer.wte.weight": np.ones((11, d)), "transformer.wpe.weight": np.ones((16, d)),
        **_dense(f"{block}attn.c_attn", weight=(d, 3 * d), bias=(3 * d,)),
        **_dense(f"{block}attn.c_proj", weight=(d, d), bias=(d,)),
        **_dense(f"{block}mlp.c_fc", weight=(d, 4 * d), bias=(4 * d,)),
        **_dense(f"{block}mlp.c_proj", weight=(4 * d, d), bias=(d,)),
        **_dense(f"{block}ln_1", weight=(d,), bias=(d,)), **_dense(f"{block}ln_2", weight=(d,), bias=(d,)),
        **_dense("transformer.ln_f", weight=(d,), bias=(d,)),
    }  # fmt: skip
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, folder / "model.safetensors")
    facts = {"model_type": "gpt2", "n_embd": d, "n_head": 2, "n_layer": 1, "vocab_size": 11, "n_positions": 16}
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def make_llama(folder):
    """The config alone, with everything that it may say."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16, "rope_theta": 1e4}  # fmt: skip
    facts = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1,
             "num_hidden_layers": 1, "intermediate_size": 12, "vocab_size": 11, "max_position_embeddings": 16,
             "head_dim": 4, "rope_scaling": rope}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def make_tokens(name):
    def make(folder):
        path, tokens = folder / name, np.arange(64, dtype="<u2")
        if name.endswith(".npy"):
            np.save(path, tokens)
        elif name.endswith(".xz"):
            path.write_bytes(lzma.compress(tokens.tobytes()))
        elif name.endswith(".u16"):
            path.write_bytes(tokens.tobytes())
        else:
            zarr.create_array(path, data=tokens, zarr_format=int(name[-1]), chunks=(16,))
        return path

    return make


def make_csv(folder):
    rows = [{"step": step, "llc": step**0.5, "llc_stderr": 0.1, "loss": 1.0} for step in range(12)]
    write_rows(folder / "curve.csv", rows)
    return folder / "curve.csv"


def make_config(folder):
    return save_sweep_config(SweepConfig(sampler="rmsprop_sgld", sampler_options={"decay": 0.9}), folder / "c.json")


def make_run(folder):
    (folder / "config.json").write_text(json.dumps(llcjax.config.as_dict(PRESETS["quick"])))
    return folder


def make_store(folder):
    loss = lambda w, x: (x @ w) ** 2  # noqa: E731
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    data = np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32)
    config = SweepConfig(n_beta=(10.0, 20.0), step_size=1e-3, num_chains=2, num_draws=8, batch_size=4,
                         num_control_draws=2, draws_per_chunk=4)  # fmt: skip
    sweep(loss, CheckpointBank(params=values, steps=np.arange(3)), data, config, out=folder / "s", chance=1.0)
    return folder / "s"


def make_devinterp(folder):
    with tarfile.open(HERE / "data" / "devinterp.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for path in folder.iterdir():
        if path.name != "late":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder / "late"


def read_store(path):
    facts = llcjax.open_sweep(path)
    return facts.load(), llcjax.estimates(facts)


READERS = {
    "npz": (make_npz, import_bank),
    "safetensors": (make_safetensors, import_bank),
    "orbax": (make_orbax, import_bank),
    "bank": (make_bank, load_bank),
    "llama2.c": (make_llama2c, llcjax.load_pretrained),
    "gpt2": (make_gpt2, llcjax.load_pretrained),
    "llama": (make_llama, read_config),
    "npy": (make_tokens("t.npy"), llcjax.read_tokens),
    "u16": (make_tokens("t.u16"), llcjax.read_tokens),
    "u16.xz": (make_tokens("t.u16.xz"), llcjax.read_tokens),
    "zarr 2": (make_tokens("t2"), llcjax.read_tokens),
    "zarr 3": (make_tokens("t3"), llcjax.read_tokens),
    "csv": (make_csv, read_curve),
    "sweep config": (make_config, load_sweep_config),
    "run config": (make_run, lambda path: RegressionRun.experiment_from(load_config(path))),
    "store": (make_store, read_store),
    "devinterp": (make_devinterp, lambda path: llcjax.estimates(llcjax.import_devinterp(path))),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Reader -> folder with whole files, and the place in it that is read."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("whole") / "files"
            folder.mkdir()
            made[name] = (folder, READERS[name][0](folder).relative_to(folder))
        return made[name]

    return of


def outcome(read, path):
    """`value`, or the sentence; anything else that is raised is a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(path)
        except (ValueError, OSError) as error:
            return str(error)
    return "value"


def is_a_sentence(said):
    return said == "value" or (0 < len(said) < 2000 and "\n" not in said.strip() and said.rstrip()[-1] in ".!)'\"]")


def listing(folder):
    return sorted(path.relative_to(folder) for path in folder.iterdir())


def fuzz(name, originals, tmp_path, count, seed):
    """Reads mutated copies; returns how many gave a value and how many a sentence."""
    whole, place = originals(name)
    read = READERS[name][1]
    assert outcome(read, whole / place) == "value"
    random, values = np.random.default_rng([seed, zlib.crc32(name.encode())]), 0
    mark = tmp_path / "executed"
    for index in range(count):
        copy = tmp_path / "copy" / "files"
        shutil.copytree(whole, copy)
        done = mutate(copy, random, mark)
        try:
            said = outcome(read, copy / place)
        except BaseException as error:
            raise AssertionError(f"{name} {index} {done}: {type(error).__name__}: {error}") from error
        assert is_a_sentence(said), (name, index, done, said)
        assert listing(tmp_path) == [Path("copy")] and listing(copy.parent) == [Path("files")], (name, done)
        values += said == "value"
        shutil.rmtree(copy.parent)
    return values, count - values


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_give_a_value_or_a_sentence(name, originals, tmp_path):
    assert sum(fuzz(name, originals, tmp_path, FEW, seed=0)) == FEW


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_however_many_damaged_files(name, originals, tmp_path):
    values, sentences = fuzz(name, originals, tmp_path, MANY, seed=1)
    print(f"{name}: {values} values, {sentences} sentences")
    assert sentences > 0


@pytest.mark.parametrize("text", ["", "null", "[1]", "NaN", '"a"', DEEP, '{"a": 1, "a": 2}', "{", "\ufeff{}", "1e999"])
@pytest.mark.parametrize("name", ["bank", "gpt2", "sweep config", "run config", "store"])
def test_json_that_is_no_object_is_refused(name, text, originals, tmp_path):
    whole, place = originals(name)
    shutil.copytree(whole, tmp_path / "files")
    file = next((tmp_path / "files" / place / n for n in ("bank.json", "config.json", "zarr.json")
                 if (tmp_path / "files" / place / n).exists()), tmp_path / "files" / place)  # fmt: skip
    file.write_text(text)
    said = outcome(READERS[name][1], tmp_path / "files" / place)
    assert said != "value" and is_a_sentence(said), said


def evil_files(folder, mark):
    """Files that would run code if any reader unpickled them, under every name that is read."""
    objects = np.array([Evil(mark)], object)
    np.savez(folder / "step_1.npz", w=objects)
    np.save(folder / "t.npy", objects)
    for name in ("step_1.safetensors", "model.bin", "t.u16", "t.u16.xz", "c.json", "curve.csv"):
        (folder / name).write_bytes(pickle.dumps(Evil(mark)))
    (folder / "zarr").mkdir()
    facts = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None, "fill_value": None,
             "order": "C", "filters": [{"id": "pickle", "protocol": 5}]}  # fmt: skip
    (folder / "zarr" / ".zarray").write_text(json.dumps(facts))
    (folder / "zarr" / "0").write_bytes(pickle.dumps([Evil(mark), [1]]))
    shutil.copytree(folder / "zarr", folder / "group" / "sampling_loss")
    (folder / "group" / ".zgroup").write_text('{"zarr_format": 2}')


def test_no_reader_unpickles(tmp_path):
    mark, folder = tmp_path / "executed", tmp_path / "files"
    folder.mkdir()
    evil_files(folder, mark)
    pickle.loads((folder / "model.bin").read_bytes())
    assert mark.exists()  # the bait works
    mark.rmdir()
    tokens, group = ["t.npy", "t.u16", "t.u16.xz", "zarr"], folder / "group"
    reads = [(import_bank, folder), (llcjax.load_pretrained, folder / "model.bin"), (read_curve, folder / "curve.csv"),
             (load_sweep_config, folder / "c.json"), (llcjax.import_devinterp, group), (read_store, group),
             *((llcjax.read_tokens, folder / name) for name in tokens)]  # fmt: skip
    for read, path in reads:
        said = outcome(read, path)
        assert not mark.exists(), path
        assert (said != "value" or path.suffix == ".u16") and is_a_sentence(said), (path, said)


def test_nothing_in_the_package_can_run_what_it_reads():
    """No pickle, no eval, no unsafe loader, anywhere."""
    for path in Path(llcjax.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                assert name not in ("eval", "exec", "compile", "__import__"), path
                loads = isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "np.load"
                options = {one.arg: ast.unparse(one.value) for one in node.keywords}
                assert not loads or options.get("allow_pickle") == "False", path
                assert options.get("allow_pickle") != "True" and options.get("shell") != "True", path


ROOM = 2**20


def bombs(folder, size=2**27):
    """Small files that say that they hold 128 MiB, or do so once they are unpacked."""
    header = b"\x93NUMPY\x01\x00v\x00"
    header += f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size // 4},), }}".encode().ljust(117) + b"\n"
    (folder / "npz").mkdir()
    with (
        zipfile.ZipFile(folder / "npz" / "step_1.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("w.npy", "w", force_zip64=True) as member,
    ):
        member.write(header)
        for _ in range(size // ROOM):
            member.write(bytes(ROOM))
    yield import_bank, folder / "npz"
    packer = lzma.LZMACompressor()
    packed = [packer.compress(bytes(ROOM)) for _ in range(size // ROOM)]
    (folder / "t.u16.xz").write_bytes(b"".join(packed) + packer.flush())
    yield llcjax.read_tokens, folder / "t.u16.xz"
    (folder / "t.npy").write_bytes(header + bytes(100))
    yield llcjax.read_tokens, folder / "t.npy"
    for version in (2, 3):
        path = folder / f"zarr{version}"
        zarr.create_array(path, shape=(size // 2,), chunks=(size // 2,), dtype="<u2", zarr_format=version, fill_value=1)
        yield llcjax.read_tokens, path
    packed = folder / "packed"
    array = zarr.create_array(packed, shape=(size // 2,), chunks=(size // 16,), dtype="<u2", fill_value=1)
    array[:] = 0
    yield llcjax.read_tokens, packed


def test_small_files_do_not_become_large(tmp_path, monkeypatch):
    monkeypatch.setattr(untrusted, "FREE", 2**23)
    for read, path in bombs(tmp_path):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said = outcome(read, path)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert said != "value" and is_a_sentence(said), (path, said)
        assert grown < 2**16, (path, grown)  # KiB: half of what it claims


@pytest.mark.parametrize("claim", ["shape", "chunk"])
@pytest.mark.parametrize(
    "array", ["checkpoint", "loss", "num_draws_done", "first_nonfinite_step", "prior_loss", "n_beta"]
)
def test_a_store_that_claims_to_be_huge_is_refused(array, claim, originals, tmp_path):
    whole, place = originals("store")
    shutil.copytree(whole, tmp_path / "files")
    file = tmp_path / "files" / place / array / "zarr.json"
    if not file.exists():
        raise AssertionError(f"the sweep has no {array}")
    facts = json.loads(file.read_text())
    many = [10**12] + [2] * (len(facts["shape"]) - 1)
    if claim == "shape":
        facts["shape"] = many
    facts["chunk_grid"]["configuration"]["chunk_shape"] = many
    file.write_text(json.dumps(facts))
    said = outcome(read_store, tmp_path / "files" / place)
    assert said != "value" and is_a_sentence(said), said


def test_names_in_files_stay_inside_of_the_folder(tmp_path):
    """Names of parameters, of components and of seeds do not lead out of the folder that is written."""
    (tmp_path / "in").mkdir()
    save_file(
        {"../../evil/w": np.ones(3, np.float32), "/abs": np.ones(2, np.float32)}, tmp_path / "in" / "s_1.safetensors"
    )
    found = import_bank(tmp_path / "in")
    (tmp_path / "out").mkdir()
    save_bank(found, tmp_path / "out" / "bank")
    loss = lambda w, _: sum((leaf**2).sum() for leaf in (w[".."][".."]["evil"]["w"], w[""]["abs"]))  # noqa: E731
    config = SweepConfig(n_beta=1.0, step_size=1e-3, num_draws=4, batch_size=None)
    masks = {"../../evil": {"..": {"..": {"evil": {"w": True}}}, "": {"abs": False}}}
    with pytest.raises(ValueError, match="../../x"):
        sweep(loss, found, None, config, out=tmp_path / "out" / "t", observe=lambda w: {"../../x": w[""]["abs"]})
    facts = sweep(loss, found, None, config, out=tmp_path / "out" / "s", components=masks)
    write_report(
        tmp_path / "out", title="t", sweep=facts, estimates=llcjax.estimates(facts), metrics=None, stages=None,
        config={}, provenance={}, command="", chance_name="",
    )  # fmt: skip
    assert listing(tmp_path) == [Path("in"), Path("out")]
    experiment = llcjax.config.as_dict(PRESETS["quick"])
    with pytest.raises(ValueError, match="sweep_seeds"):
        RegressionRun.experiment_from({**experiment, "bank": "b", "sweep_seeds": ["../../evil"]})
