"""Load on one system, and what it made of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
from tqdm import tqdm

from benchmarks.systems import EngineCounts, Swaps, System, wait_whole
from benchmarks.workloads import Request

PATH = "/sdapi/v1/txt2img"
TIMEOUT_SECONDS = 1200
IDLE_SECONDS = 0.25
IDLE_CORES = 0.3
"""A system that computes less than this for so long has no request left. Ray alone takes up to half of it."""


@dataclass(frozen=True)
class Outcome:
    """What a request came to after so many seconds, `at` so many after the phase began."""

    kind: str
    seconds: float
    end: Literal["picture", "left", "failed"]
    at: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """One phase of load on one system. `seconds` to the last outcome, `cpu_seconds` until it was idle.

    `killed_at`: seconds after its beginning at which a replica died, if one did.
    """

    model: str
    workload: str
    level: float
    repeat: int
    system: str
    seconds: float
    cpu_seconds: float
    outcomes: tuple[Outcome, ...]
    engine: EngineCounts | None
    swaps: Swaps | None = None
    killed_at: float | None = None

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

    def rates_around(self, moment: float) -> tuple[float, float]:
        """Pictures a second before a moment of the phase, and after it."""
        before = sum(each.end == "picture" and each.at <= moment for each in self.outcomes)
        return before / moment, (self.pictures - before) / (self.seconds - moment)


@dataclass(frozen=True)
class Phase:
    """What is sent in one go, and the names to keep the figures under. If it `kills`, a replica dies when
    half of the requests have their outcome."""

    model: str
    workload: str
    level: float
    repeat: int
    requests: Sequence[Request]
    clients: int | None
    kills: bool = False


@dataclass(frozen=True)
class Killed:
    """A replica that was killed at a moment of the clock: what its system had counted, what it had used."""

    at: float
    engines: Mapping[str, EngineCounts] | None
    cpu_seconds: float


async def measure(system: System, phase: Phase, bar: "tqdm[Any]") -> Measurement:
    killed: list[Killed] = []

    async def halfway() -> None:
        killed.append(await asyncio.to_thread(kill_replica, system))

    before, swaps = system.engines(), system.swaps()
    cpu, began = system.cpu_seconds(), time.monotonic()
    outcomes = await drive(
        system, phase.requests, phase.clients, bar, halfway=halfway if phase.kills else None
    )
    seconds = time.monotonic() - began
    if any(outcome.end == "left" for outcome in outcomes):
        await idle(system)
    cpu = system.cpu_seconds() + sum(each.cpu_seconds for each in killed) - cpu
    after, swaps_after = system.engines(), system.swaps()
    last: dict[str, EngineCounts] = {}
    for engines in [*(each.engines for each in killed), after]:
        last |= engines or {}
    if killed:
        await restored(system)
    return Measurement(
        model=phase.model,
        workload=phase.workload,
        level=phase.level,
        repeat=phase.repeat,
        system=system.name,
        seconds=seconds,
        cpu_seconds=cpu,
        outcomes=tuple(outcomes),
        engine=EngineCounts.total(last.values()).since(EngineCounts.total(before.values()))
        if before
        else None,
        swaps=swaps_after.since(swaps) if swaps and swaps_after else None,
        killed_at=killed[0].at - began if killed else None,
    )


def kill_replica(system: System) -> Killed:
    """SIGKILL for the oldest one. What it counts between being asked and its end is lost with it."""
    engines = system.engines()
    victim = system.replica_processes()[0]
    times = victim.cpu_times()
    victim.kill()
    return Killed(time.monotonic(), engines, times.user + times.system)


async def drive(
    system: System,
    requests: Sequence[Request],
    clients: int | None,
    bar: "tqdm[Any]",
    *,
    halfway: Callable[[], Awaitable[None]] | None = None,
) -> list[Outcome]:
    """Send every request once, when it is due and one of the clients is free. `halfway` is awaited beside
    them, once half of them have their outcome.

    With clients, seconds count from when one of them took the request up; without, from when it was due,
    not from when it could be sent.
    """
    outcomes: list[Outcome] = []
    free = asyncio.Semaphore(clients or len(requests))

    async def one(request: Request, since: float) -> None:
        end = await send(client, system, request)
        now = time.monotonic()
        outcomes.append(Outcome(request.kind, now - since, end, at=now - began))
        free.release()
        bar.update()
        if halfway and len(outcomes) == (len(requests) + 1) // 2:
            await halfway()

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


async def restored(system: System) -> None:
    """Wait until a new replica has taken the place of the killed one, and has nothing left to do."""
    await asyncio.to_thread(wait_whole, system)
    await idle(system)
