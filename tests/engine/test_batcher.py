"""Policy alone: no tensors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batcher import Batcher, Waiting


def waiting(row: int, key: str = "a", width: int = 1, remaining: int = 10, priority: int = 0) -> Waiting:
    return Waiting(row=row, key=key, width=width, remaining=remaining, priority=priority)


def test_key_whose_oldest_waits_longest_goes_first() -> None:
    batcher = Batcher(8)
    for row, key in enumerate("baab"):
        batcher.put(waiting(row, key))
    assert batcher.next() == [0, 3]
    assert batcher.next() == [1, 2]
    assert batcher.next() == []


def test_crowded_key_does_not_keep_others_waiting() -> None:
    """More rows of one key than fit, for ever: every other key still gets its turn in between."""
    batcher = Batcher(2)
    for row in range(6):
        batcher.put(waiting(row, "crowded", remaining=50))
    batcher.put(waiting(9, "lonely"))
    turns = []
    for _ in range(4):
        chosen = batcher.next()
        turns.append(chosen)
        for row in chosen:
            batcher.put(waiting(row, "lonely" if row == 9 else "crowded", remaining=50))
    assert [9] in turns[:2]
    assert turns.count([9]) == 2


def test_operations_may_have_a_smaller_limit_of_their_own() -> None:
    batcher = Batcher(8)
    for row in range(3):
        batcher.put(Waiting(row=row, key="decode", width=1, remaining=0, max_rows=2))
    assert [batcher.next(), batcher.next()] == [[0, 1], [2]]


def test_short_remaining_goes_first_when_not_all_fit() -> None:
    batcher = Batcher(2)
    for row, remaining in enumerate([30, 5, 20, 1]):
        batcher.put(waiting(row, remaining=remaining))
    assert batcher.next() == [3, 1]


def test_priority_beats_short_remaining() -> None:
    batcher = Batcher(1)
    batcher.put(waiting(0, remaining=1))
    batcher.put(waiting(1, remaining=50, priority=-1))
    assert batcher.next() == [1]


def test_ageing_lets_no_row_starve() -> None:
    """One long row against an endless stream of one-step rows."""
    batcher = Batcher(1)
    batcher.put(waiting(0, remaining=20))
    for row in range(1, 100):
        batcher.put(waiting(row, remaining=1))
        if batcher.next() == [0]:
            assert row <= 21
            return
    pytest.fail("the long row starved")


def test_width_counts_towards_the_limit_and_smaller_rows_fill_the_rest() -> None:
    batcher = Batcher(5)
    for row, width in enumerate([2, 2, 2, 1]):
        batcher.put(waiting(row, width=width))
    assert batcher.next() == [0, 1, 3]


def test_row_wider_than_the_limit_runs_alone() -> None:
    batcher = Batcher(1)
    batcher.put(waiting(0, width=2))
    batcher.put(waiting(1, width=2))
    assert batcher.next() == [0]


def test_limit_of_a_key_only_ever_falls() -> None:
    batcher = Batcher(8)
    batcher.limit("a", 3)
    batcher.limit("a", 6)
    assert (batcher.limit_of("a"), batcher.limit_of("b")) == (3, 8)


def test_removed_row_is_not_chosen() -> None:
    batcher = Batcher(8)
    batcher.put(waiting(0))
    batcher.put(waiting(1))
    batcher.remove(0)
    assert batcher.next() == [1]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 50), st.integers(-1, 1)),
        max_size=40,
    ),
    st.integers(1, 8),
)
def test_every_row_runs_exactly_once(rows: list[tuple[str, int, int, int]], limit: int) -> None:
    batcher = Batcher(limit)
    for row, (key, width, remaining, priority) in enumerate(rows):
        batcher.put(waiting(row, key, width, remaining, priority))
    seen: list[int] = []
    while batch := batcher.next():
        assert len({rows[row][0] for row in batch}) == 1
        assert len(batch) == 1 or sum(rows[row][1] for row in batch) <= limit
        seen += batch
    assert sorted(seen) == list(range(len(rows)))
