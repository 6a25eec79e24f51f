"""A replica's part: it reports its jobs to the board, and does with them as it is told."""

from collections.abc import Collection, Sequence
from math import exp
from typing import Protocol

from deployments.board.board import IDLE_SECONDS
from deployments.board.remote import BoardAway, RemoteBoard
from deployments.board.reporting import Reporting
from deployments.metrics import EVALUATE
from engine.protocol import JobProgress, StepStats

RATE_SECONDS = 10.0
"""Of work, over which the rate of evaluations is averaged."""


class Rate:
    """Evaluations a second of work. One thread observes, any may read `value`: 0 before there is any."""

    def __init__(self) -> None:
        self.value = 0.0
        self._evaluations = 0.0
        self._seconds = 0.0

    def observe(self, stats: StepStats) -> None:
        kept = exp(-stats.seconds / RATE_SECONDS)
        self._seconds = self._seconds * kept + stats.seconds
        self._evaluations = self._evaluations * kept + (stats.jobs if stats.operation == EVALUATE else 0)
        if self._seconds:
            self.value = self._evaluations / self._seconds


class Jobs(Protocol):
    """`engine.worker.Worker`."""

    def progress(self) -> list[JobProgress]: ...

    def interrupt(self, job_ids: Collection[str]) -> None: ...

    def watch(self, job_ids: Collection[str]) -> None: ...


class ReplicaJobs:
    """`run` reports for as long as it runs. `wake` it when a job comes."""

    def __init__(self, replica: str, checkpoint: str, jobs: Jobs, rate: Rate, board: RemoteBoard) -> None:
        self._replica = replica
        self._checkpoint = checkpoint
        self._jobs = jobs
        self._rate = rate
        self._board = board
        self._reported: Sequence[JobProgress] = ()
        self._reporting = Reporting(self.report, self.is_busy, IDLE_SECONDS)
        self.run, self.wake = self._reporting.run, self._reporting.wake

    def is_busy(self) -> bool:
        """It has jobs, or has not yet reported that it has none any more."""
        return bool(self._reported or self._jobs.progress())

    async def report(self) -> float:
        """Once. Returns how many seconds to wait before the next time; may raise BoardAway."""
        self._reported = self._jobs.progress()
        try:
            told = await self._board.report_jobs(
                self._replica, self._checkpoint, self._reported, self._rate.value
            )
        except BoardAway:
            self._jobs.watch(())
            raise
        if told.interrupted:
            self._jobs.interrupt(told.interrupted)
        self._jobs.watch(told.watched)
        return told.wait
