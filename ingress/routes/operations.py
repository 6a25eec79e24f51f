"""For operators: metrics and documentation. No page loads anything from another host."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from ingress.deps import ServiceDep
from ingress.openapi import document
from ingress.scopes import ANY_KEY, OPERATE, PUBLIC

STATIC = Path(__file__).parents[1] / "static"
OPENAPI = "/openapi.json"
ASSETS = {"/docs/assets": STATIC / "swagger-ui", "/redoc/assets": STATIC / "redoc"}

PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; font-src 'self' data:; worker-src 'self' blob:; "
        "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
        "base-uri 'none'; object-src 'none'; frame-ancestors 'none'"
    )
}
"""The browser refuses whatever a page would load from elsewhere: ReDoc's own would fetch a logo."""


async def root() -> dict[str, str]:
    return {"service": "atelier", "docs": "/docs"}


async def metrics(service: ServiceDep) -> Response:
    """The metrics of the whole service, in Prometheus' text format."""
    return Response(await service.backend.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(request: Request, service: ServiceDep) -> JSONResponse:
    app = request.app
    app.openapi_schema = app.openapi_schema or document(app, locked=service.settings.auth == "keys")
    root_path = _root_path(request)
    servers = {"servers": [{"url": root_path}]} if root_path else {}
    return JSONResponse(app.openapi_schema | servers)


async def docs(request: Request) -> HTMLResponse:
    prefix = _root_path(request)
    page = get_swagger_ui_html(
        title="Atelier",
        openapi_url=f"{prefix}{OPENAPI}",
        swagger_js_url=f"{prefix}/docs/assets/swagger-ui-bundle.js",
        swagger_css_url=f"{prefix}/docs/assets/swagger-ui.css",
        swagger_favicon_url=f"{prefix}/docs/assets/favicon-32x32.png",
    )
    page.headers.update(PAGE_HEADERS)
    return page


async def redoc(request: Request) -> HTMLResponse:
    prefix = _root_path(request)
    page = get_redoc_html(
        title="Atelier",
        openapi_url=f"{prefix}{OPENAPI}",
        redoc_js_url=f"{prefix}/redoc/assets/redoc.standalone.js",
        redoc_favicon_url=f"{prefix}/docs/assets/favicon-32x32.png",
        with_google_fonts=False,
    )
    page.headers.update(PAGE_HEADERS)
    return page


def _root_path(request: Request) -> str:
    path: str = request.scope.get("root_path", "")
    return path.rstrip("/")


def add_routes(app: FastAPI) -> None:
    app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False, dependencies=[PUBLIC])(root)
    app.get("/metrics", tags=["operations"], response_class=PlainTextResponse, dependencies=[OPERATE])(
        metrics
    )
    app.get(OPENAPI, include_in_schema=False, dependencies=[ANY_KEY])(openapi)
    app.get("/docs", include_in_schema=False, dependencies=[ANY_KEY])(docs)
    app.get("/redoc", include_in_schema=False, dependencies=[ANY_KEY])(redoc)
    for path, folder in ASSETS.items():
        _add_assets(app, path, folder)


def _add_assets(app: FastAPI, path: str, folder: Path) -> None:
    """Not mounted: a mount cannot say who may see it."""
    files = StaticFiles(directory=folder)

    async def asset(request: Request, name: str) -> Response:
        return await files.get_response(name, request.scope)

    app.api_route(
        f"{path}/{{name:path}}", methods=["GET", "HEAD"], include_in_schema=False, dependencies=[ANY_KEY]
    )(asset)
