"""The sweep and training programs lower for TPU, without one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from llcjax import keys, sweep
from llcjax.checkpoints import CheckpointBank
from llcjax.config import SweepConfig
from llcjax.models import TransformerConfig, icl_transformer
from llcjax.tasks.regression import RegressionTask, squared_error

TASK = RegressionTask(dimension=2, num_pairs=4)
INIT, APPLY = icl_transformer(
    TransformerConfig(num_heads=2, model_width=16, mlp_width=16), TASK.num_tokens, TASK.token_width
)


def test_the_sweep_program_lowers_for_tpu(monkeypatch, one_device):
    from llcjax import program

    seen = {}
    original = program.Program.advance

    def spy(self, *args):
        seen["program"], seen["args"] = (
            self,
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args),
        )
        return original(self, *args)

    monkeypatch.setattr(program.Program, "advance", spy)
    bank = CheckpointBank(
        params=jax.tree.map(lambda x: np.asarray(x)[None], INIT(jax.random.key(0))), steps=np.array([0])
    )
    config = SweepConfig(num_chains=2, num_draws=3, batch_size=8, per_position=True, eval_every=2)
    sweep(squared_error(APPLY), bank, TASK.sample(keys.as_key(0), 32), config, devices=one_device)
    exported = export.export(seen["program"].advance_fn, platforms=["tpu"])(*seen["args"])
    assert exported.platforms == ("tpu",)
    assert "while" in exported.mlir_module()


def test_the_training_program_lowers_for_tpu():
    from llcjax.train import TrainConfig, _make_advance, _start, make_optimizer

    optimizer = make_optimizer(TrainConfig(num_steps=10))
    advance = _make_advance(squared_error(APPLY), TASK.sample, optimizer, 8)
    seeds = np.arange(2)
    state = jax.eval_shape(jax.vmap(lambda seed: _start(INIT, optimizer, seed)), seeds)
    shape = jax.ShapeDtypeStruct((), jnp.int32)
    exported = export.export(advance, platforms=["tpu"])(state, jax.ShapeDtypeStruct((2,), jnp.int32), shape, shape, ())
    assert exported.platforms == ("tpu",)


def test_the_compiled_sweep_step_has_no_collectives(monkeypatch):
    from llcjax import program

    texts = []
    original = program.Program._compile

    def spy(self, name, function, *args):
        compiled = original(self, name, function, *args)
        texts.append(compiled.as_text())
        return compiled

    monkeypatch.setattr(program.Program, "_compile", spy)
    bank = CheckpointBank(params=np.ones((4, 3), np.float32), steps=np.arange(4))
    config = SweepConfig(num_chains=4, num_draws=3, batch_size=None, localization=1.0, n_beta=1.0, step_size=0.01)
    assert len(jax.local_devices()) == 4
    sweep(lambda w, _: jnp.sum(w**2), bank, None, config)
    assert texts
    for text in texts:
        for collective in ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter"):
            assert collective not in text
