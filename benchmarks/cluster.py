"""A cluster in simulated time: gateways that know little, the product's routing, its batcher in each replica.

No model, no Ray, no sleeping: events in a heap. A gateway is one core that serves requests in their order,
once before a job is sent and once for its answer. It knows of the replicas what Serve's router in it would: a
queue's length when it last sent a job there, less its own jobs that have come back since, for ten seconds.
"""

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Protocol

from benchmarks.batcher_sim import Arrival
from benchmarks.costs import CallCosts
from engine.batcher import Batcher

FORGOTTEN_SECONDS = 10.0
"""Serve forgets a queue's length after so long without news of it."""
BACKOFF_SECONDS = 0.02
"""What a router waits when no replica has room, as the service configures it at most."""


@dataclass(slots=True)
class Sent(Arrival):
    """A job that goes to a `gateway` and to a replica of a `checkpoint`."""

    checkpoint: int = 0
    gateway: int = 0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """`replicas` are how many each checkpoint has; `jobs` how many one of them is given at most.

    A request takes `before` seconds of a gateway's core until its job is sent, `after` for the answer, and
    the job `hop` seconds to the replica. Unless `news` is 0, all gateways know of all queues every so many
    seconds.
    """

    replicas: Sequence[int]
    gateways: int
    costs: CallCosts
    jobs: int
    before: float = 0.0
    after: float = 0.0
    hop: float = 0.0
    news: float = 0.0


class Policy(Protocol):
    """Of one gateway for one checkpoint's replicas."""

    def ranks(self, key: Hashable) -> Sequence[Sequence[int]]:
        """Replicas to try: of each of these, in turn, Serve takes the one with the shortest queue."""

    def sent(self, replica: int, key: Hashable) -> None: ...

    def done(self, replica: int, key: Hashable) -> None: ...


Length = Callable[[int], int | None]
MakePolicy = Callable[[Sequence[int], Length, int, Random], Policy]
"""From the replicas, what is known of their queues' lengths, and how many jobs each may have."""


@dataclass(slots=True)
class Replica:
    """`jobs` are those in its batcher or in the call that runs."""

    batcher: Batcher
    jobs: int = 0
    busy: bool = False
    seconds: float = 0.0
    calls: int = 0
    rows: int = 0


class Router:
    """What one gateway knows of one checkpoint's replicas, and the jobs that have found no room yet."""

    def __init__(self, cluster: "Cluster", replicas: Sequence[int]) -> None:
        self._cluster = cluster
        self._known: dict[int, tuple[int, float]] = {}
        self.pending: deque[int] = deque()
        self.policy = cluster.make_policy(replicas, self.length, cluster.setup.jobs, cluster.random)

    def length(self, replica: int) -> int | None:
        entry = self._known.get(replica)
        if self._cluster.setup.news:
            since = entry[0] if entry and entry[1] == self._cluster.news_at else 0
            return self._cluster.news[replica] + since
        if entry is None or self._cluster.now - entry[1] > FORGOTTEN_SECONDS:
            return None
        return entry[0]

    def learn(self, replica: int, length: int) -> None:
        if not self._cluster.setup.news:
            self._known[replica] = length, self._cluster.now

    def add(self, replica: int, jobs: int) -> None:
        """One more, or one less: what `length` says changes by it, where it says anything."""
        if self._cluster.setup.news:
            at = self._cluster.news_at
            entry = self._known.get(replica)
            self._known[replica] = (entry[0] if entry and entry[1] == at else 0) + jobs, at
        elif jobs > 0 or self.length(replica) is not None:
            self._known[replica] = max(0, (self.length(replica) or 0) + jobs), self._cluster.now

    def choose(self, key: Hashable) -> int | None:
        """As Serve does of what its policy ranks: by what is known, else by asking those replicas."""
        for rank in self.policy.ranks(key):
            known = {r: length for r in rank if (length := self.length(r)) is not None}
            chosen = self._shortest(known)
            if chosen is None:
                chosen = self._shortest(self._ask(rank))
            if chosen is not None:
                return chosen
        return None

    def _shortest(self, lengths: Mapping[int, int]) -> int | None:
        """None if all are full; of equal ones, the first."""
        free = [replica for replica, length in lengths.items() if length < self._cluster.setup.jobs]
        return min(free, key=lengths.__getitem__, default=None)

    def _ask(self, replicas: Sequence[int]) -> Mapping[int, int]:
        """Their queues' lengths, in no time."""
        self._cluster.asked += len(replicas)
        lengths = {replica: self._cluster.replicas[replica].jobs for replica in replicas}
        for replica, length in lengths.items():
            self.learn(replica, length)
        return lengths


