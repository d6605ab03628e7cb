"""Data flow one way: nothing to the right of an arrow is imported by something to its left."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llcjax"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYER = {
    "types": 0, "trees": 0, "keys": 0, "_compat": 0, "_version": 0, "interrupt": 0, "progress": 0, "provenance": 0,
    "processes": 0, "output_folder": 0, "watchdog": 0, "show": 0, "checks": 0, "untrusted": 0, "zarr_metadata": 0,
    "work": 0, "traffic": 0,
    "store_facts": 1, "tokens": 1,
    "models": 1, "tasks": 1, "posterior": 1, "slices": 0, "components": 1, "observables": 1,
    "checkpoints": 2, "data": 2, "samplers": 2, "bank_import": 3,
    "chain": 3, "config": 3, "config_file": 4, "train": 4, "curvature": 4, "rescale": 3, "trajectory": 4,
    "runs": 4, "program": 5, "plan": 4, "store": 4, "damage": 5, "job": 6, "baseline": 7, "writer": 7, "launch": 8,
    "sweep_store": 8, "sweep": 9,
    "forecast": 9, "reference": 8, "diagnostics": 8, "verdicts": 8, "curve_verdict": 9, "estimators": 9, "metrics": 9,
    "moments": 10, "jackknife": 10, "covariances": 10, "susceptibility": 10,
    "free_energy": 10, "devinterp": 10, "streamed": 4,
    "correlation": 7, "convergence": 7, "curve_csv": 7, "curve_process": 7, "chunks": 3,
    "curves": 8, "boundaries": 9, "paper_curve": 9, "selection": 9,
    "estimate": 10, "comparison": 10, "verify": 10, "stages": 10, "agreement": 11, "sensitivity": 10, "calibrate": 10,
    "plots": 11, "report": 12,
    "pipelines": 13, "bench": 14, "cli": 15, "__init__": 16, "__main__": 16,
}  # fmt: skip

ONLY_IN = {
    "flax": ("models",),
    "orbax": ("checkpoints",),
    "zarr": ("store", "tokens"),
    "matplotlib": ("plots",),
    "jax.experimental": ("_compat", "models"),
}


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_upward_import(path):
    here = module_of(path)
    assert here in LAYER, f"give {here} a layer"
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "llcjax" or len(parts) < 2 or here == "__init__":
            continue
        assert LAYER[parts[1]] <= LAYER[here], f"{here} imports {name} from a higher layer"
        assert parts[1] == here or LAYER[parts[1]] < LAYER[here] or LAYER[here] == 0 or _acyclic(here, parts[1])


def _acyclic(here, there):
    back = [module_of(path) for path in FILES if module_of(path) == there for name in imports_of(path)
            if name.startswith(f"llcjax.{here}")]  # fmt: skip
    return not back


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_room(path):
    here = module_of(path)
    for name in imports_of(path):
        for library, rooms in ONLY_IN.items():
            assert not (name + ".").startswith(library + ".") or here in rooms, f"{here} imports {name}"


def test_no_pickle_and_no_network():
    forbidden = ("pickle", "dill", "cloudpickle", "requests", "urllib.request", "http.client", "socket")
    for path in FILES:
        assert not [name for name in imports_of(path) if name.startswith(forbidden)], path
