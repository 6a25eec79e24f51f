"""Which replica a job goes to: the one it will delay least, where sharing a batch counts as half a delay.

Pure policy, without Ray: `benchmarks/cluster_sim.py` runs it with a thousand replicas.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from random import Random
from statistics import fmean
from typing import Any, Generic, TypeVar

COMPANY = 0.5
"""What a job that would share this one's batches weighs, against 1 for a job that would not."""
SHARED = 2
"""How many gateways are to use a replica, where there are many of both."""
LEAST_USED = 8
"""Replicas that a gateway uses however few jobs it has in flight."""
MOST_WEIGHED = 64
"""Replicas compared for one job: 0.1 ms."""
MOST_ASKED = 8
"""Replicas that are asked how long their queue is, where none is known to have room."""
SMOOTHING = 0.1
"""How much of the usual queue's length the newest look at the queues is."""

Replica = TypeVar("Replica", bound=Hashable)


def batch_key(job: Any) -> Hashable:
    """What decides which jobs share evaluations: the latent's shape. None for what shares none."""
    return (job.width // 8, job.height // 8) if hasattr(job, "width") else None


def weight(jobs: int, company: int) -> float:
    """How busy a replica is, for a job that `company` of its `jobs` would share batches with."""
    return jobs - company + COMPANY * company


class Routing(Generic[Replica]):
    """What one gateway does with its jobs for one checkpoint's replicas.

    It knows the keys of its own jobs only, and a queue's length from when it last sent a job there. So it
    uses as many replicas as its jobs would fill to the usual length, times SHARED, in an order of its own. A
    gateway alone soon uses all. One of many uses few, about which it then knows enough; together they use
    all. While queues are short that is more replicas than it has jobs.

    `length` of a replica's queue, all gateways' jobs included, is None where it is not known: as a rule
    nobody has sent anything there. A replica is to have at most `limit` jobs.
    """

    def __init__(self, limit: int, length: Callable[[Replica], int | None], random: Random) -> None:
        self._limit = limit
        self._length = length
        self._random = random
        self._order: list[Replica] = []
        self._keys: dict[Replica, Counter[Hashable]] = defaultdict(Counter)
        self._in_flight = 0
        self._usual = 0.0

    def offer(self, replicas: Iterable[Replica]) -> None:
        """These are there from now on. Those that were there keep their order."""
        there = dict.fromkeys(replicas)
        self._order = [replica for replica in self._order if replica in there]
        known = set(self._order)
        for replica in there:
            if replica not in known:
                self._order.insert(self._random.randrange(len(self._order) + 1), replica)

    def sent(self, replica: Replica, key: Hashable) -> None:
        self._keys[replica][key] += 1
        self._in_flight += 1

    def done(self, replica: Replica, key: Hashable) -> None:
        """A job that was sent has come back, or never will."""
        keys = self._keys[replica]
        keys[key] -= 1
        self._in_flight -= 1
        if not +keys:
            del self._keys[replica]

    def ranks(self, key: Hashable) -> list[list[Replica]]:
        """The best replica with room among those in use, then a few of all, which Serve asks if it has to."""
        asked = self._sample(self._order, MOST_ASKED)
        lengths = self._lengths(self._used())
        if lengths:
            self._usual += SMOOTHING * (fmean(lengths.values()) - self._usual)
        free = self._free(lengths) or self._free(self._lengths(self._order))
        if not free:
            return [asked]
        best = min(
            free, key=lambda replica: (self._weight(replica, free[replica], key), self._random.random())
        )
        return [[best], asked]

    def _used(self) -> list[Replica]:
        filled = self._in_flight / max(1.0, self._usual)
        return self._order[: max(LEAST_USED, int(SHARED * filled))]

    def _lengths(self, replicas: Sequence[Replica]) -> dict[Replica, int]:
        """As far as is known, of a sample."""
        return {each: self._length(each) or 0 for each in self._sample(replicas, MOST_WEIGHED)}

    def _free(self, lengths: Mapping[Replica, int]) -> dict[Replica, int]:
        return {replica: jobs for replica, jobs in lengths.items() if jobs < self._limit}

    def _sample(self, replicas: Sequence[Replica], most: int) -> list[Replica]:
        return self._random.sample(replicas, min(most, len(replicas)))

    def _weight(self, replica: Replica, jobs: int, key: Hashable) -> float:
        company = self._keys[replica][key] if key is not None and replica in self._keys else 0
        return weight(max(jobs, company), company)
