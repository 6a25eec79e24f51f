"""A board in the test's own process, and what is reported to it."""

from collections.abc import Collection, Sequence

from deployments.board.board import Board, OrderReport, Question, Told
from deployments.board.remote import BoardAway
from engine.protocol import JobProgress
from ingress.backend import Order, OrderProgress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class LocalBoard:
    """`board` as if it were elsewhere; away while that is None. Counts the calls that it answers."""

    def __init__(self, board: Board | None) -> None:
        self.board = board
        self.calls = 0

    def _called(self) -> Board:
        if self.board is None:
            raise BoardAway
        self.calls += 1
        return self.board

    async def report_orders(
        self, gateway: str, orders: Sequence[OrderReport], closed: Sequence[OrderReport]
    ) -> Told:
        return self._called().report_orders(gateway, orders, closed)

    async def report_jobs(
        self, replica: str, checkpoint: str, jobs: Collection[JobProgress], rate: float
    ) -> Told:
        return self._called().report_jobs(replica, checkpoint, jobs, rate)

    async def progress(self, questions: Sequence[Question]) -> list[OrderProgress | None]:
        return self._called().progress(questions)

    async def pending(self, key: str) -> list[str]:
        return self._called().pending(key)

    async def interrupt(self, key: str, order: str | None, skip: bool) -> int:
        return self._called().interrupt(key, order, skip)


def order(
    id: str, *, key: str = "me", jobs: int = 1, batch_size: int = 1, steps: int = 20, checkpoint: str = "demo"
) -> Order:
    """Its jobs are called after it: a-0, a-1."""
    return Order(
        id=id,
        key=key,
        kind="txt2img",
        checkpoint=checkpoint,
        jobs=tuple(f"{key}-{id}-{number}" for number in range(jobs)),
        batch_size=batch_size,
        steps=steps,
        timestamp="20260101000000",
    )


def report(
    order: Order, *, number: int = 0, seconds: float = 0.0, ended: Collection[str] = ()
) -> OrderReport:
    return OrderReport(order=order, number=number, seconds=seconds, ended=frozenset(ended))


def job(
    id: str, done: int = 0, total: int = 20, *, running: bool = True, preview: bytes = b""
) -> JobProgress:
    return JobProgress(
        job_id=id, done=done, total=total, running=running, preview=preview, preview_id=int(bool(preview))
    )
