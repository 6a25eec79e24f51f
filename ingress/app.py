"""The HTTP side, put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from random import SystemRandom

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.middleware import Middleware

from ingress.auth import Authentication
from ingress.backend import Backend, RequestObserver
from ingress.deps import Service
from ingress.errors import add_error_handlers
from ingress.idempotency import Idempotency, Unattended
from ingress.middleware import BodyLimit, RequestContext
from ingress.routes import health, operations, options, sdapi
from ingress.settings import Settings
from ingress.store.answers import Answers
from ingress.store.database import Database


def build_app(backend: Backend, settings: Settings, observe: RequestObserver | None = None) -> FastAPI:
    """The ASGI application. `observe` is told of every request when it has been answered."""
    locked = settings.auth == "keys"
    database = Database(settings.database)
    answers = Answers(database, settings.answers_seconds, settings.answers_mb * 2**20)
    unattended = Unattended()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tending = asyncio.create_task(answers.tend())
        yield
        tending.cancel()
        await unattended.close()
        await database.close()

    app = FastAPI(
        title="Atelier",
        lifespan=lifespan,
        middleware=[
            Middleware(RequestContext, observe=observe),
            *([Middleware(Authentication, keys=settings.keys)] if locked else []),
            Middleware(BodyLimit, max_bytes=settings.limits.max_body_bytes),
            Middleware(
                Idempotency,
                answers=answers,
                unattended=unattended,
                wait_seconds=settings.limits.deadline_seconds,
            ),
        ],
        # Documents the key for /docs; the middleware alone decides.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if locked else [],
        strict_content_type=False,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = Service(backend, settings, database, SystemRandom(), datetime.now)
    for prefix in ("/v1/sdapi/v1", "/sdapi/v1"):
        sdapi.add_routes(app, prefix)
        options.add_routes(app, prefix)
    health.add_routes(app)
    operations.add_routes(app)
    add_error_handlers(app)
    return app
