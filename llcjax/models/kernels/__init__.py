"""Kernels of models in Pallas, each beside the same computation, up to rounding, in plain jax.

`Kernels` is the one switch. `xla` leaves them out; `pallas` takes them, and on other devices than a GPU interprets
them, which is slow and for tests; `auto` takes them on a GPU, unless products are to be exact. Kernels have gradients
but no forward-mode derivatives: take `xla` for Hessian-vector products.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
from jax.lax import DotAlgorithmPreset

Kernels = Literal["auto", "xla", "pallas"]
NORM_EPSILON = 1e-5
"""Added to the variance by the layer norms of models and kernels alike."""

# What `llcjax._compat.MATMUL_PRECISION` and jax itself call the policies on a GPU while a program is traced.
_ALGORITHMS = {
    "highest": DotAlgorithmPreset.F32_F32_F32,
    "float32": DotAlgorithmPreset.F32_F32_F32,
    "BF16_BF16_F32": DotAlgorithmPreset.BF16_BF16_F32,
}


class Products(NamedTuple):
    """How matrix products inside a kernel are computed."""

    algorithm: DotAlgorithmPreset | None
    """None where the kernel is interpreted: jax's own default."""
    interpret: bool


def kernel_products(kernels: Kernels, activations: Any = "float32") -> Products | None:
    """What kernels are to use under jax's current precision of matrix products; None to leave them out.

    Args:
        kernels: the switch.
        activations: dtype of what is between the layers. TF32 rounds operands to 10 bits, which are those of float16,
            so that products of float16 values are taken as they are, at twice the speed.

    Raises:
        ValueError: an unknown switch.

    Example:
        >>> kernel_products("xla") is None
        True
    """
    if kernels not in get_args(Kernels):
        raise ValueError(f"kernels={kernels!r} is unknown; choose auto, xla or pallas.")
    gpu = jax.default_backend() == "gpu"
    precision = str(getattr(jax.config, "jax_default_matmul_precision", None))
    exact = _ALGORITHMS.get(precision) == DotAlgorithmPreset.F32_F32_F32
    # Exact float32 products have no tensor cores, without which the kernels are slower than XLA.
    wanted = gpu and not exact if kernels == "auto" else kernels == "pallas"
    if not wanted:
        return None
    if not gpu:
        return Products(None, interpret=True)
    tf32 = DotAlgorithmPreset.F16_F16_F32 if activations == "float16" else DotAlgorithmPreset.TF32_TF32_F32
    return Products(_ALGORITHMS.get(precision, tf32), interpret=False)
