"""Every fault, a few times each; with `-m slow` as often as `tests.faults.list` says."""

import pytest

from tests.faults.list import FAULTS


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost(name, tmp_path):
    fault, _, few = FAULTS[name]
    row = fault(few, 0, tmp_path)
    assert row.tried >= few and row.lost == 0, row


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_however_often(name, tmp_path):
    fault, often, _ = FAULTS[name]
    row = fault(often, 1, tmp_path)
    print(name, row)  # for `-s`: what to put into the table of the README
    assert row.tried >= often and row.lost == 0, row
