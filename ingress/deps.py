"""What routes need, for FastAPI to hand to them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Annotated

from fastapi import Depends, Request

from ingress.backend import Backend
from ingress.settings import Settings
from ingress.store.database import Database
from ingress.store.orders import Orders
from ingress.store.pictures import PictureStore
from ingress.store.results import Results


@dataclass(frozen=True, slots=True)
class Service:
    backend: Backend
    settings: Settings
    database: Database
    orders: Orders
    results: Results
    random: Random
    now: Callable[[], datetime]
    """Local time."""
    pictures: PictureStore | None = None
    """Where pictures are saved."""


async def _service(request: Request) -> Service:
    """Not a plain function: FastAPI would call that in a thread, at every request."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def random_of(request: Request, service: Service) -> Random:
    """What draws for this request: at each attempt the same, if it has an Idempotency-Key."""
    random = getattr(request.state, "random", service.random)
    assert isinstance(random, Random)
    return random


def time_of(request: Request, service: Service) -> datetime:
    """When this request came, in local time: at each attempt the same, if it has an Idempotency-Key."""
    time = getattr(request.state, "now", None) or service.now()
    assert isinstance(time, datetime)
    return time


ServiceDep = Annotated[Service, Depends(_service)]
