"""A gateway's part: it reports the orders that it has open to the board, and stops jobs as it is told."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from uuid import uuid4

from deployments.board.board import MOST_REMEMBERED, OrderReport
from deployments.board.remote import RemoteBoard
from deployments.board.reporting import Reporting
from engine.protocol import Interrupted
from ingress.backend import Order


@dataclass(slots=True)
class _Opened:
    order: Order
    opened_at: float
    ended: set[str] = field(default_factory=set)


class GatewayOrders:
    """`run` reports for as long as it runs. Orders never wait for that."""

    def __init__(self, board: RemoteBoard, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = uuid4().hex
        self._board = board
        self._clock = clock
        self._numbers = count()
        self._open: dict[int, _Opened] = {}
        self._closed: dict[int, _Opened] = {}
        self._of_job: dict[str, _Opened] = {}
        self._calls: dict[str, asyncio.Timeout] = {}
        self._reporting = Reporting(self.report, lambda: bool(self._open or self._closed))
        self.run = self._reporting.run

    @contextmanager
    def opened(self, order: Order) -> Iterator[None]:
        number, opened = next(self._numbers), _Opened(order, self._clock())
        self._open[number] = opened
        self._of_job |= dict.fromkeys(order.jobs, opened)
        self._reporting.wake()
        try:
            yield
        finally:
            self._closed[number] = self._open.pop(number)
            if len(self._closed) > MOST_REMEMBERED:  # no board for long
                del self._closed[next(iter(self._closed))]
            for job in order.jobs:
                self._of_job.pop(job, None)
            self._reporting.wake()

    @asynccontextmanager
    async def calling(self, job_id: str) -> AsyncIterator[None]:
        """While a job is waiting for a replica or in one. Raises Interrupted if it is to stop."""
        try:
            async with asyncio.timeout(None) as call:
                self._calls[job_id] = call
                yield
        except TimeoutError:
            if call.expired():
                raise Interrupted("The image was interrupted before it was begun.") from None
            raise
        finally:
            self._calls.pop(job_id, None)
            if opened := self._of_job.get(job_id):
                opened.ended.add(job_id)

    async def report(self) -> float:
        """Once. Returns how many seconds to wait before the next time; may raise BoardAway."""
        now, closed = self._clock(), dict(self._closed)
        told = await self._board.report_orders(
            self._name,
            [_report_of(number, opened, now) for number, opened in self._open.items()],
            [_report_of(number, opened, now) for number, opened in closed.items()],
        )
        for number in closed:
            self._closed.pop(number, None)
        for job in told.interrupted:
            call = self._calls.get(job)
            if call and not call.expired():
                call.reschedule(0)
        return told.wait


def _report_of(number: int, opened: _Opened, now: float) -> OrderReport:
    seconds, ended = now - opened.opened_at, frozenset(opened.ended)
    return OrderReport(order=opened.order, number=number, seconds=seconds, ended=ended)
