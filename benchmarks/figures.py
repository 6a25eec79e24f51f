"""Figures from measurements: percentiles, ratios with their uncertainty, goodput. Standard library only."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

RESAMPLES = 2000
SLO_FACTOR = 5.0
"""A request is in time if it takes at most this many times what its kind takes alone."""
SLO_SHARE = 0.9
"""A system keeps up with a rate at which this share of requests is in time."""

Repeat = TypeVar("Repeat")


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest ranks. NaN of no values."""
    if not values:
        return float("nan")
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    if ranked[below] == ranked[above]:  # both may be infinite
        return ranked[below]
    return ranked[below] + (place - below) * (ranked[above] - ranked[below])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Mean of `ours` over mean of `theirs`, which were measured in pairs, repeat by repeat.

    The interval is from resampling the repeats as pairs: a slow quarter of an hour that met both systems
    does not widen it. With one repeat it has no width.
    """
    return _resampled(ours, theirs, statistics.fmean)


def ratio_of_percentiles(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], share: float
) -> Interval:
    """As `ratio`, of a percentile of all repeats' values together."""
    return _resampled(ours, theirs, lambda repeats: percentile(list(chain(*repeats)), share))


def mean(values: Sequence[float]) -> Interval:
    """With its interval from resampling; NaN of no values."""
    if not values:
        return Interval(float("nan"), float("nan"), float("nan"))
    return _resampled(values, [1.0] * len(values), statistics.fmean)


def _resampled(
    ours: Sequence[Repeat], theirs: Sequence[Repeat], figure: Callable[[Sequence[Repeat]], float]
) -> Interval:
    """The ratio of a figure of all repeats, and its interval from resampling the repeats as pairs."""

    def ratio_of(pairs: Sequence[tuple[Repeat, Repeat]]) -> float:
        numerator, denominator = (figure(each) for each in zip(*pairs, strict=True))
        return numerator / denominator if denominator else float("inf")

    rng = random.Random(0)
    pairs = list(zip(ours, theirs, strict=True))
    drawn = sorted(ratio_of(rng.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return Interval(ratio_of(pairs), percentile(drawn, 0.025), percentile(drawn, 0.975))


def in_time(latencies: Sequence[tuple[str, float]], missing: int, unloaded: Mapping[str, float]) -> float:
    """The share of requests that took at most SLO_FACTOR times their kind's seconds in `unloaded`.

    `latencies` are kind and seconds of the answered ones; `missing` got no picture.
    """
    kept = sum(seconds <= SLO_FACTOR * unloaded[kind] for kind, seconds in latencies)
    return kept / (len(latencies) + missing)


def goodput(shares: Mapping[float, float]) -> float:
    """The highest offered rate up to which every rate's share in time is enough; 0 if none is."""
    best = 0.0
    for rate, share in sorted(shares.items()):
        if share < SLO_SHARE:
            break
        best = rate
    return best
