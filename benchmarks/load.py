"""Load on one system, and what it made of it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
from tqdm import tqdm

from benchmarks.systems import EngineCounts, System
from benchmarks.workloads import Request

PATH = "/sdapi/v1/txt2img"
TIMEOUT_SECONDS = 1200
IDLE_SECONDS = 0.25
IDLE_CORES = 0.3
"""A system that computes less than this for so long has no request left. Ray alone takes up to half of it."""


@dataclass(frozen=True)
class Outcome:
    """What a request came to after so many seconds."""

    kind: str
    seconds: float
    end: Literal["picture", "left", "failed"]


@dataclass(frozen=True)
class Measurement:
    """One phase of load on one system. `seconds` to the last outcome, `cpu_seconds` until it was idle."""

    model: str
    workload: str
    level: float
    repeat: int
    system: str
    seconds: float
    cpu_seconds: float
    outcomes: tuple[Outcome, ...]
    engine: EngineCounts | None

    @property
    def pictures(self) -> int:
        return self.count("picture")

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / self.seconds

    @property
    def cpu_per_picture(self) -> float:
        return self.cpu_seconds / self.pictures if self.pictures else float("inf")

    def count(self, end: str) -> int:
        return sum(outcome.end == end for outcome in self.outcomes)

    def latencies(self) -> list[tuple[str, float]]:
        """Kind and seconds of each picture."""
        return [(each.kind, each.seconds) for each in self.outcomes if each.end == "picture"]


@dataclass(frozen=True)
class Phase:
    """What is sent in one go, and the names to keep the figures under."""

    model: str
    workload: str
    level: float
    repeat: int
    requests: Sequence[Request]
    clients: int | None


async def measure(system: System, phase: Phase, bar: "tqdm[Any]") -> Measurement:
    before, cpu, began = system.engine(), system.cpu_seconds(), time.monotonic()
    outcomes = await drive(system, phase.requests, phase.clients, bar)
    seconds = time.monotonic() - began
    if any(outcome.end == "left" for outcome in outcomes):
        await idle(system)
    cpu = system.cpu_seconds() - cpu
    after = system.engine()
    return Measurement(
        model=phase.model,
        workload=phase.workload,
        level=phase.level,
        repeat=phase.repeat,
        system=system.name,
        seconds=seconds,
        cpu_seconds=cpu,
        outcomes=tuple(outcomes),
        engine=after.since(before) if before and after else None,
    )


async def drive(
    system: System, requests: Sequence[Request], clients: int | None, bar: "tqdm[Any]"
) -> list[Outcome]:
    """Send every request once, when it is due and one of the clients is free.

    With clients, seconds count from when one of them took the request up; without, from when it was due,
    not from when it could be sent.
    """
    outcomes: list[Outcome] = []
    free = asyncio.Semaphore(clients or len(requests))

    async def one(request: Request, since: float) -> None:
        end = await send(client, system, request)
        outcomes.append(Outcome(request.kind, time.monotonic() - since, end))
        free.release()
        bar.update()

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        base_url=system.url, headers=system.headers, timeout=TIMEOUT_SECONDS, limits=limits
    ) as client:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for request in requests:
                await asyncio.sleep(max(0.0, began + request.due - time.monotonic()))
                await free.acquire()
                group.create_task(one(request, time.monotonic() if clients else began + request.due))
    return outcomes


async def send(
    client: httpx2.AsyncClient, system: System, request: Request
) -> Literal["picture", "left", "failed"]:
    """Who leaves closes the connection."""
    try:
        async with asyncio.timeout(request.leaves):
            answer = await client.post(PATH, json=system.words(request.body))
    except TimeoutError:
        return "left"
    except httpx2.HTTPError:
        return "failed"
    return "picture" if answer.status_code == 200 else "failed"


async def idle(system: System) -> None:
    """Wait until nothing is left of the requests whose clients have gone."""
    while True:
        cpu = system.cpu_seconds()
        await asyncio.sleep(IDLE_SECONDS)
        if system.cpu_seconds() - cpu < IDLE_CORES * IDLE_SECONDS:
            return