class Cluster:
    """Runs a trace of jobs once."""

    def __init__(self, setup: Setup, make_policy: MakePolicy, random: Random) -> None:
        self.setup, self.make_policy, self.random = setup, make_policy, random
        self.now = 0.0
        self.asked = 0
        self.replicas = [Replica(Batcher(setup.costs.max_rows)) for _ in range(sum(setup.replicas))]
        self.news, self.news_at = [0] * len(self.replicas), 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._sequence = count()
        self._free_at = [0.0] * setup.gateways
        first = 0
        self._routers: list[list[Router]] = [[] for _ in range(setup.gateways)]
        for number in setup.replicas:
            for routers in self._routers:
                routers.append(Router(self, range(first, first + number)))
            first += number
        self._home: dict[int, int] = {}
        self._jobs: Sequence[Sent] = ()
        self.left = 0

    def run(self, jobs: Sequence[Sent]) -> None:
        """Run all jobs, in the order of their arrival, to their end."""
        self._jobs = jobs
        for i, job in enumerate(jobs):
            self._at(job.at, self._arrive, i)
        if self.setup.news:
            self._at(0.0, self._publish)
        while self._events:
            self.now, _, act, args = heappop(self._events)
            act(*args)

    def _at(self, when: float, act: Callable[..., None], *args: object) -> None:
        heappush(self._events, (when, next(self._sequence), act, args))

    def _serve(self, gateway: int, seconds: float, act: Callable[..., None], *args: object) -> None:
        """`act` when the gateway's core has come to it and is done."""
        self._free_at[gateway] = max(self.now, self._free_at[gateway]) + seconds
        self._at(self._free_at[gateway], act, *args)

    def _arrive(self, i: int) -> None:
        self._serve(self._jobs[i].gateway, self.setup.before, self._route, i)

    def _router(self, i: int) -> Router:
        return self._routers[self._jobs[i].gateway][self._jobs[i].checkpoint]

    def _route(self, i: int) -> None:
        router = self._router(i)
        router.pending.append(i)
        if len(router.pending) == 1:
            self._try(router)

    def _try(self, router: Router) -> None:
        """Send what waits, in order, until one finds no room."""
        while router.pending:
            i = router.pending[0]
            chosen = router.choose(self._jobs[i].shape)
            if chosen is None:
                self._at(self.now + BACKOFF_SECONDS, self._try, router)
                return
            router.pending.popleft()
            router.add(chosen, 1)
            self._at(self.now + self.setup.hop, self._accept, i, chosen)

    def _accept(self, i: int, chosen: int) -> None:
        replica, router = self.replicas[chosen], self._router(i)
        replica.jobs += 1
        self._home[i] = chosen
        router.learn(chosen, replica.jobs)
        router.policy.sent(chosen, self._jobs[i].shape)
        replica.batcher.put(self._jobs[i].waiting(i))
        if not replica.busy:
            self._step(replica)

    def _step(self, replica: Replica) -> None:
        batch = replica.batcher.next(self.now)
        replica.busy = bool(batch)
        if not batch:
            return
        first = self._jobs[batch[0]]
        key, decoding = first.key, first.stage > first.steps
        rows = len(batch) if decoding else sum(self._jobs[i].width for i in batch)
        seconds = self.setup.costs(key, rows)
        replica.seconds += seconds
        if key == first.shape:
            replica.calls += 1
            replica.rows += rows
        self._at(self.now + seconds, self._stepped, replica, batch, key, rows, seconds)

    def _stepped(self, replica: Replica, batch: Sequence[int], key: str, rows: int, seconds: float) -> None:
        replica.batcher.observe(key, rows, seconds)
        for i in batch:
            job = self._jobs[i]
            job.stage += 1
            if job.stage <= job.steps + 1:
                replica.batcher.put(job.waiting(i))
            else:
                replica.batcher.remove(i)
                replica.jobs -= 1
                self._at(self.now + self.setup.hop, self._answer, i)
        self._step(replica)

    def _answer(self, i: int) -> None:
        router, home = self._router(i), self._home.pop(i)
        router.add(home, -1)
        router.policy.done(home, self._jobs[i].shape)
        self._serve(self._jobs[i].gateway, self.setup.after, self._leave, i)

    def _leave(self, i: int) -> None:
        self._jobs[i].done = self.now
        self.left += 1

    def _publish(self) -> None:
        self.news, self.news_at = [replica.jobs for replica in self.replicas], self.now
        if self.left < len(self._jobs):
            self._at(self.now + self.setup.news, self._publish)
