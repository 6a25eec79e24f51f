"""The HTTP side, put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from random import SystemRandom

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ingress.auth import Authentication
from ingress.backend import Backend, RequestObserver
from ingress.deps import Service
from ingress.errors import add_error_handlers
from ingress.idempotency import Idempotency, Unattended
from ingress.janitor import Janitor
from ingress.middleware import BodyLimit, Options, RequestContext
from ingress.outbound import Outbound
from ingress.routes import (
    absent,
    health,
    images,
    jobs,
    lists,
    machines,
    operations,
    options,
    progress,
    sdapi,
)
from ingress.runner import Runner
from ingress.scopes import check_routes
from ingress.settings import CorsOrigins, Settings
from ingress.store.answers import Answers
from ingress.store.database import Database
from ingress.store.orders import Orders
from ingress.store.pictures import PictureStore
from ingress.store.results import Results
from ingress.webhooks import Courier

EXPOSED_HEADERS = (
    "ETag",
    "Idempotent-Replayed",
    "Location",
    "Retry-After",
    "X-Process-Time",
    "X-Request-Id",
    "X-Should-Retry",
    "X-Task-Id",
    "X-Warnings",
)


def build_app(backend: Backend, settings: Settings, observe: RequestObserver | None = None) -> FastAPI:
    """The ASGI application. `observe` is told of every request when it has been answered.

    While its lifespan lasts, stored orders are run. Raises ValueError, naming the key, for a setting that
    cannot be used.
    """
    service = _service(backend, settings)
    answers = Answers(service.database, settings.answers_seconds, settings.answers_mb * 2**20)
    unattended = Unattended()
    app = FastAPI(
        title="Atelier",
        middleware=[
            *([_cors(settings.cors_origins)] if settings.cors_origins else []),
            Middleware(RequestContext, observe=observe),
            Middleware(Options),
            *([Middleware(Authentication, keys=settings.keys)] if settings.auth == "keys" else []),
            Middleware(BodyLimit, max_bytes=settings.limits.max_body_bytes),
            Middleware(
                Idempotency,
                answers=answers,
                unattended=unattended,
                wait_seconds=settings.limits.deadline_seconds,
            ),
        ],
        strict_content_type=False,
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lambda app: _running(service, answers, unattended),
    )
    app.state.service = service
    for prefix in ("/v1", ""):
        sdapi.add_routes(app, f"{prefix}/sdapi/v1")
        images.add_routes(app, f"{prefix}/sdapi/v1")
        lists.add_routes(app, f"{prefix}/sdapi/v1")
        machines.add_routes(app, f"{prefix}/sdapi/v1")
        options.add_routes(app, f"{prefix}/sdapi/v1")
        absent.add_sdapi_routes(app, f"{prefix}/sdapi/v1")
        progress.add_routes(app, prefix)
    jobs.add_routes(app)
    health.add_routes(app)
    operations.add_routes(app)
    for prefix in ("", "/v1"):
        absent.add_root_routes(app, prefix)
    add_error_handlers(app)
    check_routes(app)
    return app


def _service(backend: Backend, settings: Settings) -> Service:
    database = Database(settings.database)
    return Service(
        backend=backend,
        settings=settings,
        database=database,
        orders=Orders(database, settings.orders),
        results=Results(settings.results),
        random=SystemRandom(),
        now=datetime.now,
        pictures=PictureStore(settings.save_dir) if settings.save_dir else None,
    )


@asynccontextmanager
async def _running(service: Service, answers: Answers, unattended: Unattended) -> AsyncIterator[None]:
    """What a gateway does besides answering, from its start to its end."""
    runner = Runner(service)
    courier = Courier(service, Outbound(service.settings.webhook_networks))
    loops = (runner.run(), courier.run(), Janitor(service).run(), answers.tend())
    running = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        try:
            await unattended.close()
            await runner.release()
        finally:
            await service.database.close()


def _cors(origins: CorsOrigins) -> Middleware:
    """What A1111 allows: all methods and headers. Outermost, so that pages can read every error."""
    listed = () if isinstance(origins, str) else origins
    return Middleware(
        CORSMiddleware,
        allow_origins=listed,
        allow_origin_regex=origins if isinstance(origins, str) else None,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_credentials="*" not in listed,
        expose_headers=EXPOSED_HEADERS,
    )
