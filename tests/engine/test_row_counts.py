"""Which numbers of rows get code of their own."""

import pytest

from engine.row_counts import CANDIDATES, RowCounts, candidates, worthwhile


def test_where_time_is_in_proportion_to_rows_one_row_is_as_good_as_many() -> None:
    assert worthwhile({count: 0.1 * count for count in CANDIDATES}) == (1,)


def test_where_a_call_costs_the_same_with_any_rows_only_the_largest_is_kept() -> None:
    assert worthwhile(dict.fromkeys(CANDIDATES, 0.1)) == (64,)


def test_a_count_is_kept_where_padding_to_the_next_kept_one_costs_more_than_5_percent() -> None:
    assert worthwhile({1: 1.0, 2: 1.01, 4: 1.07, 6: 1.10, 8: 1.12}) == (2, 8)


def test_padding_is_to_the_next_that_is_kept_not_to_the_next_that_was_measured() -> None:
    """Steps of 4 % each: every other one is kept."""
    seconds = {count: 1.04**place for place, count in enumerate((16, 20, 24, 32, 40, 48))}
    assert worthwhile(seconds) == (20, 32, 48)


def test_a_plateau_with_more_behind_it_is_not_the_end() -> None:
    assert worthwhile({1: 1.0, 2: 2.0, 4: 4.0, 8: 5.0})[-1] == 8


def test_nothing_is_kept_beyond_where_rows_per_second_gain_3_percent() -> None:
    assert worthwhile({1: 1.0, 2: 1.2, 4: 2.35, 8: 4.6, 16: 9.2})[-1] == 4


@pytest.mark.parametrize(("max_rows", "counts"), [(1, [1]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 6, 8])])
def test_candidates_end_with_the_most_rows_that_there_may_be(max_rows: int, counts: list[int]) -> None:
    assert candidates(max_rows) == counts


def test_an_area_that_was_not_measured_goes_by_the_nearest() -> None:
    counts = RowCounts({4096: (2, 8, 32), 16384: (2, 4)})
    assert [counts.at_least(rows, 4096) for rows in (1, 2, 3, 32, 33)] == [2, 2, 8, 32, None]
    assert counts.largest(64 * 96) == 32
    assert counts.largest(20000) == 4
