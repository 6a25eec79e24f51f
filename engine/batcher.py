"""Which rows run next: pure policy, no tensors. `benchmarks/batcher_sim.py` compares it with others."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from math import inf

SMOOTHING = 0.5
"""How much of a call's cost the newest measurement is."""
URGENT = 6.0
"""A row is urgent when less than so many times the seconds that it needs, alone, are left to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A row's pending operation, as far as policy needs to know it.

    `width`: model rows it takes in a call (a guided evaluation takes two). `remaining`: evaluations the
    row still needs, known exactly. `priority`: smaller runs earlier. `due`: when the row should be done, in
    seconds of the clock that `Batcher.next` is told. `max_rows`: the most model rows of a call of this key,
    where that is fewer than the batcher's.
    """

    row: int
    key: Hashable
    width: int
    remaining: int
    priority: int = 0
    due: float = inf
    max_rows: int | None = None


class Costs:
    """Seconds of a call by key and model rows, learnt from the calls that were made."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, dict[int, float]] = {}

    def observe(self, key: Hashable, rows: int, seconds: float) -> None:
        known = self._seconds.setdefault(key, {})
        last = known.get(rows, seconds)
        known[rows] = last + SMOOTHING * (seconds - last)

    def estimate(self, key: Hashable, rows: int) -> float:
        """0 for a key never seen, so that it is soon known. Else from the nearest number of rows seen."""
        known = self._seconds.get(key)
        if not known:
            return 0.0
        nearest = min(known, key=lambda seen: abs(seen - rows))
        return known[nearest] * max(1.0, rows / nearest)


@dataclass(slots=True)
class _Row:
    """A row from its first operation to `remove`; `operation` is None while it runs.

    `longest` is the most evaluations it ever needed, `waited` the calls it has sat out in all, `skipped`
    those since its last turn.
    """

    operation: Waiting | None
    arrival: int
    longest: int
    waited: int = 0
    skipped: int = 0

    @property
    def effort(self) -> float:
        """Evaluations still needed, over the response ratio: how long it takes against how long it should."""
        assert self.operation is not None
        return (self.operation.remaining + 1) / (1 + self.waited / self.longest)


class Batcher:
    """Chooses, among waiting operations, the ones that share the next call.

    The call that brings most rows nearest to their end goes first: the highest sum of 1 / effort per second
    of its cost. For single rows of one cost that is shortest remaining work first (Schrage 1968), with the
    weight of highest response ratio next (Brinch Hansen 1971), so that who has waited long counts more.
    Within a call's key priority decides, then effort. Among rows of one priority those go first that would
    soon be too late, the earliest due before the others; who is too late in any case has no such right.

    A row that has sat out `patience` calls is overdue and goes before all others, the longest skipped first.
    So no row ever sits out more than patience + n calls on end, where at most n rows wait at a time.
    """

    def __init__(self, max_rows: int, *, patience: int = 64) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}; it must be at least 1")
        self._max_rows = max_rows
        self._patience = patience
        self._limits: dict[Hashable, int] = {}
        self._rows: dict[int, _Row] = {}
        self._arrivals = count()
        self._costs = Costs()
        self._now = 0.0

    def __len__(self) -> int:
        """How many operations wait."""
        return sum(row.operation is not None for row in self._rows.values())

    def put(self, operation: Waiting) -> None:
        """Queue what a row asks for next."""
        row = self._rows.setdefault(operation.row, _Row(None, 0, 1))
        row.operation, row.arrival, row.skipped = operation, next(self._arrivals), 0
        row.longest = max(row.longest, operation.remaining)

    def remove(self, row: int) -> None:
        """Forget a row that has left or is to leave."""
        self._rows.pop(row, None)

    def observe(self, key: Hashable, rows: int, seconds: float) -> None:
        """Learn what a call of `rows` model rows took."""
        self._costs.observe(key, rows, seconds)

    def limit(self, key: Hashable, rows: int) -> None:
        """From now on at most `rows` model rows share a call of `key`: more did not fit in memory."""
        self._limits[key] = max(1, min(rows, self.limit_of(key)))

    def limit_of(self, key: Hashable) -> int:
        return self._limits.get(key, self._max_rows)

    def next(self, now: float = 0.0) -> list[int]:
        """Take out and return the rows of the next call: all of one key, never none while any waits.

        A single operation wider than the limit runs alone. `now` is read against the rows' `due`.
        """
        self._now = now
        groups = self._groups()
        if not groups:
            return []
        batches = [self._fill(key, group) for key, group in groups.items()]
        chosen = min(batches, key=self._rank_of_batch)
        for operation in chosen:
            self._rows[operation.row].operation = None
        for row in self._rows.values():
            if row.operation is not None:
                row.skipped += 1
                row.waited += 1
        return [operation.row for operation in chosen]

    def _groups(self) -> Mapping[Hashable, list[Waiting]]:
        groups: dict[Hashable, list[Waiting]] = {}
        for row in self._rows.values():
            if row.operation is not None:
                groups.setdefault(row.operation.key, []).append(row.operation)
        return groups

    def _fill(self, key: Hashable, waiting: Iterable[Waiting]) -> list[Waiting]:
        chosen: list[Waiting] = []
        ranked = sorted(waiting, key=self._rank)
        room = min(self.limit_of(key), ranked[0].max_rows or self._max_rows)
        for operation in ranked:
            if not chosen or operation.width <= room:
                chosen.append(operation)
                room -= operation.width
        return chosen

    def _rank(self, operation: Waiting) -> tuple[float, ...]:
        row = self._rows[operation.row]
        if row.skipped >= self._patience:
            return 0, -row.skipped
        return 1, operation.priority, self._urgency(operation), row.effort, row.arrival

    def _rank_of_batch(self, batch: list[Waiting]) -> tuple[float, ...]:
        first = self._rows[batch[0].row]
        if first.skipped >= self._patience:
            return 0, -first.skipped
        oldest = min(self._rows[operation.row].arrival for operation in batch)
        priority = min(operation.priority for operation in batch)
        return 1, priority, min(map(self._urgency, batch)), -self._gain(batch), oldest

    def _urgency(self, operation: Waiting) -> float:
        """When it is due if it is urgent, else infinity."""
        left = operation.due - self._now
        if left == inf:
            return inf
        needed = (operation.remaining + 1) * self._costs.estimate(operation.key, operation.width)
        return operation.due if needed <= left < URGENT * needed else inf

    def _gain(self, batch: list[Waiting]) -> float:
        """Rows brought to their end per second."""
        cost = self._costs.estimate(batch[0].key, sum(operation.width for operation in batch))
        gain = sum(1 / self._rows[operation.row].effort for operation in batch)
        return gain / cost if cost else float("inf")
