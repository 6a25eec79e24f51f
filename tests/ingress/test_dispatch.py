import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import datetime
from random import Random
from types import MappingProxyType

import pytest
import uvicorn
from starlette.types import Message

from engine.protocol import DeadlineExceeded, Enlargement, Interrupted, Job, JobFailed, JobResult
from ingress import dispatch, translate
from ingress.app import build_app
from ingress.backend import Order
from ingress.errors import ClientDisconnected
from ingress.schemas.sdapi import Txt2ImgRequest
from ingress.settings import Settings
from tests.ingress.fakes import CHECKPOINTS, FakeBackend, result

ORDER = Order(
    id="order",
    key="tests",
    kind="txt2img",
    checkpoint="demo",
    jobs=(),
    batch_size=1,
    steps=1,
    timestamp="20260101000000",
)


class SlowBackend(FakeBackend):
    """Jobs take `seconds` by seed, failing where `fail` says so. Remembers which were aborted."""

    def __init__(
        self, seconds: dict[int, float], failing: int | None = None, failure: Exception | None = None
    ) -> None:
        super().__init__()
        self.failure = failure or JobFailed("this one")
        self.seconds = MappingProxyType(seconds)
        self.failing = failing
        self.aborted: list[int] = []
        self.started = asyncio.Event()

    async def run(self, job: Job | Enlargement) -> JobResult:
        assert isinstance(job, Job)
        self.started.set()
        try:
            await asyncio.sleep(self.seconds.get(job.seed, 30))
        except asyncio.CancelledError:
            self.aborted.append(job.seed)
            raise
        if job.seed == self.failing:
            raise self.failure
        return result(job)


def jobs(count: int) -> list[Job]:
    request = Txt2ImgRequest(seed=0, batch_size=count)
    resolved = translate.resolve(request, CHECKPOINTS, Settings(auth="off"), Random(0), datetime(2026, 1, 1))
    return translate.jobs(resolved, Random(0))


async def connected() -> Message:
    await asyncio.sleep(30)
    raise AssertionError


async def leaves() -> Message:
    await asyncio.sleep(0.02)
    return {"type": "http.disconnect"}


async def test_results_come_in_the_order_of_the_jobs() -> None:
    backend = SlowBackend({0: 0.03, 1: 0.01, 2: 0.02})
    results = await dispatch.run(ORDER, jobs(3), backend, connected, 30)
    assert [one.seed for one in results] == [0, 1, 2]
    assert backend.aborted == []


async def test_the_first_failure_aborts_the_siblings() -> None:
    backend = SlowBackend({1: 0.01}, failing=1)
    with pytest.raises(JobFailed, match="this one"):
        await dispatch.run(ORDER, jobs(3), backend, connected, 30)
    assert sorted(backend.aborted) == [0, 2]


async def test_interrupted_jobs_leave_their_siblings_alone() -> None:
    backend = SlowBackend({0: 0.02, 1: 0.01, 2: 0.02}, failing=1, failure=Interrupted("stop"))
    results = await dispatch.run(ORDER, jobs(3), backend, connected, 30)
    assert [one.seed for one in results] == [0, 2]
    assert backend.aborted == []


async def test_the_deadline_aborts_all() -> None:
    backend = SlowBackend({0: 0.01})
    with pytest.raises(DeadlineExceeded, match=r"0\.05 seconds"):
        await dispatch.run(ORDER, jobs(3), backend, connected, 0.05)
    assert sorted(backend.aborted) == [1, 2]


async def test_a_client_that_disconnects_aborts_all() -> None:
    backend = SlowBackend({0: 0.01})
    with pytest.raises(ClientDisconnected):
        await dispatch.run(ORDER, jobs(3), backend, leaves, 30)
    assert sorted(backend.aborted) == [1, 2]


async def test_cancelling_the_caller_aborts_all() -> None:
    backend = SlowBackend({0: 0.01})
    running = asyncio.create_task(dispatch.run(ORDER, jobs(3), backend, connected, 30))
    await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(backend.aborted) == [1, 2]


@pytest.fixture
async def slow_server() -> AsyncIterator[tuple[SlowBackend, asyncio.Queue[int], int]]:
    backend, statuses = SlowBackend({}), asyncio.Queue[int]()

    def observe(*, route: str, model: str, status: int, seconds: float) -> None:
        statuses.put_nowait(status)

    app = build_app(backend, Settings(auth="off"), observe)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield backend, statuses, listener.getsockname()[1]
        server.should_exit = True
        await serving


async def test_a_client_that_hangs_up_on_a_real_server_aborts_its_jobs(
    slow_server: tuple[SlowBackend, asyncio.Queue[int], int],
) -> None:
    backend, statuses, port = slow_server
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"seed": 5, "batch_size": 2}'
    head = b"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    await asyncio.wait_for(backend.started.wait(), 5)
    assert backend.aborted == []
    writer.close()
    assert await asyncio.wait_for(statuses.get(), 5) == 499
    assert sorted(backend.aborted) == [5, 6]
