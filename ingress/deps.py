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
from ingress.store.pictures import PictureStore


@dataclass(frozen=True, slots=True)
class Service:
    backend: Backend
    settings: Settings
    database: Database
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


ServiceDep = Annotated[Service, Depends(_service)]
