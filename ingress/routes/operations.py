"""For operators: metrics and documentation. No page loads anything from another host."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from ingress.deps import ServiceDep

SWAGGER_UI = Path(__file__).parents[1] / "static" / "swagger-ui"
ASSETS = "/docs/assets"


async def root() -> dict[str, str]:
    return {"service": "atelier", "docs": "/docs"}


async def metrics(service: ServiceDep) -> Response:
    """The metrics of the whole service, in Prometheus' text format."""
    return Response(await service.backend.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def docs(request: Request) -> HTMLResponse:
    prefix = request.scope.get("root_path", "").rstrip("/")
    return get_swagger_ui_html(
        title="Atelier",
        openapi_url=f"{prefix}{request.app.openapi_url}",
        swagger_js_url=f"{prefix}{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{prefix}{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{prefix}{ASSETS}/favicon-32x32.png",
    )


def add_routes(app: FastAPI) -> None:
    app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)(root)
    app.get("/metrics", tags=["operations"])(metrics)
    app.get("/docs", include_in_schema=False)(docs)
    app.mount(ASSETS, StaticFiles(directory=SWAGGER_UI))
