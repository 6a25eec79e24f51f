"""The orders that gateways have open, and how far they are. Pure policy, without Ray."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Hashable, KeysView, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from zlib import crc32

from deployments.board.replicas import Replicas
from ingress.backend import Order, OrderProgress


@dataclass(slots=True, eq=False, kw_only=True)
class OpenOrder:
    """`ended` are the jobs that are done, have failed or were stopped; `evaluations` what each of its jobs
    takes, as far as is known. `stopped`: the jobs that are to stop, and since when."""

    order: Order
    arrived: float
    replicas: Replicas
    evaluations: int
    ended: frozenset[str] = frozenset()
    stopped: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    skipped: bool = False
    watched_until: float = -inf

    @property
    def left(self) -> list[str]:
        return [job for job in self.order.jobs if job not in self.ended]

    @property
    def counted(self) -> bool:
        """Somebody counts what is done of it. Nobody does of what has no steps: it counts as begun."""
        return self.order.steps > 0

    @property
    def begun(self) -> bool:
        return not self.counted or bool(self.ended) or any(map(self.runs, self.order.jobs))

    @property
    def waits(self) -> bool:
        """Some job has not begun."""
        return self.counted and not all(map(self.runs, self.left))

    @property
    def shown(self) -> str | None:
        """The job whose preview is shown for all."""
        return next(filter(self.runs, self.left), None)

    def runs(self, job_id: str) -> bool:
        job = self.replicas.job(job_id)
        return job is not None and job.running

    def remaining(self, job_id: str) -> int:
        """Evaluations of a job that is left."""
        job = self.replicas.job(job_id)
        return max(0, job.total - job.done) if job else self.evaluations

    def stop(self, now: float, *, skip: bool) -> bool:
        """All jobs that are left, or, to `skip`, those that have begun. False if there are none."""
        jobs = [job for job in self.left if not skip or self.runs(job)]
        for job in jobs:
            self.stopped.setdefault(job, now)
        self.skipped |= bool(jobs) and skip
        self.interrupted |= bool(jobs) and not skip
        return bool(jobs)

    def progress(self, eta: float | None, place: int, places: int) -> OrderProgress:
        """`place` and `places` count while it is queued."""
        share = sum(map(self._made, self.order.jobs)) / max(1, len(self.order.jobs))
        count, steps = batches(self.order), self.order.steps
        batch = min(int(rounded(share * count)), count - 1)
        shown = self.replicas.job(self.shown or "")
        preview = shown.preview if shown else b""
        return OrderProgress(
            id=self.order.id,
            kind=self.order.kind,
            state="running" if self.begun else "queued",
            progress=min(1.0, 0.01 + share) if self.begun else 0.0,
            eta=eta,
            place=None if self.begun else place,
            places=None if self.begun else places,
            preview=preview,
            preview_id=crc32(preview),
            sampling_step=int(rounded((share * count - batch) * steps)),
            sampling_steps=steps,
            job_no=batch,
            job_count=count,
            timestamp=self.order.timestamp,
            interrupted=self.interrupted,
            skipped=self.skipped,
        )

    def _made(self, job_id: str) -> float:
        """The share of a job that is done."""
        if job_id in self.ended:
            return 1.0
        job = self.replicas.job(job_id)
        return min(1.0, job.done / job.total) if job and job.total else 0.0


def done(order: Order, *, interrupted: bool, skipped: bool) -> OrderProgress:
    """What is told of an order when it is closed."""
    count = batches(order)
    return OrderProgress(
        id=order.id,
        kind=order.kind,
        state="done",
        progress=1.0,
        eta=None,
        place=None,
        places=None,
        preview=b"",
        preview_id=0,
        sampling_step=order.steps,
        sampling_steps=order.steps,
        job_no=count - 1,
        job_count=count,
        timestamp=order.timestamp,
        interrupted=interrupted,
        skipped=skipped,
    )


def batches(order: Order) -> int:
    """One where nobody can tell."""
    return max(1, ceil(len(order.jobs) / max(1, order.batch_size)))


def rounded(value: float) -> float:
    """So that 2.9999999 is 3."""
    return round(value, 6)


class Orders:
    """All that are open. Lists are by arrival."""

    def __init__(self) -> None:
        self._of_job: dict[str, OpenOrder] = {}
        self._indexes = (
            _Index(lambda order: order.key),
            _Index(lambda order: (order.key, order.id)),
            _Index(lambda order: order.checkpoint),
        )

    def add(self, entry: OpenOrder) -> None:
        for index in self._indexes:
            index.add(entry)
        self._of_job |= dict.fromkeys(entry.order.jobs, entry)

    def remove(self, entry: OpenOrder) -> None:
        for index in self._indexes:
            index.remove(entry)
        for job in entry.order.jobs:
            self._of_job.pop(job, None)

    @property
    def jobs(self) -> KeysView[str]:
        return self._of_job.keys()

    def of_job(self, job_id: str) -> OpenOrder | None:
        return self._of_job.get(job_id)

    def of_caller(self, key: str, order_id: str | None) -> Sequence[OpenOrder]:
        """Those of this key and id; of this key, if the id is None."""
        by_key, by_id, _ = self._indexes
        return by_key[key] if order_id is None else by_id[key, order_id]

    def of_checkpoint(self, name: str) -> Sequence[OpenOrder]:
        return self._indexes[2][name]


class _Index:
    """Orders by something that they have in common."""

    def __init__(self, common: Callable[[Order], Hashable]) -> None:
        self._common = common
        self._orders: dict[Hashable, list[OpenOrder]] = defaultdict(list)

    def __getitem__(self, common: Hashable) -> Sequence[OpenOrder]:
        return self._orders.get(common, ())

    def add(self, entry: OpenOrder) -> None:
        insort(self._orders[self._common(entry.order)], entry, key=lambda each: each.arrived)

    def remove(self, entry: OpenOrder) -> None:
        common = self._common(entry.order)
        orders = self._orders[common]
        at = bisect_left(orders, entry.arrived, key=lambda each: each.arrived)
        del orders[orders.index(entry, at)]
        if not orders:
            del self._orders[common]
