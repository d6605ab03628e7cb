"""Models that others trained: against `transformers`, through safetensors, from llama2.c, and swept from disk."""

import json

import jax
import numpy as np
import pytest

from llcjax.cli import main
from llcjax.models import llama2c
from llcjax.models.decoder import decoder
from llcjax.models.pretrained import load_pretrained, save_pretrained
from llcjax.store import open_sweep
from llcjax.streamed import pretrained_bank
from llcjax.tasks.text import next_token_loss
from llcjax.tokens import read_tokens, token_rows
from llcjax.trees import num_params

safetensors = pytest.importorskip("safetensors.numpy", reason="reading models needs safetensors")


def llama_folder(path, seed=0, width=16, heads=4, shared=2, hidden=24, vocabulary=32, layers=2):
    """A tiny Llama as Hugging Face writes it."""
    rng = np.random.default_rng(seed)
    narrow = width // heads * shared
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,),
              "lm_head.weight": (vocabulary, width)}  # fmt: skip
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}input_layernorm.weight": (width,), f"{at}post_attention_layernorm.weight": (width,),
            f"{at}self_attn.q_proj.weight": (width, width), f"{at}self_attn.k_proj.weight": (narrow, width),
            f"{at}self_attn.v_proj.weight": (narrow, width), f"{at}self_attn.o_proj.weight": (width, width),
            f"{at}mlp.gate_proj.weight": (hidden, width), f"{at}mlp.up_proj.weight": (hidden, width),
            f"{at}mlp.down_proj.weight": (width, hidden),
        }  # fmt: skip
    path.mkdir(parents=True)
    tensors = {name: (rng.normal(size=shape) * 0.3).astype(np.float32) for name, shape in shapes.items()}
    safetensors.save_file(tensors, path / "model.safetensors")
    facts = dict(model_type="llama", hidden_size=width, num_attention_heads=heads, num_key_value_heads=shared,
                 intermediate_size=hidden, num_hidden_layers=layers, vocab_size=vocabulary,
                 max_position_embeddings=32)  # fmt: skip
    (path / "config.json").write_text(json.dumps(facts))
    return path


def transformers_models():
    reason = "compares with the package transformers, which is not installed: pip install transformers torch"
    tf = pytest.importorskip("transformers", reason=reason)
    small = dict(vocab_size=50, max_position_embeddings=64)
    sizes = dict(num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=48)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 16}  # fmt: skip
    return {
        "gpt2": tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=50, n_positions=32)),
        "neox": tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**small, **sizes, rotary_pct=0.5)),
        "neox in sequence": tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**small, **sizes, use_parallel_residual=False)),
        "llama": tf.LlamaForCausalLM(tf.LlamaConfig(**small, **sizes, num_key_value_heads=2)),
        "llama 3": tf.LlamaForCausalLM(
            tf.LlamaConfig(**small, **sizes, num_key_value_heads=4, tie_word_embeddings=True, rope_scaling=llama3)
        ),
    }


def test_logits_are_those_of_transformers(tmp_path):
    models = transformers_models()
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = np.random.default_rng(0).integers(0, 50, (3, 30))
    for name, model in models.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            expected = model.eval()(torch.tensor(tokens)).logits.numpy()
        model.save_pretrained(tmp_path / name)
        config, params = load_pretrained(tmp_path / name)
        for remat in (False, True):
            logits = decoder(config, rematerialize=remat)(params, tokens)
            np.testing.assert_allclose(logits, expected, atol=1e-4, err_msg=name)
        # Everything that was trained is there, and once.
        assert num_params(params) == sum(p.numel() for p in model.parameters())


def test_round_trip_through_safetensors_is_exact(tmp_path):
    config, params = load_pretrained(llama_folder(tmp_path / "llama"))
    save_pretrained(params, tmp_path / "again_7.safetensors")
    from llcjax.bank_import import import_bank

    again = import_bank(tmp_path).checkpoint(0)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
    assert decoder(config)(again, np.zeros((1, 4), int)).shape == (1, 4, 32)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_read_as_float32(tmp_path, kind):
    """Most models are published in one of the two."""
    folder = llama_folder(tmp_path / "llama")
    whole = load_pretrained(folder).params
    tensors = safetensors.load_file(folder / "model.safetensors")
    safetensors.save_file({name: value.astype(kind) for name, value in tensors.items()}, folder / "model.safetensors")
    again = load_pretrained(folder).params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(again)} == {"float32"}
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one, other.astype(kind).astype("f4")), again, whole)


