"""The load generator against a server that answers after a while."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
import uvicorn
from tqdm import tqdm

from benchmarks.load import drive
from benchmarks.systems import System
from benchmarks.workloads import Request

SECONDS = 0.1


class App:
    """Draws `at_once` pictures at once. Knows how many requests it had, and how many clients left."""

    def __init__(self, status: int = 200, *, at_once: int = 100) -> None:
        self.most = self.now = self.left = 0
        self._status = status
        self._turns = asyncio.Semaphore(at_once)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.now += 1
        self.most = max(self.most, self.now)
        async with self._turns:
            await asyncio.sleep(SECONDS)
        self.now -= 1
        await send({"type": "http.response.start", "status": self._status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


class PatientApp(App):
    """Never answers."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.left += (await receive())["type"] == "http.disconnect"


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[System]:
    config = uvicorn.Config(app, lifespan="off", ws="none", log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve([listener]))
        port = listener.getsockname()[1]
        yield System("lock", f"http://127.0.0.1:{port}", "unused", psutil.Process())
        server.should_exit = True
        await task


@pytest.mark.parametrize("clients", [1, 3])
async def test_closed_loop_has_as_many_requests_at_once_as_clients(clients: int) -> None:
    app = App()
    async with serving(app) as system:
        outcomes = await drive(system, [Request({})] * 6, clients, tqdm(disable=True))
    assert app.most == clients
    assert [outcome.end for outcome in outcomes] == ["picture"] * 6


async def test_open_loop_sends_when_due_and_counts_the_time_in_the_servers_queue() -> None:
    app = App(at_once=1)
    requests = [Request({}, due=0.01 * i) for i in range(4)]
    async with serving(app) as system:
        outcomes = await drive(system, requests, None, tqdm(disable=True))
    assert app.most == 4
    assert outcomes[-1].seconds > 4 * SECONDS - requests[-1].due


async def test_halfway_comes_once_when_half_of_the_outcomes_are_there() -> None:
    bar = tqdm(disable=False, file=io.StringIO())
    seen = []

    async def halfway() -> None:
        seen.append(bar.n)

    async with serving(App()) as system:
        await drive(system, [Request({})] * 5, 1, bar, halfway=halfway)
    assert seen == [3]


async def test_who_leaves_closes_the_connection_and_is_no_failure() -> None:
    app = PatientApp()
    async with serving(app) as system:
        (outcome,) = await drive(system, [Request({}, leaves=SECONDS)], 1, tqdm(disable=True))
    assert outcome.end == "left"
    assert app.left == 1


async def test_an_error_is_a_failure() -> None:
    async with serving(App(500)) as system:
        (outcome,) = await drive(system, [Request({})], 1, tqdm(disable=True))
    assert outcome.end == "failed"
