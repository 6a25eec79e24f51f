"""Tables of what calls cost."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.costs import CallCosts, assumed_h200, line, read


@pytest.mark.parametrize(("rows", "seconds"), [(1, 2.0), (2, 2.0), (3, 3.0), (4, 4.0), (8, 6.0), (12, 8.0)])
def test_cost_is_linear_between_what_is_known_and_goes_on_so(rows: int, seconds: float) -> None:
    assert line({8: 6.0, 2: 2.0, 4: 4.0}, rows) == pytest.approx(seconds)


def test_of_one_number_of_rows_alone_each_row_costs_the_same() -> None:
    assert line({2: 3.0}, 8) == pytest.approx(12.0)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(asdict(assumed_h200())))
    assert read(path) == assumed_h200()


def test_assumed_h200_is_the_component_model() -> None:
    costs = assumed_h200()
    assert costs("512x512", 32) == pytest.approx(0.062, rel=0.01)
    assert (costs("512x512", 2) / 2) / (costs("512x512", 32) / 32) == pytest.approx(5.5, rel=0.05)
    pictures = 16 / (20 * costs("512x512", 32) + 4 * costs("decode 512x512", 4))
    assert pictures == pytest.approx(12, rel=0.05)
    assert "not measured" in costs.about


def test_more_rows_never_cost_less_where_costs_were_assumed() -> None:
    costs: CallCosts = assumed_h200()
    for key in costs.seconds:
        seconds = [costs(key, rows) for rows in range(1, costs.max_rows + 1)]
        assert seconds == sorted(seconds)