def test_what_cannot_be_read_is_named(tmp_path):
    folder = llama_folder(tmp_path / "llama")
    facts = json.loads((folder / "config.json").read_text())

    def refuse(words, **changes):
        (folder / "config.json").write_text(json.dumps({**facts, **changes}))
        with pytest.raises(ValueError, match=words):
            load_pretrained(folder)

    refuse(r"'model.layers.0.mlp.gate_proj.weight' of .*safetensors has shape \(24, 16\)", intermediate_size=25)
    refuse("has no tensor 'model.layers.2.input_layernorm.weight'", num_hidden_layers=3)
    refuse("model_type 'bert'", model_type="bert")
    refuse("rope_type='yarn'", rope_scaling={"rope_type": "yarn"})
    (folder / "config.json").write_text(json.dumps({**facts, "hidden_size": None, "model_type": "gpt2"}))
    with pytest.raises(ValueError, match="lacks 'n_embd' of a gpt2 model"):
        load_pretrained(folder)
    (tmp_path / "short.bin").write_bytes(np.array([16, 24, 2, 4, 2, 32, 8], "<i4").tobytes() + bytes(400))
    with pytest.raises(ValueError, match=r"ends before the tensor 'tok_emb' of shape \(32, 16\)"):
        load_pretrained(tmp_path / "short.bin")
    with pytest.raises(ValueError, match="give .npy, .u16"):
        read_tokens(tmp_path / "short.bin")


def test_series_of_folders_is_swept_from_disk(tmp_path, capsys):
    folders = [llama_folder(tmp_path / f"step{step}", seed=step) for step in (0, 1000)]
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 32, 400))
    out = tmp_path / "out"
    main(["sweep", "--model", *map(str, folders[::-1]), "--tokens", str(tmp_path / "tokens.npy"), "--length", "16",
          "--sweep.batch-size", "4", "--sweep.num-draws", "6", "--sweep.num-chains", "2", "--out", str(out),
          "--components", "heads", "l0 mlp", "full", "--no-progress"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "block_1/attention/head_3: LLC" in printed and (out / "report.html").is_file()
    facts = open_sweep(out / "sweep")
    assert facts["loss"].shape == (2, 10, 2, 6) and list(facts["checkpoint"].values) == [0, 1000]
    # The loss at the start is that of the folders, in the order of their steps.
    config, bank = pretrained_bank(folders)
    rows = token_rows(read_tokens(tmp_path / "tokens.npy"), 16)
    losses, weights = next_token_loss(decoder(config))(bank.checkpoint(1), rows)
    assert abs(float(facts["loss"][1, :, :, 0].mean()) - float((losses * weights).sum() / weights.sum())) < 0.5
    assert len(bank._kept) == 1
    main(["rerun", str(out / "sweep"), "--no-progress"])
    assert "bit for bit" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["sweep", "--model", str(folders[0]), "--tokens", str(tmp_path / "tokens.npy"), "--length", "64"])
    assert "length=64 must be between 2 and the 32 tokens" in capsys.readouterr().err


def test_rows_that_begin_with_a_token():
    assert token_rows(np.arange(5, 14), 4, 2, start=1).tolist() == [[1, 5, 6, 7], [1, 8, 9, 10]]
    rows = np.array([[1, 5, 6], [1, 7, 8]])
    assert token_rows(rows, 2, start=1).tolist() == [[1, 5], [1, 7]]
    with pytest.raises(ValueError, match="start=5, but there are rows that begin with another token"):
        token_rows(rows, 3, start=5)
    with pytest.raises(ValueError, match="length=1 must be"):
        token_rows(rows, 1, start=1)


def test_stories260k_tells_a_story(shared_data):
    """A real pretrained model: published validation loss on TinyStories 1.297 nats."""
    from experiments.pretrained.stories import greedy, read_vocabulary

    config, params = llama2c.read(shared_data / "stories260K.bin")
    pieces = read_vocabulary(shared_data / "tok512.bin", config.vocabulary)
    assert num_params(params) == 260_032
    story, tokens = greedy(decoder(config), params, pieces, "Once upon a time", 100)
    assert story.startswith("Once upon a time, there was a little girl named")
    losses, weights = next_token_loss(decoder(config))(params, tokens[None])
    assert 0.2 < float((losses * weights).sum() / weights.sum()) < 1.0  # greedy text is likelier than stories
