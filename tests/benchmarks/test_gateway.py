"""What a request costs the gateway: the clients against the real HTTP side, and the arithmetic."""

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from benchmarks.gateway import Load, Measurement, call, clients, needs
from benchmarks.instant import InstantBackend
from ingress.app import build_app
from ingress.settings import Key, Settings

SECRET = "secret"


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    settings = Settings(keys=(Key(id="test", sha256=hashlib.sha256(SECRET.encode()).hexdigest()),))
    config = uvicorn.Config(build_app(InstantBackend(), settings), lifespan="on", log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve([listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


async def test_each_client_sends_one_request_after_the_other() -> None:
    async with serving() as port:
        began = time.monotonic()
        answers = await clients(port, call(SECRET, 1000), 2, began + 0.3)
    assert len(answers) >= 4
    assert sum(seconds for _, seconds in answers) <= 2 * (time.monotonic() - began)


async def test_what_is_no_picture_ends_the_measurement() -> None:
    async with serving() as port:
        with pytest.raises(ExceptionGroup) as failures:
            await clients(port, call("wrong", 1000), 1, time.monotonic() + 0.3)
    assert failures.group_contains(RuntimeError, match="401")


def test_gateways_and_proxies_are_as_many_as_keep_below_the_share_of_a_core() -> None:
    cpu = {"gateway": 0.012, "proxy": 0.006, "replica": 1.0}
    row = needs(Measurement("serve", 500_000, Load(16, 15), [0.1], cpu), "SDXL", 1.0)
    assert row == "| SDXL | 1 | 1000 | serve | 500 | 20 | 10 | 18 |"
