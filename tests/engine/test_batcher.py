"""Policy alone: no tensors."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batcher import Batcher, Costs, Waiting


def waiting(row: int, key: str = "a", width: int = 1, remaining: int = 10, priority: int = 0) -> Waiting:
    return Waiting(row=row, key=key, width=width, remaining=remaining, priority=priority)


def test_the_call_that_brings_most_rows_to_their_end_goes_first() -> None:
    batcher = Batcher(8)
    for key in "ab":
        batcher.observe(key, 1, 1.0)
        batcher.observe(key, 2, 1.0)
    batcher.put(waiting(0, "a", remaining=10))
    for row in (1, 2):
        batcher.put(waiting(row, "b", remaining=10))
    assert [batcher.next(), batcher.next(), batcher.next()] == [[1, 2], [0], []]


def test_a_cheap_call_goes_before_a_dear_one() -> None:
    batcher = Batcher(8)
    batcher.observe("large", 1, 5.0)
    batcher.observe("small", 1, 1.0)
    batcher.put(waiting(0, "large", remaining=10))
    batcher.put(waiting(1, "small", remaining=20))
    assert batcher.next() == [1]


def test_a_key_of_unknown_cost_is_tried_at_once() -> None:
    batcher = Batcher(8)
    batcher.observe("known", 1, 0.001)
    batcher.put(waiting(0, "known", remaining=1))
    batcher.put(waiting(1, "unknown", remaining=100))
    assert batcher.next() == [1]


def test_costs_follow_what_is_measured() -> None:
    costs = Costs()
    assert costs.estimate("a", 4) == 0
    costs.observe("a", 4, 2.0)
    assert (costs.estimate("a", 4), costs.estimate("a", 2), costs.estimate("a", 8)) == (2.0, 2.0, 4.0)
    for _ in range(20):
        costs.observe("a", 4, 1.0)
    assert costs.estimate("a", 4) == pytest.approx(1.0, abs=1e-3)


def test_crowded_key_does_not_keep_others_waiting() -> None:
    """More rows of one key than fit, for ever: another key still gets its turn in between."""
    batcher = Batcher(2)
    for row in range(6):
        batcher.put(waiting(row, "crowded", remaining=50))
    batcher.put(waiting(9, "lonely"))
    for _ in range(100):
        chosen = batcher.next()
        if chosen == [9]:
            return
        for row in chosen:
            batcher.put(waiting(row, "crowded", remaining=50))
    pytest.fail("the lonely key starved")


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


def due(row: int, due: float, remaining: int = 10) -> Waiting:
    return Waiting(row=row, key="a", width=1, remaining=remaining, due=due)


def test_who_would_soon_be_too_late_goes_first_the_earliest_due_before_the_others() -> None:
    batcher = Batcher(1)
    batcher.observe("a", 1, 1.0)
    for row, when in ((0, 100.0), (1, 16.0), (2, 15.0)):
        batcher.put(due(row, when))
    batcher.put(due(3, 1000.0, remaining=1))
    assert [batcher.next(now=0.0) for _ in range(4)] == [[2], [1], [3], [0]]


def test_who_is_too_late_in_any_case_has_no_right_to_be_first() -> None:
    batcher = Batcher(1)
    batcher.observe("a", 1, 1.0)
    batcher.put(due(0, 5.0))
    batcher.put(due(1, 1000.0, remaining=1))
    assert batcher.next(now=0.0) == [1]


def test_priority_beats_being_due() -> None:
    batcher = Batcher(1)
    batcher.observe("a", 1, 1.0)
    batcher.put(due(0, 15.0))
    batcher.put(waiting(1, priority=-1))
    assert batcher.next(now=0.0) == [1]


def test_who_has_waited_long_goes_before_who_has_just_come() -> None:
    """One long row against an endless stream of one-step rows."""
    batcher = Batcher(1, patience=10**9)
    batcher.put(waiting(0, remaining=20))
    for row in range(1, 1000):
        batcher.put(waiting(row, remaining=1))
        chosen = batcher.next()
        if chosen == [0]:
            return
        batcher.remove(chosen[0])
    pytest.fail("the long row starved")


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(0, 30)), min_size=1, max_size=20
    ),
    st.integers(0, 6),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_no_row_sits_out_more_than_patience_and_the_rows_that_wait(
    rows: list[tuple[str, int, int]], patience: int, limit: int, random: Random
) -> None:
    """Rows that never end, of any cost and priority, in any company."""
    batcher = Batcher(limit, patience=patience)
    for key in "abc":
        batcher.observe(key, 1, random.uniform(0.1, 10))

    def put(row: int) -> None:
        key, width, remaining = rows[row]
        batcher.put(waiting(row, key, width, remaining, priority=random.randrange(3)))

    for row in range(len(rows)):
        put(row)
    last = dict.fromkeys(range(len(rows)), -1)
    for call in range(200):
        for row in batcher.next():
            assert call - last[row] - 1 <= patience + len(rows)
            last[row] = call
            put(row)
    assert min(last.values()) >= 200 - 1 - patience - len(rows)


def test_width_counts_towards_the_limit_and_smaller_rows_fill_the_rest() -> None:
    batcher = Batcher(5)
    for row, width in enumerate([2, 2, 2, 1]):
        batcher.put(waiting(row, width=width))
    assert sorted(batcher.next()) == [0, 1, 3]


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
