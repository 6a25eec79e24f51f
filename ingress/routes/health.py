"""For load balancers: open to everybody, and telling them nothing else."""

from fastapi import FastAPI
from starlette.responses import JSONResponse

from ingress.deps import ServiceDep
from ingress.schemas.health import Health
from ingress.scopes import PUBLIC


async def live() -> Health:
    """This process answers."""
    return Health(status="live")


async def ready(service: ServiceDep) -> JSONResponse:
    """Some checkpoint takes jobs."""
    if any(checkpoint.available for checkpoint in service.backend.checkpoints()):
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready"}, 503, headers={"retry-after": "5"})


def add_routes(app: FastAPI) -> None:
    app.get("/health/live", tags=["health"], dependencies=[PUBLIC])(live)
    app.get(
        "/health/ready",
        tags=["health"],
        response_model=Health,
        responses={503: {"model": Health}},
        dependencies=[PUBLIC],
    )(ready)
