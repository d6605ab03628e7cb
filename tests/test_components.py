"""Refined LLCs: every component of every checkpoint as one sweep, against known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llcjax import SweepConfig, component_masks, estimates, head_names, open_sweep, sweep
from llcjax.checkpoints import CheckpointBank, bank_of, save_bank
from llcjax.cli import main
from llcjax.models.attention_only import AttentionOnlyConfig, attention_only
from llcjax.pipelines.heads import sizes_of, spread, sweep_heads
from llcjax.slices import make_components

CURVATURES = {"a": np.array([1.0, 4.0, 9.0]), "b": np.array([0.5, 2.0]), "c": np.full((2, 2), 3.0)}
CONFIG = SweepConfig(
    n_beta=100.0, localization=20.0, step_size=5e-4, num_chains=8, num_draws=2000, num_burnin_steps=200,
    batch_size=None, draws_per_chunk=500,
)  # fmt: skip


def block_quadratic(params, batch):
    del batch
    return sum(0.5 * jnp.sum(CURVATURES[name] * leaf**2) for name, leaf in params.items())


def law(curvatures, n_beta=100.0, localization=20.0, step_size=5e-4):
    """n_beta E[L] under the exact stationary law of discretised SGLD."""
    precision = n_beta * curvatures + localization
    return float(np.sum(n_beta * curvatures / 2 / (precision * (1 - step_size * precision / 4))))


@pytest.fixture(scope="module")
def separable():
    """Refined and full sweeps of a block-separable quadratic at two checkpoints, the minimum both times."""
    zeros = {name: np.zeros(c.shape, np.float32) for name, c in CURVATURES.items()}
    bank = CheckpointBank(params=jax.tree.map(lambda leaf: np.stack([leaf, leaf]), zeros), steps=np.array([3, 7]))
    parts = component_masks(zeros, ["a", "b", "c", "full"])
    return zeros, bank, parts, estimates(sweep(block_quadratic, bank, None, CONFIG, components=parts))


def test_blocks_have_their_known_llc_and_add_up(separable):
    _, _, parts, table = separable
    assert list(table["component"].values) == list(parts)
    expected = [law(CURVATURES["a"]), law(CURVATURES["b"]), law(CURVATURES["c"])]
    expected.append(sum(expected))
    llc, error = table["llc"].values, table["llc_stderr"].values
    assert np.all(np.abs(llc - expected) < 3 * error), (llc, expected, error)
    assert np.all(error < 0.07 * np.array(expected))
    parts_sum, parts_error = llc[:, :3].sum(1), np.sqrt((error**2).sum(1))
    assert np.all(np.abs(llc[:, 3] - parts_sum) < 3 * np.hypot(parts_error, error[:, 3]))


@pytest.mark.slow
def test_a_component_is_the_mask_by_another_road(separable):
    """Same law as `mask=`; the noise differs, as only sampled entries draw any."""
    _, bank, parts, table = separable
    masked = estimates(sweep(block_quadratic, bank[:1], None, CONFIG, mask=parts["a"]))
    gap = float(masked["llc"][0, 0] - table["llc"][0, 0])
    assert abs(gap) < 4 * np.hypot(float(masked["llc_stderr"][0, 0]), float(table["llc_stderr"][0, 0]))


def test_frozen_parameters_stay_and_chains_carry_their_entries_alone():
    zeros = {name: np.full(c.shape, 0.1, np.float32) for name, c in CURVATURES.items()}
    parts = component_masks(zeros, ["a", "b"])
    seen = sweep(
        block_quadratic, bank_of(zeros), None, SweepConfig(batch_size=None, num_draws=5), components=parts,
        observe=lambda params: jax.tree.map(lambda leaf: leaf.reshape(-1), params),
    )  # fmt: skip
    for index, name in enumerate(parts):
        for other in zeros:
            values = seen[other].isel(setting=index).values
            assert (np.abs(values[..., 1:, :] - 0.1).max() > 0) == (other == name), (name, other)
    assert list(seen["num_params"].values) == [3, 2]
    made = make_components(parts, zeros)
    (table,) = made.tables
    assert table.index.shape == (2, 3) and table.ragged and made.sizes == (3, 2)
    assert len(table.leaves) == 2  # c is never copied


def test_small_components_carry_no_padding_of_large_ones():
    """Nor do their numbers depend on what stands beside them."""
    zeros = {"small": np.zeros(3, np.float32), "large": np.zeros(100, np.float32)}

    def quadratic(params, batch):
        del batch
        return 0.5 * (jnp.sum(params["small"] ** 2) + jnp.sum(params["large"] ** 2))

    parts = component_masks(zeros, ["small", "full"])
    made = make_components(parts, zeros)
    assert [(table.index.shape, table.ragged) for table in made.tables] == [((1, 3), False), ((1, 103), False)]
    config = SweepConfig(batch_size=None, num_draws=5, num_control_draws=2)
    both = sweep(quadratic, bank_of(zeros), None, config, components=parts)
    for index, name in enumerate(parts):
        alone = sweep(quadratic, bank_of(zeros), None, config, components={name: parts[name]})
        for fact in ("loss", "distance", "prior_loss"):
            np.testing.assert_allclose(alone[fact][:, 0], both[fact][:, index], rtol=1e-6, err_msg=fact)


def test_layers_of_a_deep_linear_network():
    """At fixed other layers a layer of a deep linear network is linear regression: a quadratic with a known law.

    y = W2 W1 x with x ~ N(0, I) in full batch: as a function of W1 alone the Hessian of the mean squared error is
    2 W2'W2 (x) X'X/n, of W2 alone 2 I (x) W1 X'X W1'/n.
    """
    rng = np.random.default_rng(0)
    w1, w2, x = rng.normal(size=(3, 4)), rng.normal(size=(2, 3)), rng.normal(size=(64, 4)).astype(np.float32)
    params = {"one": w1.astype(np.float32), "two": w2.astype(np.float32)}
    data = (x, (x @ w1.T @ w2.T).astype(np.float32))

    def loss(params, batch):
        return jnp.sum((batch[0] @ params["one"].T @ params["two"].T - batch[1]) ** 2, -1)

    table = estimates(
        sweep(loss, bank_of(params), data, CONFIG, components=component_masks(params, ["one", "two"]))
    ).isel(checkpoint=0)
    second = x.T @ x / len(x)
    one = np.outer(2 * np.linalg.eigvalsh(w2.T @ w2), np.linalg.eigvalsh(second))
    two = np.tile(2 * np.linalg.eigvalsh(w1 @ second @ w1.T), 2)
    expected = np.array([law(one.clip(0)), law(two)])
    assert np.all(np.abs(table["llc"].values - expected) < 3 * table["llc_stderr"].values), (table["llc"], expected)
    # The theorem's value: half the rank of the Hessian, as n_beta grows. One direction of W1's three is not seen by W2.
    assert abs(float(table["llc"][0]) - 2 * 4 / 2) < 0.8 and abs(float(table["llc"][1]) - 2 * 3 / 2) < 0.6


def test_heads_of_the_language_model():
    config = AttentionOnlyConfig(num_layers=2, num_heads=2, model_width=8, num_tokens=8, vocabulary=16)
    init, _ = attention_only(config)
    params = jax.tree.map(np.asarray, init(jax.random.key(0)))
    names = head_names(2, 2)
    masks = component_masks(params, [*names, "l1h1", "embed", "l0 attn"], num_heads=2)
    assert jax.tree.all(jax.tree.map(np.array_equal, masks["l1h1"], masks["block_1/attention/head_1"]))
    width = config.model_width
    per_head = 3 * (width + 1) * width // 2 + width * width // 2
    sizes = make_components(masks, params).sizes
    assert list(sizes) == [per_head] * 5 + [16 * width, 4 * width**2 + 4 * width]
    # Zeroing a head's output silences it: what its masks cover is all that its output depends on.
    head = masks["block_0/attention/head_1"]["blocks"]["0"]["attention"]
    assert head["output"]["kernel"][:, 0].tolist() == [False] * 4 + [True] * 4
    assert head["query"]["bias"].tolist() == [False] * 4 + [True] * 4 and not np.any(head["output"]["bias"])


def test_command_for_all_heads(tmp_path, capsys):
    model = AttentionOnlyConfig(num_layers=1, num_heads=2, model_width=8, num_tokens=8, vocabulary=16)
    init, _ = attention_only(model)
    params = jax.tree.map(np.asarray, init(jax.random.key(0)))
    bank = CheckpointBank(
        params=jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf, 3 * leaf]), params), steps=np.array([0, 9, 20])
    )
    save_bank(bank, tmp_path / "bank")
    np.save(tmp_path / "tokens.npy", np.random.default_rng(1).integers(0, 16, 200))
    arguments = ["heads", "--bank", str(tmp_path / "bank"), "--tokens", str(tmp_path / "tokens.npy"), "--num-heads",
                 "2", "--sweep.batch-size", "4", "--sweep.num-draws", "5", "--out", str(tmp_path / "out"),
                 "--no-progress"]  # fmt: skip
    main([*arguments, "--num-checkpoints", "2", "--start", "3"])
    assert "block_0/attention/head_1: LLC" in capsys.readouterr().out
    facts = open_sweep(tmp_path / "out" / "sweep")
    assert facts["loss"].shape == (2, 2, 2, 5) and list(facts["checkpoint"].values) == [0, 20]
    assert facts.attrs["num_examples"] == 200 // 7, "seven tokens of the file and the start make a row"
    assert (tmp_path / "out" / "figures" / "components.png").is_file()
    assert spread(bank, None) is bank
    main(["rerun", str(tmp_path / "out" / "sweep"), "--out", str(tmp_path / "again"), "--no-progress"])
    assert "are equal, bit for bit" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--num-checkpoints", "0"])
    assert "num_checkpoints=0 must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments[:-2], str(tmp_path / "other"), "--start", "16"])
    assert "start=16 is none of the 16 tokens of the model" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no attention-only language model"):
        sizes_of({"a": np.zeros(3)}, 2)


@pytest.mark.slow
def test_heads_at_all_checkpoints_as_one_sweep(tmp_path):
    """All heads x all checkpoints of a language model, whole and cut, and as `sweep_heads` does it."""
    model = AttentionOnlyConfig(num_layers=2, num_heads=2, model_width=8, num_tokens=8, vocabulary=16)
    init, _ = attention_only(model)
    params = jax.tree.map(np.asarray, init(jax.random.key(0)))
    tokens = np.random.default_rng(1).integers(0, 16, (32, 8)).astype(np.int32)
    bank = CheckpointBank(params=jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), params), steps=np.array([0, 9]))
    settings = SweepConfig(batch_size=8, num_draws=6, num_chains=2, step_size=1e-4, n_beta=(10.0, 30.0))
    whole = sweep_heads(bank, model, tokens, settings, out=tmp_path / "whole")
    names = head_names(2, 2)
    assert whole["loss"].shape == (2, 8, 2, 6) and np.isfinite(whole["loss"]).all()
    assert list(open_sweep(tmp_path / "whole")["component"].values[::2]) == names
    # The numbers do not depend on the cut, nor on which other heads are there.
    one_device = jax.local_devices()[:1]
    alone = sweep_heads(bank[1:], model, tokens, settings, names=[names[2]], devices=one_device)
    np.testing.assert_allclose(alone["loss"].values[0], whole["loss"].values[1, 4:6], rtol=2e-5)


def test_bad_components_are_refused():
    params = {"blocks": {"0": {"attention": {"query": {"kernel": np.ones((4, 4))}}}}, "embed": np.ones(3)}
    for name, options, words in [
        ("nowhere", {}, "selects nothing"),
        ("l0h5", {"num_heads": 2}, "out of range"),
        ("l0h1", {}, "num_heads"),
        ("l3h0", {"num_heads": 2}, "selects nothing"),
        ("l0h0", {"num_heads": 3}, "cannot be cut into 3 heads"),
    ]:
        with pytest.raises(ValueError, match=words):
            component_masks(params, [name], **options)
    with pytest.raises(ValueError, match="both given"):
        sweep(block_quadratic, bank_of({"a": np.zeros(3)}), None, mask={"a": True}, components={"a": {"a": True}})
    with pytest.raises(ValueError, match="component 'a' leaves no parameter"):
        sweep(block_quadratic, bank_of({"a": np.zeros(3)}), None, components={"a": {"a": False}})
