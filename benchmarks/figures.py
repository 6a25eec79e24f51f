"""Figures from measurements: percentiles, ratios with their uncertainty, goodput. Standard library only."""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RESAMPLES = 2000
SLO_FACTOR = 5.0
"""A request is in time if it takes at most this many times what its kind takes alone."""
SLO_SHARE = 0.9
"""A system keeps up with a rate at which this share of requests is in time."""


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
    return ranked[below] + (place - below) * (ranked[above] - ranked[below])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Mean of `ours` over mean of `theirs`, which were measured in pairs, repeat by repeat.

    The interval is from resampling the repeats as pairs: a slow quarter of an hour that met both systems
    does not widen it. With one repeat it has no width.
    """
    rng = random.Random(0)
    pairs = list(zip(ours, theirs, strict=True))
    drawn = sorted(_ratio_of_means(rng.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return Interval(_ratio_of_means(pairs), percentile(drawn, 0.025), percentile(drawn, 0.975))


def _ratio_of_means(pairs: Sequence[tuple[float, float]]) -> float:
    numerator, denominator = (statistics.fmean(each) for each in zip(*pairs, strict=True))
    return numerator / denominator if denominator else float("inf")


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
