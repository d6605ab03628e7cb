"""Bytes that compiled programs read and write."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from llcjax.traffic import library_bytes, program_bytes

MODULE = """HloModule example

%body (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %halved.1 = bf16[4,8]{1,0} fusion(%p), kind=kLoop, calls=%fused, metadata={op_name="a = b(c)"}
  %custom-call.1 = (bf16[4,16]{1,0}, s8[33554432]{0}) custom-call(%halved.1, /*index=1*/%p), \
custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(f)/dot"}
  %own = f32[4,8]{1,0} custom-call(%p), custom_call_target="__gpu$xla.gpu.triton"
  %norm = (f32[4,8]{1,0}, u8[1000]{0}) custom-call(%own), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %out = f32[] custom-call(%own), custom_call_target="__cublas$gemm"
}
"""


def test_libraries_move_their_operands_and_results():
    assert list(library_bytes(MODULE)) == [4 * 16 * 2 + 4 * 8 * 2 + 4 * 8 * 4, 2 * 4 * 8 * 4, 4 + 4 * 8 * 4]


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def test_a_product_moves_its_operands_and_its_result():
    a, b = jnp.zeros((64, 128)), jnp.zeros((128, 32))
    assert program_bytes(compiled(jnp.dot, a, b)) == 4 * (64 * 128 + 128 * 32 + 64 * 32)


def test_a_loop_counts_once():
    def times(length):
        return lambda x: lax.fori_loop(0, length, lambda _, x: jnp.sin(x), x)

    array = jnp.zeros(10_000)
    few, many = (program_bytes(compiled(times(length), array)) for length in (2, 100))
    assert 2 * array.nbytes <= few == pytest.approx(many, rel=1e-3)


def test_of_a_slice_counts_what_is_taken():
    found = program_bytes(compiled(lambda x, at: lax.dynamic_slice(x, (at,), (10,)) + 1, jnp.zeros(10_000), 3))
    assert 80 <= found < 400
