"""Which rows run next: pure policy, no tensors."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A row's pending operation, as far as policy needs to know it.

    `width`: model rows it takes in a call (a guided evaluation takes two). `remaining`: evaluations the
    row still needs, known exactly. `priority`: smaller runs earlier. `max_rows`: the most model rows of a
    call of this key, where that is fewer than the batcher's.
    """

    row: int
    key: Hashable
    width: int
    remaining: int
    priority: int = 0
    max_rows: int | None = None


class Batcher:
    """Chooses, among waiting operations, the ones that share the next call.

    The key whose oldest operation waits longest, since it came or since its key last had a turn, goes
    first, so no key starves. Within it, priority decides, then fewest remaining evaluations, where every
    call that an operation had to sit out counts `ageing` evaluations in its favour, so no row starves
    either.
    """

    def __init__(self, max_rows: int, *, ageing: float = 1.0) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; it must be at least 1")
        self._max_rows = max_rows
        self._ageing = ageing
        self._limits: dict[Hashable, int] = {}
        self._waiting: dict[int, tuple[int, Waiting]] = {}
        self._arrivals = count()
        self._skipped: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, operation: Waiting) -> None:
        self._waiting[operation.row] = (next(self._arrivals), operation)

    def remove(self, row: int) -> None:
        self._waiting.pop(row, None)
        self._skipped.pop(row, None)

    def limit(self, key: Hashable, rows: int) -> None:
        """From now on at most `rows` model rows share a call of `key`: more did not fit in memory."""
        self._limits[key] = max(1, min(rows, self.limit_of(key)))

    def limit_of(self, key: Hashable) -> int:
        return self._limits.get(key, self._max_rows)

    def next(self) -> list[int]:
        """Take out and return the rows of the next call: all of one key, never none while any waits.

        A single operation wider than the limit runs alone.
        """
        if not self._waiting:
            return []
        _, oldest = min(self._waiting.values(), key=lambda entry: entry[0])
        ranked = sorted(self._of(oldest.key), key=self._rank)
        chosen: list[int] = []
        room = min(self.limit_of(oldest.key), oldest.max_rows or self._max_rows)
        for _, operation in ranked:
            if chosen and operation.width > room:
                self._skipped[operation.row] = self._skipped.get(operation.row, 0) + 1
                self.put(operation)  # behind the other keys: this one has had its turn
                continue
            chosen.append(operation.row)
            room -= operation.width
        for row in chosen:
            self.remove(row)
        return chosen

    def _of(self, key: Hashable) -> Iterator[tuple[int, Waiting]]:
        return (entry for entry in self._waiting.values() if entry[1].key == key)

    def _rank(self, entry: tuple[int, Waiting]) -> tuple[int, float, int]:
        arrival, operation = entry
        age = self._ageing * self._skipped.get(operation.row, 0)
        return operation.priority, operation.remaining - age, arrival
