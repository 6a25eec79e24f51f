"""Ingress' backend over Serve's handles: a job is sent to a replica, and again if that replica is lost."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import grpc
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.board.board import Question
from deployments.board.gateway import GatewayOrders
from deployments.board.questions import Questions
from deployments.board.remote import BoardAway, RemoteBoard
from deployments.config import DIFFUSION, GATEWAY, CheckpointEntry, GatewayConfig, Offer
from deployments.metrics import GatewayMetrics, merge
from engine.protocol import (
    AtelierError,
    Checkpoint,
    DeadlineExceeded,
    DeviceMemory,
    EmbeddingFile,
    Enlargement,
    FolderKind,
    Job,
    JobFailed,
    JobResult,
    LoraFile,
    NotOffered,
    Overloaded,
    Unavailable,
    UpscalerFile,
    VaeFile,
)
from ingress.backend import Order, OrderProgress

logger = logging.getLogger("ray.serve")

LOST = (RayError, grpc.aio.AioRpcError)
"""What a call raises that was accepted and not answered: the replica, its node or the way to it is gone."""

BROADCAST_SECONDS = 2.0
REFRESH_SECONDS = 30.0
"""Files that are new are read then."""

File = TypeVar("File", LoraFile, UpscalerFile, VaeFile)


class ReplicaLost(Exception):
    """The replica died, or cannot be reached, with the job in it."""


class Availability(Protocol):
    def takes_jobs(self, application: str) -> bool: ...

    def sha256(self, application: str) -> str: ...


class RetryBudget:
    """Retries are at most a fifth of the jobs and ten a second more, in bursts of up to a hundred.

    So a fleet that dies of its jobs is not given each of them again and again.
    """

    BURST = 100.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = self.BURST
        self._filled_at = clock()

    def deposit(self) -> None:
        self._left = min(self.BURST, self._left + 0.2)

    def take(self) -> bool:
        now = self._clock()
        self._left = min(self.BURST, self._left + 10.0 * (now - self._filled_at))
        self._filled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class HandleBackend:
    """`application` is the gateway's own. `get_handle(deployment, application)` is cheap, and asks nobody
    whether the deployment exists."""

    def __init__(
        self,
        config: GatewayConfig,
        application: str,
        get_handle: Callable[[str, str], Any],
        availability: Availability,
        metrics: GatewayMetrics,
        board: RemoteBoard,
    ) -> None:
        self._config = config
        self._application = application
        self._get_handle = get_handle
        self._availability = availability
        self._metrics = metrics
        self._budget = RetryBudget()
        self._entries: dict[str, CheckpointEntry] = {}
        self._board = board
        self._orders = GatewayOrders(board)
        self._questions = Questions(board)

    async def report(self) -> None:
        """Tell the board of the open orders, for ever. Without that they run, and nobody knows how far."""
        await self._orders.run()

    def offer(self, offer: Offer) -> None:
        self._entries = {entry.name: entry for entry in offer.checkpoints}

    def checkpoints(self) -> Sequence[Checkpoint]:
        return [
            Checkpoint(
                name=entry.name,
                filename=entry.filename,
                sha256=self._availability.sha256(entry.application),
                available=not entry.companion and self._availability.takes_jobs(entry.application),
                companion=entry.companion,
            )
            for entry in self._entries.values()
        ]

    def opened(self, order: Order) -> AbstractContextManager[None]:
        return self._orders.opened(order)

    async def run(self, job: Job | Enlargement) -> JobResult:
        started = time.monotonic()
        limit = self._config.limits.deadline_seconds
        job = replace(job, seconds_left=min(job.seconds_left, limit))
        self._budget.deposit()
        try:
            async with asyncio.timeout(limit), self._orders.calling(job.id):
                result = await self._run_until_done(job, started)
        except TimeoutError:
            raise DeadlineExceeded("The image was not done in time.") from None
        self._metrics.observe_job(job.checkpoint, time.monotonic() - started, result)
        return result

    async def caption(self, image: bytes) -> str:
        """One checkpoint after the other is asked: those without a captioner say so at once."""
        missing: AtelierError = Unavailable("No checkpoint is available now.", 5.0)
        for entry in self._entries.values():
            if self._availability.takes_jobs(entry.application):
                try:
                    caption: str = await self._call(entry, "caption", image)
                except NotOffered as error:
                    missing = error
                except ReplicaLost:
                    raise Unavailable("The replica that looked at the picture was lost.", 1.0) from None
                else:
                    return caption
        raise missing

    async def progress(self, key: str, order: str | None, *, preview: bool) -> OrderProgress | None:
        return await self._questions.ask(Question(key, order, preview))

    async def pending(self, key: str) -> Sequence[str]:
        try:
            return await self._board.pending(key)
        except BoardAway:
            return []

    async def interrupt(self, key: str, order: str | None, *, skip: bool = False) -> int:
        try:
            return await self._board.interrupt(key, order, skip)
        except BoardAway:
            raise Unavailable("Nothing can be interrupted at this moment.", 2.0) from None

    async def metrics(self) -> str:
        gateways, replicas = await asyncio.gather(
            broadcast(self._get_handle(GATEWAY, self._application), "metrics_text"),
            self._ask_replicas("metrics_text"),
        )
        return merge([*gateways, *replicas])

    async def loras(self) -> Sequence[LoraFile]:
        return _named_once(await self._ask_replicas("loras"))

    async def refresh(self, kind: FolderKind) -> None:
        await self._ask_replicas("refresh", kind, seconds=REFRESH_SECONDS)

    async def memory(self) -> Sequence[DeviceMemory]:
        return [memory for memory in await self._ask_replicas("memory") if memory]

    async def embeddings(self) -> Sequence[EmbeddingFile]:
        files = [file for replica in await self._ask_replicas("embeddings") for file in replica]
        found: dict[str, EmbeddingFile] = {}
        for file in sorted(files, key=lambda file: (not file.usable, file.name.casefold())):
            found.setdefault(file.name, file)
        return list(found.values())

    async def upscalers(self) -> Sequence[UpscalerFile]:
        return _named_once(await self._ask_replicas("upscalers"))

    async def vaes(self) -> Sequence[VaeFile]:
        return _named_once(await self._ask_replicas("vaes"))

    async def _ask_replicas(
        self, method: str, *args: object, seconds: float = BROADCAST_SECONDS
    ) -> list[Any]:
        """What the replicas answer, those of the first checkpoint first."""
        running = {
            entry.application: self._get_handle(DIFFUSION, entry.application)
            for entry in self._entries.values()
            if self._availability.takes_jobs(entry.application)
        }
        answers = await asyncio.gather(
            *(broadcast(handle, method, *args, seconds=seconds) for handle in running.values())
        )
        return [answer for replicas in answers for answer in replicas]

    async def _run_until_done(self, job: Job | Enlargement, started: float) -> JobResult:
        """A job that a replica had accepted is not turned away later, when it comes again."""
        losses = 0
        while True:
            try:
                spent = time.monotonic() - started
                return await self._run_once(replace(job, seconds_left=job.seconds_left - spent))
            except ReplicaLost:
                losses += 1
                self._may_retry(job, losses)
            except Overloaded:
                if losses == 0:
                    raise
            await asyncio.sleep(random.uniform(0, 0.05 * 2**losses))

    def _may_retry(self, job: Job | Enlargement, losses: int) -> None:
        if losses == self._config.max_losses:
            logger.error("job %s was lost with %d replicas", job.id, losses)
            raise JobFailed("The image was given up: each replica that worked on it was lost.")
        if not self._budget.take():
            raise Unavailable("Too many replicas were lost in a short time.", 5.0)
        logger.warning("job %s was lost with its replica and is sent again", job.id)
        self._metrics.count_retry(job.checkpoint)

    async def _run_once(self, job: Job | Enlargement) -> JobResult:
        entry = self._entries.get(job.checkpoint)
        if entry is None or not self._availability.takes_jobs(entry.application):
            raise Unavailable(f"The checkpoint {job.checkpoint!r} is not available now.", 5.0)
        result: JobResult = await self._call(entry, "run", job)
        return result

    async def _call(self, entry: CheckpointEntry, method: str, argument: object) -> Any:
        """What a replica's method answers. Cancelling the call ends it there too."""
        handle = self._get_handle(DIFFUSION, entry.application)
        response = getattr(handle, method).remote(argument)
        try:
            return await _answer(response)
        except asyncio.CancelledError:
            response.cancel()
            raise


