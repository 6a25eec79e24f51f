"""What the ingress needs of whatever runs its jobs. Real: Ray handles. Fake: five lines in the tests."""

from collections.abc import Sequence
from typing import Protocol

from engine.protocol import Checkpoint, Job, JobResult


class Backend(Protocol):
    def checkpoints(self) -> Sequence[Checkpoint]:
        """Every configured checkpoint, the default first. Cheap: no I/O."""

    async def run(self, job: Job) -> JobResult:
        """Run one job to its end, wherever and however often that takes.

        Cancelling the call aborts the job. Raises the errors of `engine.protocol`.
        """

    async def metrics(self) -> str:
        """The metrics of every process of the service, in Prometheus' text format."""


class RequestObserver(Protocol):
    def __call__(self, *, route: str, model: str, status: int, seconds: float) -> None:
        """Called once per HTTP request, after its answer. `route` is the template, never the raw path;
        `model` is a configured checkpoint's name or empty."""
