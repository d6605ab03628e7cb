"""Next-token prediction on sequences of token ids."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llcjax.types import ApplyFn, LossFn, Params

Losses = Callable[[Params, tuple[Int[Array, "batch token"], Int[Array, "batch token"]]], Float[Array, "batch token"]]
"""`(params, (tokens, labels)) -> losses`: minus the log probability of each label after its token, in nats."""


def next_token_loss(apply: ApplyFn) -> LossFn:
    """Cross-entropy of each next token in nats, from a model's logits; see `loss_of_next_tokens`."""
    return loss_of_next_tokens(lambda params, pair: cross_entropy(apply(params, pair[0]), pair[1]))


def loss_of_next_tokens(losses: Losses) -> LossFn:
    """Cross-entropy of each next token in nats, shape `(batch, token)`, with weights that leave out the last position.

    The last position has no next token. It is kept, with weight 0, because attention is faster at a length that is a
    multiple of 8.
    """

    def loss(params: Params, tokens: Int[Array, "batch token"]) -> tuple[Array, Array]:
        found = losses(params, (tokens, jnp.roll(tokens, -1, axis=1)))
        return found, jnp.broadcast_to(jnp.arange(tokens.shape[1]) < tokens.shape[1] - 1, found.shape)

    return loss


@jax.custom_vjp
def cross_entropy(logits: Float[Array, "... vocabulary"], labels: Int[Array, ...]) -> Float[Array, ...]:
    """-log softmax(logits)[label], in float32 whatever the dtype of the logits.

    Backward keeps the logits as they are and one number a position, where differentiating a log-softmax keeps
    probabilities in float32: at 100 sequences of 1,024 tokens and 5,000 tokens in the vocabulary 2 GB a chain.

    Args:
        logits: in float32 or bfloat16; their gradient has the same dtype.
        labels: token ids.
    """
    return _forward(logits, labels)[0]


def _forward(logits: Array, labels: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    normaliser = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0].astype(jnp.float32)
    return normaliser - picked, (logits, labels, normaliser)


def _backward(saved: tuple[Array, Array, Array], wanted: Array) -> tuple[Array, None]:
    logits, labels, normaliser = saved
    probabilities = jnp.exp(logits.astype(jnp.float32) - normaliser[..., None])
    hit = jnp.arange(logits.shape[-1]) == labels[..., None]
    return ((probabilities - hit) * wanted[..., None]).astype(logits.dtype), None


cross_entropy.defvjp(_forward, _backward)
