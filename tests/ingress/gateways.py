"""Gateways over one database and one folder of results, as on one machine."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from random import SystemRandom
from types import MappingProxyType
from typing import Any

import httpx2
from sqlalchemy import ColumnElement

from engine.protocol import Enlargement, Job, JobResult
from ingress import generate, orders
from ingress.app import build_app
from ingress.deps import Service
from ingress.generate import Asked
from ingress.schemas import jobs
from ingress.settings import Key, OrderSettings, Settings
from ingress.store.database import Clock, Database
from ingress.store.orders import NewOrder, Orders, StoredOrder
from ingress.store.results import Results
from tests.ingress.fakes import FakeBackend, result


class HeldBackend(FakeBackend):
    """Jobs wait until they are let go. Remembers which were aborted, and how many ran at once."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.aborted: list[Job] = []
        self.running = self.most = 0

    async def run(self, job: Job | Enlargement) -> JobResult:
        assert isinstance(job, Job)
        self.jobs.append(job)
        self.begun.set()
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.aborted.append(job)
            raise
        finally:
            self.running -= 1
        return result(job)


def settings_in(folder: Path, **changes: Any) -> Settings:
    """Keys `a` and `b` are their own secrets. Keywords of orders' settings, and of the settings."""
    limits = {name: changes.pop(name) for name in [*changes] if name in OrderSettings.model_fields}
    keys = tuple(Key(id=id, sha256=hashlib.sha256(id.encode()).hexdigest()) for id in "ab")
    return Settings(
        keys=keys,
        database=f"sqlite:///{folder}/atelier.sqlite",
        results=str(folder / "results"),
        orders=OrderSettings(**limits),
        **changes,
    )


@asynccontextmanager
async def serving(
    backend: FakeBackend, settings: Settings, key: str = "a"
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a gateway that runs orders too."""
    app = build_app(backend, settings)
    headers = {"Authorization": f"Bearer {key}"}
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client,
    ):
        yield client


def service_of(
    backend: FakeBackend, settings: Settings, now: Callable[[], ColumnElement[float]] = Clock
) -> Service:
    """A gateway's inside, which runs nothing by itself."""
    database = Database(settings.database, now)
    return Service(
        backend=backend,
        settings=settings,
        database=database,
        orders=Orders(database, settings.orders),
        results=Results(settings.results),
        random=SystemRandom(),
        now=datetime.now,
    )


async def accepted(service: Service, key: str = "a", webhook: str | None = None, **body: object) -> str:
    """The id of an order with this body."""
    order = ordered(service, body, key, webhook)
    await service.orders.accept(order)
    return order.id


def ordered(
    service: Service,
    body: Mapping[str, object],
    key: str = "a",
    webhook: str | None = None,
    options: Mapping[str, object] = MappingProxyType({}),
) -> NewOrder:
    kind, _, request = jobs.read(dict(body))
    id = orders.random_id(service.random)
    name = generate.order_id(request, id)
    asked = Asked(id=name, key=key, options=options, random=service.random, now=service.now())
    return orders.new(id, kind, request, webhook, asked)


async def found(service: Service, id: str) -> StoredOrder:
    order = await service.orders.find(id)
    assert order is not None
    return order


async def until(condition: Callable[[], Awaitable[object] | object], seconds: float = 10) -> None:
    """TimeoutError if it does not come to hold."""
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if await holds if isinstance(holds, Awaitable) else holds:
                return
            await asyncio.sleep(0.01)


async def until_state(service: Service, id: str, *states: str) -> StoredOrder:
    async def is_there() -> bool:
        return (await found(service, id)).state in states

    await until(is_there)
    return await found(service, id)
