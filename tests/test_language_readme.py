"""The tables of experiments/language/README.md come from the committed CSV files."""

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "experiments"


def readme():
    spec = importlib.util.spec_from_file_location("regression_readme", FOLDER / "regression" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_what_its_tables_make():
    text = (FOLDER / "language" / "README.md").read_text()
    assert readme().rendered(text, FOLDER / "language" / "results" / "tables") == text
    assert text.count("<!-- table: ") >= 5


def test_tables_of_runs_are_copied_beside_each_other(tmp_path):
    (tmp_path / "README.md").write_text(
        "![LLC](results/quick/curve.png)\n<!-- table: quick/llc | step -->\n<!-- end -->\n"
    )
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    (run / "llc.csv").write_text("step,llc\n1,2\n")
    for figure in ("curve", "traces"):
        (run / "figures" / f"{figure}.png").write_bytes(b"png")
    readme().fill(tmp_path, [("quick", run)])
    assert "| step |\n| --- |\n| 1 |" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "results" / "quick" / "curve.png").read_bytes() == b"png"
    assert not (tmp_path / "results" / "quick" / "traces.png").exists()
