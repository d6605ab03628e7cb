"""An LLC of a model of your own, in ten lines. Cells are marked with `# %%`."""

# %% Any pure loss, any pytree of parameters, any data.
import jax
import jax.numpy as jnp

import llcjax

key = jax.random.key(0)
x = jax.random.normal(key, (512, 3))
params = {"in": jax.random.normal(key, (3, 4)), "out": jnp.ones((4,))}


def loss_fn(params: dict, batch: tuple) -> jax.Array:
    """Squared error of a small network."""
    return (jnp.tanh(batch[0] @ params["in"]) @ params["out"] - batch[1]) ** 2


y = jnp.tanh(x @ params["in"]) @ params["out"]

# %% The estimate, with its error and its verdict.
estimate = llcjax.estimate_llc(
    loss_fn, params, (x, y), key=0, n_beta=200.0, step_size=2e-4, localization=10.0, num_chains=4, num_draws=200,
    num_burnin_steps=200, batch_size=128,
)  # fmt: skip
estimate  # noqa: B018  # shows itself in a notebook

# %% The same for each layer.
table = llcjax.estimates(
    llcjax.sweep(
        loss_fn, llcjax.checkpoints.bank_of(params), (x, y),
        llcjax.SweepConfig(n_beta=200.0, step_size=2e-4, localization=10.0, num_draws=200, batch_size=128),
        components=llcjax.component_masks(params, ["in", "out"]),
    )
)  # fmt: skip
llcjax.plots.plot_components(table)
