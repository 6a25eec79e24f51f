"""The board as an actor, which all processes of the service share, and the way to it."""

import asyncio
import hashlib
import inspect
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from types import ModuleType
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

import engine.protocol
import ingress.backend
from deployments.board import board, orders, queues, replicas
from deployments.board.board import Board, OrderReport, Question, Told
from engine.protocol import JobProgress
from ingress.backend import OrderProgress

logger = logging.getLogger("ray.serve")

NAMESPACE = "atelier"
CALL_SECONDS = 2.0
"""A board that takes longer to answer counts as away."""
UNUSED_SECONDS = 600.0
"""A board that is not called for so long ends: the service is gone, or has another version of it."""


class BoardAway(Exception):
    """There is no board to be had now."""


class RemoteBoard(Protocol):
    """`Board`, elsewhere. Every call may raise BoardAway, soon."""

    async def report_orders(
        self, gateway: str, orders: Sequence[OrderReport], closed: Sequence[OrderReport]
    ) -> Told: ...

    async def report_jobs(
        self, replica: str, checkpoint: str, jobs: Collection[JobProgress], rate: float
    ) -> Told: ...

    async def progress(self, questions: Sequence[Question]) -> list[OrderProgress | None]: ...

    async def pending(self, key: str) -> list[str]: ...

    async def interrupt(self, key: str, order: str | None, skip: bool) -> int: ...


class BoardActor(Board):
    """In a process of its own, until nobody calls it."""

    def __init__(self) -> None:
        self._called_at = time.monotonic()
        super().__init__(self._clock_of_calls)
        self._itself = ray.get_runtime_context().current_actor
        threading.Thread(target=self._end_when_unused, daemon=True).start()

    def _clock_of_calls(self) -> float:
        self._called_at = time.monotonic()
        return self._called_at

    def _end_when_unused(self) -> None:
        while (left := self._called_at + UNUSED_SECONDS - time.monotonic()) > 0:
            time.sleep(left)
        ray.kill(self._itself, no_restart=True)


def find_actor() -> Any:
    """Its handle. The actor is made if there is none."""
    return (
        ray.remote(BoardActor)
        .options(
            name=f"board-{_version(board, orders, queues, replicas, engine.protocol, ingress.backend)}",
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=0,
        )
        .remote()
    )


def _version(*modules: ModuleType) -> str:
    """Of code that both sides of a call have to agree on: while it is being updated there are two boards."""
    sources = "".join(map(inspect.getsource, modules))
    return hashlib.sha256(sources.encode()).hexdigest()[:12]


class RayBoard:
    """The actor of this version of the code. It is away while it is found, or made, in the background."""

    def __init__(self, find: Callable[[], Any] = find_actor) -> None:
        """`find` returns the actor's handle, and may block."""
        self._find_actor = find
        self._actor: Any = None
        self._finding: asyncio.Task[None] | None = None

    async def report_orders(
        self, gateway: str, orders: Sequence[OrderReport], closed: Sequence[OrderReport]
    ) -> Told:
        told: Told = await self._call("report_orders", gateway, orders, closed)
        return told

    async def report_jobs(
        self, replica: str, checkpoint: str, jobs: Collection[JobProgress], rate: float
    ) -> Told:
        told: Told = await self._call("report_jobs", replica, checkpoint, jobs, rate)
        return told

    async def progress(self, questions: Sequence[Question]) -> list[OrderProgress | None]:
        answers: list[OrderProgress | None] = await self._call("progress", questions)
        return answers

    async def pending(self, key: str) -> list[str]:
        ids: list[str] = await self._call("pending", key)
        return ids

    async def interrupt(self, key: str, order: str | None, skip: bool) -> int:
        stopped: int = await self._call("interrupt", key, order, skip)
        return stopped

    async def _call(self, method: str, *args: object) -> Any:
        if self._actor is None:
            self._find()
            raise BoardAway
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await getattr(self._actor, method).remote(*args)
        except (RayError, TimeoutError) as error:
            logger.warning("the board is away: %s", str(error) or "it does not answer")
            self._actor = None
            self._find()
            raise BoardAway from error

    def _find(self) -> None:
        if self._finding is None or self._finding.done():
            self._finding = asyncio.get_running_loop().create_task(self._found())

    async def _found(self) -> None:
        try:
            self._actor = await asyncio.to_thread(self._find_actor)
        except Exception:
            logger.exception("the board is not to be had")
