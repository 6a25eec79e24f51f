"""What is known of all orders of the service: how far they are, who waits, what is to stop, who is watched.

Pure policy, without Ray. Gateways report their orders and replicas their jobs, all of them, again and again;
what nobody reports any more is forgotten. So a board may be lost at any time: the next one knows all again
after the next reports, but for what it was told to stop or to watch.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deployments.board.orders import OpenOrder, Orders, done
from deployments.board.queues import Queue
from deployments.board.replicas import Replicas
from engine.protocol import JobProgress
from ingress.backend import Order, OrderProgress

SHORTEST_SECONDS = 0.25
"""From one report of a gateway or a replica to its next."""
REPORTS_PER_SECOND = 600
"""Of all of them together. An actor answers some 1,000 calls a second, and there are questions too."""
JOBS_PER_SECOND = 20_000
"""Of open orders, in those reports."""
IDLE_SECONDS = 20.0
"""After so long, a replica without jobs reports again."""
SILENT_SECONDS = 5.0
"""Who is silent for so long, and three times the pause that it was told, is forgotten."""
WATCHED_SECONDS = 10.0
"""A question with a preview has previews made for so long."""
REMEMBERED_SECONDS = 60.0
MOST_REMEMBERED = 1000
"""Orders that are done."""
QUEUE_SECONDS = 0.2
"""What is known of a checkpoint's queue may be so old, or SHARE times as old as finding out took."""
SHARE = 20
SWEEP_SECONDS = 1.0


