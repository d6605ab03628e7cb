"""The tables of experiments/regression/README.md come from the committed CSV files."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "regression"


@pytest.fixture(scope="module")
def readme():
    spec = importlib.util.spec_from_file_location("regression_readme", FOLDER / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_table_holds_the_rows_and_columns_asked_for(readme, tmp_path):
    (tmp_path / "t.csv").write_text("part,step,llc_now\na,1000,1.23456\nb,2,3\na,40000,nan\n")
    text = "x\n<!-- table: t part=a | step llc_now -->\nold\n<!-- end -->\ny\n"
    filled = readme.rendered(text, tmp_path)
    assert "| step | llc now |\n| --- | --- |\n| 1,000 | 1.235 |\n| 40,000 |  |\n<!-- end -->\ny" in filled
    assert "old" not in filled and readme.rendered(filled, tmp_path) == filled
    with pytest.raises(ValueError, match="no column 'other'"):
        readme.rendered("<!-- table: t | other -->\n<!-- end -->", tmp_path)
    assert "No `none.csv` yet" in readme.rendered("<!-- table: none | a -->\n<!-- end -->", tmp_path)


def test_the_readme_is_what_its_tables_make(readme):
    text = (FOLDER / "README.md").read_text()
    assert readme.rendered(text) == text