def _named_once(replicas: Sequence[Sequence[File]]) -> list[File]:
    """The files of all replicas by name; of two with the same, the first."""
    found: dict[str, File] = {}
    for files in replicas:
        for file in files:
            found.setdefault(file.name, file)
    return sorted(found.values(), key=lambda file: file.name.casefold())


async def broadcast(handle: Any, method: str, *args: object, seconds: float = BROADCAST_SECONDS) -> list[Any]:
    """What each replica answers, of those that do in time."""
    try:
        answers = await handle.broadcast(method, *args).results_async(
            timeout_s=seconds, return_exceptions=True
        )
    except (TimeoutError, DeploymentUnavailableError, *LOST):
        return []
    return [answer for answer in answers if not isinstance(answer, BaseException)]


async def _answer(response: Awaitable[Any]) -> Any:
    """The result of a call, or an error of the protocol, or ReplicaLost. Ray's own texts end here."""
    try:
        return await response
    except BackPressureError as error:
        raise Overloaded("All replicas are busy.", error.retry_after_s or 1.0) from None
    except DeploymentUnavailableError:
        raise Unavailable("The checkpoint is not available now.", 5.0) from None
    except RayTaskError as error:
        if isinstance(error.cause, Unavailable):
            raise ReplicaLost from None
        if isinstance(error.cause, AtelierError):
            raise error.cause from None
        logger.exception("a job failed with an error that is not its own")
        raise JobFailed("The image failed inside the service.") from None
    except LOST as error:
        raise ReplicaLost from error
