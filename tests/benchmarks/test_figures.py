"""The arithmetic behind the tables."""

import math
import random

import pytest

from benchmarks.figures import goodput, in_time, percentile, ratio


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 2.5), (0.95, 3.85), (1.0, 4.0)])
def test_percentile_lies_between_the_nearest_ranks(share: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(value)


def test_percentile_of_nothing_is_nan() -> None:
    assert math.isnan(percentile([], 0.5))


def test_ratio_is_the_same_every_time_and_inside_its_interval() -> None:
    ours, theirs = [3.0, 3.3, 2.8, 3.1, 2.9], [1.0, 1.1, 0.9, 1.05, 0.95]
    first = ratio(ours, theirs)
    assert first == ratio(ours, theirs)
    assert first.low < first.value < first.high


def test_what_slows_both_systems_alike_does_not_widen_the_interval() -> None:
    theirs = [1.0, 0.2, 1.4, 0.6, 0.9]
    interval = ratio([3 * each for each in theirs], theirs)
    assert (interval.low, interval.value, interval.high) == pytest.approx((3, 3, 3))


def test_interval_of_the_ratio_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(60):
        interval = ratio(
            [rng.gauss(2, 0.1) for _ in range(10)],
            [rng.gauss(1, 0.05) for _ in range(10)],
        )
        covered += interval.low <= 2 <= interval.high
    assert covered >= 48


def test_in_time_goes_by_the_kinds_own_time_and_counts_who_got_nothing() -> None:
    unloaded = {"short": 1.0, "long": 10.0}
    latencies = [("short", 4.9), ("short", 5.1), ("long", 49.0)]
    assert in_time(latencies, 0, unloaded) == pytest.approx(2 / 3)
    assert in_time(latencies, 1, unloaded) == pytest.approx(0.5)


def test_goodput_is_the_highest_rate_below_the_first_that_was_too_much() -> None:
    assert goodput({4.0: 0.95, 1.0: 1.0, 2.0: 0.9, 3.0: 0.89}) == 2.0
    assert goodput({1.0: 0.5, 2.0: 1.0}) == 0.0
    assert goodput({}) == 0.0


def test_a_percentile_among_infinite_values_is_infinite() -> None:
    assert percentile([1.0, float("inf"), float("inf")], 0.9) == float("inf")