class Question(NamedTuple):
    """About the order of this id, or the oldest that runs, of this key. `preview`: one is wanted."""

    key: str
    order: str | None
    preview: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderReport:
    """An order as its gateway knows it, under a `number` that the gateway gave it. It has been open for
    `seconds`; `ended` are the jobs that are done, have failed or were stopped."""

    order: Order
    number: int
    seconds: float
    ended: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The answer to a report: which of the reporter's jobs are to be interrupted, of which previews are
    wanted, and how many seconds to wait before the next report."""

    interrupted: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()
    wait: float


@dataclass(slots=True)
class _Gateway:
    orders: dict[int, OpenOrder]
    until: float


class Board:
    """`clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._swept_at = clock()
        self._orders = Orders()
        self._replicas = Replicas()
        self._gateways: dict[str, _Gateway] = {}
        self._queues: dict[str, tuple[float, Queue]] = {}
        self._done: OrderedDict[tuple[str, str | None], tuple[float, OrderProgress]] = OrderedDict()
        self._interrupts: deque[tuple[float, str, str | None]] = deque()

    def report_orders(
        self, gateway: str, orders: Sequence[OrderReport], closed: Sequence[OrderReport]
    ) -> Told:
        """All the orders that a gateway has open, and those that it has closed since it last reported."""
        now = self._now()
        known = self._gateways[gateway].orders if gateway in self._gateways else {}
        for each in closed:
            self._remember(each.order, known.get(each.number), now)
        current = {each.number: known.get(each.number) or self._open(each, now) for each in orders}
        for each in orders:
            current[each.number].ended = each.ended
        for number in known.keys() - current.keys():
            self._close(known[number])
        if current:
            self._gateways[gateway] = _Gateway(current, now + self._lease())
        else:
            self._gateways.pop(gateway, None)
        interrupted = [job for order in current.values() for job in self._nowhere(order, now)]
        return Told(interrupted=tuple(interrupted), wait=self._wait())

    def report_jobs(self, replica: str, checkpoint: str, jobs: Collection[JobProgress], rate: float) -> Told:
        """All the jobs that a replica has, and how many evaluations it makes in a second of work: 0 if it has
        not measured that yet."""
        now = self._now()
        until = now + self._lease() + (0 if jobs else 2 * IDLE_SECONDS)
        self._replicas.report(replica, checkpoint, jobs, rate=rate, open_jobs=self._orders.jobs, until=until)
        interrupted, watched = [], []
        for job in jobs:
            order = self._orders.of_job(job.job_id)
            if order is None:
                continue
            if job.job_id in order.stopped:
                interrupted.append(job.job_id)
            else:
                order.evaluations = job.total
            if order.watched_until > now and order.shown == job.job_id:
                watched.append(job.job_id)
        return Told(interrupted=tuple(interrupted), watched=tuple(watched), wait=self._wait())

    def progress(self, questions: Sequence[Question]) -> list[OrderProgress | None]:
        """None for what is not known. Of several orders of one id, the oldest that runs."""
        now = self._now()
        return [self._answer(question, now) for question in questions]

    def pending(self, key: str) -> list[str]:
        """The ids of the key's orders of which no job has begun, by arrival."""
        self._now()
        return [each.order.id for each in self._orders.of_caller(key, None) if not each.begun]

    def interrupt(self, key: str, order: str | None, skip: bool) -> int:
        """Stop the key's order of this id, or all of them, and say how many. `skip`: only what has begun.

        Counts for orders too that are open by now and not reported yet.
        """
        now = self._now()
        if not skip:
            self._interrupts.append((now, key, order))
        return sum(each.stop(now, skip=skip) for each in self._orders.of_caller(key, order))

    def _now(self) -> float:
        now = self._clock()
        if now >= self._swept_at + SWEEP_SECONDS:
            self._swept_at = now
            self._sweep(now)
        return now

    def _sweep(self, now: float) -> None:
        self._replicas.sweep(now)
        for name in [name for name, gateway in self._gateways.items() if gateway.until < now]:
            for order in self._gateways.pop(name).orders.values():
                self._close(order)
        for name in [name for name, (until, _) in self._queues.items() if until < now]:
            del self._queues[name]
        while self._done and next(iter(self._done.values()))[0] < now:
            self._done.popitem(last=False)
        while self._interrupts and self._interrupts[0][0] < now - self._lease():
            self._interrupts.popleft()

    def _wait(self) -> float:
        reporters, jobs = len(self._gateways) + self._replicas.busy, len(self._orders.jobs)
        return max(SHORTEST_SECONDS, reporters / REPORTS_PER_SECOND, jobs / JOBS_PER_SECOND)

    def _lease(self) -> float:
        return 3 * self._wait() + SILENT_SECONDS

    def _open(self, report: OrderReport, now: float) -> OpenOrder:
        order = OpenOrder(
            order=report.order,
            arrived=now - report.seconds,
            replicas=self._replicas,
            evaluations=report.order.steps,
        )
        self._orders.add(order)
        for at, key, order_id in self._interrupts:
            if at >= order.arrived and key == order.order.key and order_id in (None, order.order.id):
                order.stop(now, skip=False)
        return order

    def _close(self, order: OpenOrder) -> None:
        self._orders.remove(order)
        self._replicas.forget(order.order.jobs)

    def _remember(self, order: Order, seen: OpenOrder | None, now: float) -> None:
        told = done(
            order,
            interrupted=seen is not None and seen.interrupted,
            skipped=seen is not None and seen.skipped,
        )
        self._done.pop((order.key, order.id), None)
        self._done[order.key, order.id] = now + REMEMBERED_SECONDS, told
        if len(self._done) > MOST_REMEMBERED:
            self._done.popitem(last=False)

    def _nowhere(self, order: OpenOrder, now: float) -> list[str]:
        """Jobs that are to stop, and that no replica has: one that had would have reported it since."""
        told_by = now - 2 * self._wait()
        return [
            job
            for job, since in order.stopped.items()
            if since <= told_by and job not in order.ended and self._replicas.job(job) is None
        ]

    def _answer(self, question: Question, now: float) -> OrderProgress | None:
        key, order_id, preview = question
        orders = self._orders.of_caller(key, order_id)
        if not orders:
            return self._done.get((key, order_id), (0.0, None))[1]
        order = next((each for each in orders if each.begun), orders[0])
        if preview:
            order.watched_until = now + WATCHED_SECONDS
        queue = self._queue(order.order.checkpoint, now)
        return order.progress(queue.eta(order), *queue.place(order))

    def _queue(self, checkpoint: str, now: float) -> Queue:
        until, queue = self._queues.get(checkpoint, (0.0, None))
        if queue is None or until < now:
            queue = Queue.of(self._orders.of_checkpoint(checkpoint), self._replicas.throughput(checkpoint))
            took = self._clock() - now
            self._queues[checkpoint] = now + max(QUEUE_SECONDS, SHARE * took), queue
        return queue
