"""The direct reader of a store's chunks gives what zarr gives."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import zstd
from xarray.core.indexing import LazilyIndexedArray

import llcjax
from llcjax.chunks import ChunkedArray
from llcjax.store import SweepStore

SHAPE, CHUNKS = (5, 2, 3, 23), (1, 1, 3, 5)
DIMS = ("checkpoint", "setting", "chain", "draw")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store in which a checkpoint was never written, and another to half."""
    path = tmp_path_factory.mktemp("chunks") / "store"
    coords = {name: ((name,), np.arange(n)) for name, n in zip(DIMS, SHAPE, strict=True)}
    coords |= {name: (("setting",), np.ones(2)) for name in ("n_beta", "localization", "step_size")}
    facts = {"config": "{}", "provenance": "{}", "fingerprint": "f", "num_burnin_steps": 0, "num_params": 1}
    store = SweepStore.create(path, coords=coords, attrs={**facts, "wall_seconds": 0.0})
    store.allocate("loss", DIMS, SHAPE, CHUNKS, "float32", float("nan"))
    store.allocate("count", DIMS, SHAPE, CHUNKS, "int32", -1)
    store.allocate("first_nonfinite_step", DIMS[:3], SHAPE[:3], (1, 1, 3), "int32", -1)
    store.allocate("num_draws_done", DIMS[:2], SHAPE[:2], (1, 1), "int32", 0)
    store = store.publish()
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    store.write("loss", (slice(0, 3),), values[:3])
    store.write("loss", (3, 0, slice(None), slice(0, 10)), values[3, 0, :, :10])
    store.write("count", (slice(None),), np.arange(values.size, dtype=np.int32).reshape(SHAPE))
    return path


def one_index(size):
    numbers = st.integers(-size, size - 1)
    return st.one_of(
        numbers,
        # An empty slice backwards is an error in xarray itself.
        st.slices(size).filter(lambda part: len(range(size)[part]) > 0),
        st.lists(st.integers(0, size - 1), min_size=1, max_size=6).map(np.array),
    )


@settings(max_examples=150, deadline=None)
@given(key=st.tuples(*map(one_index, SHAPE)), name=st.sampled_from(["loss", "count"]))
def test_any_index_gives_what_zarr_gives(folder, key, name):
    facts = llcjax.open_sweep(folder)
    assert "ChunkedArray" in repr(facts.variables[name]._data)
    found = facts[name].isel(dict(zip(DIMS, key, strict=True))).values
    whole = zarr.open_group(str(folder), mode="r")[name][...]
    index = np.ix_(*(np.atleast_1d(np.arange(n)[k]) for n, k in zip(SHAPE, key, strict=True)))
    dropped = tuple(axis for axis, k in enumerate(key) if isinstance(k, int))
    np.testing.assert_array_equal(found, whole[index].squeeze(dropped))


def test_a_torn_chunk_is_named_and_a_large_one_is_not_decoded(folder):
    chunk = folder / "loss" / "c" / "1" / "0" / "0" / "2"
    whole = chunk.read_bytes()
    reader = ChunkedArray(folder / "loss", SHAPE, CHUNKS, np.dtype("float32"), np.nan)
    try:
        for torn in (whole[:-7], b"", zstd.compress(bytes(2**24))):
            chunk.write_bytes(torn)
            with pytest.raises(ValueError, match="2 is torn .*run the sweep again"):
                LazilyIndexedArray(reader).get_duck_array()
    finally:
        chunk.write_bytes(whole)
