"""The HTTP side, put together."""

from datetime import datetime
from random import SystemRandom

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.middleware import Middleware

from ingress.auth import Authentication
from ingress.backend import Backend, RequestObserver
from ingress.deps import Service
from ingress.errors import add_error_handlers
from ingress.middleware import BodyLimit, RequestContext
from ingress.routes import absent, health, images, lists, machines, operations, progress, sdapi
from ingress.settings import Settings
from ingress.store.database import Database
from ingress.store.pictures import PictureStore


def build_app(backend: Backend, settings: Settings, observe: RequestObserver | None = None) -> FastAPI:
    """The ASGI application. `observe` is told of every request when it has been answered.

    Raises ValueError, naming the key, for a setting that cannot be used.
    """
    pictures = PictureStore(settings.save_dir) if settings.save_dir else None
    locked = settings.auth == "keys"
    app = FastAPI(
        title="Atelier",
        middleware=[
            Middleware(RequestContext, observe=observe),
            *([Middleware(Authentication, keys=settings.keys)] if locked else []),
            Middleware(BodyLimit, max_bytes=settings.limits.max_body_bytes),
        ],
        # Documents the key for /docs; the middleware alone decides.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if locked else [],
        strict_content_type=False,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = Service(
        backend, settings, Database(settings.database), SystemRandom(), datetime.now, pictures
    )
    for prefix in ("/v1", ""):
        sdapi.add_routes(app, f"{prefix}/sdapi/v1")
        images.add_routes(app, f"{prefix}/sdapi/v1")
        lists.add_routes(app, f"{prefix}/sdapi/v1")
        machines.add_routes(app, f"{prefix}/sdapi/v1")
        absent.add_sdapi_routes(app, f"{prefix}/sdapi/v1")
        progress.add_routes(app, prefix)
    health.add_routes(app)
    operations.add_routes(app)
    for prefix in ("", "/v1"):
        absent.add_root_routes(app, prefix)
    add_error_handlers(app)
    return app
