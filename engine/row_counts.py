"""How many rows calls are made with: the counts worth code of their own, told from measured times."""

from collections.abc import Mapping
from dataclasses import dataclass

CANDIDATES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
PADDING = 0.05
"""A count is left out if rows filled up to the next one take at most this share longer."""
GAIN = 0.03
"""What more rows must draw more per second, in all, for a call to have them."""


def candidates(max_rows: int) -> list[int]:
    return sorted({count for count in CANDIDATES if count < max_rows} | {max_rows})


def worthwhile(seconds: Mapping[int, float]) -> tuple[int, ...]:
    """Of row counts with the seconds that a call takes, those to keep, ascending.

    The largest is the first beyond which rows per second gain less than GAIN.
    """
    counts = sorted(seconds)
    rate = {count: count / seconds[count] for count in counts}
    best = max(rate.values())
    kept = [next(count for count in counts if best < (1 + GAIN) * rate[count])]
    for count in reversed([count for count in counts if count < kept[0]]):
        if seconds[kept[-1]] > (1 + PADDING) * seconds[count]:
            kept.append(count)
    return tuple(reversed(kept))


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Counts by area of the latent. What has an area of its own goes by the nearest that is known."""

    by_area: Mapping[int, tuple[int, ...]]

    def largest(self, area: int) -> int:
        return self.of(area)[-1]

    def at_least(self, rows: int, area: int) -> int | None:
        """The smallest count that has room for so many rows; None if there is none."""
        return next((count for count in self.of(area) if count >= rows), None)

    def of(self, area: int) -> tuple[int, ...]:
        return self.by_area[min(self.by_area, key=lambda known: abs(known - area))]
