"""How far a caller's orders are, and how they are stopped. Nobody sees or stops another key's."""

import base64
from types import NoneType
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Header, Request

from ingress.backend import OrderProgress
from ingress.deps import ServiceDep
from ingress.schemas.examples import INTERNAL_PROGRESS_EXAMPLES, WHICH_ORDER_EXAMPLES
from ingress.schemas.progress import (
    InternalProgress,
    InternalProgressRequest,
    PendingTasks,
    Progress,
    WhichOrder,
)
from ingress.scopes import GENERATE, READ
from ingress.settings import CompatVersion

NOTHING = OrderProgress(
    id="",
    kind="",
    state="done",
    progress=0.0,
    eta=None,
    place=None,
    places=None,
    preview=b"",
    preview_id=0,
    sampling_step=0,
    sampling_steps=0,
    job_no=0,
    job_count=0,
    timestamp="0",
    interrupted=False,
    skipped=False,
)


async def _named(
    id: str = "",
    id_task: str = "",
    task_id: str = "",
    force_task_id: str = "",
    x_task_id: Annotated[str, Header()] = "",
) -> str | None:
    """The id of an order, under any of the names that it goes by."""
    return id or id_task or task_id or force_task_id or x_task_id or None


OrderId = Annotated[str | None, Depends(_named)]
OrderBody = Annotated[WhichOrder | None, Body(openapi_examples=WHICH_ORDER_EXAMPLES)]


async def progress(
    request: Request, service: ServiceDep, order: OrderId, skip_current_image: bool = False
) -> dict[str, Any]:
    """How far the order of this id is; without one, the oldest of the caller's that runs.

    What is queued has progress 0 and a job_count; what is unknown or done has neither.
    """
    found = await service.backend.progress(request.state.key, order, preview=not skip_current_image)
    return _progress(found, service.settings.compat_version, with_image=not skip_current_image)


async def interrupt(
    request: Request,
    service: ServiceDep,
    order: OrderId,
    body: OrderBody = None,
) -> dict[str, Any]:
    """Stop the order of this id; without one, all of the caller's. Each answers with what it has by then."""
    await service.backend.interrupt(request.state.key, order or (body.order if body else None))
    return {}


async def skip(
    request: Request,
    service: ServiceDep,
    order: OrderId,
    body: OrderBody = None,
) -> None:
    """As interrupt, but pictures that have not begun are still drawn."""
    await service.backend.interrupt(request.state.key, order or (body.order if body else None), skip=True)


async def internal_progress(
    body: Annotated[InternalProgressRequest, Body(openapi_examples=INTERNAL_PROGRESS_EXAMPLES)],
    request: Request,
    service: ServiceDep,
) -> InternalProgress:
    """As A1111's own page asks for it: for one order, and each preview once."""
    found = await service.backend.progress(request.state.key, body.id_task, preview=body.live_preview)
    state = found.state if found else "unknown"
    news = found and body.live_preview and found.preview and found.preview_id != body.id_live_preview
    return InternalProgress(
        active=state == "running",
        queued=state == "queued",
        completed=state == "done",
        progress=found.progress if found and state == "running" else None,
        eta=found.eta if found and state == "running" else None,
        live_preview=f"data:image/jpeg;base64,{_base64(found.preview)}" if found and news else None,
        id_live_preview=found.preview_id if found and news else body.id_live_preview,
        textinfo=_textinfo(found) if found else "Waiting...",
    )


async def pending_tasks(request: Request, service: ServiceDep) -> PendingTasks:
    """The caller's orders that are queued."""
    tasks = list(await service.backend.pending(request.state.key))
    return PendingTasks(size=len(tasks), tasks=tasks)


async def ping() -> dict[str, Any]:
    return {}


def _progress(found: OrderProgress | None, version: CompatVersion, *, with_image: bool) -> dict[str, Any]:
    """What is done is as nothing at all: pollers wait for that."""
    shown = found or NOTHING
    at_work = shown.state != "done"
    state = {
        "skipped": shown.skipped,
        "interrupted": shown.interrupted,
        "stopping_generation": False,
        "job": _job(shown.kind) if at_work else "",
        "job_count": shown.job_count if at_work else 0,
        "job_timestamp": shown.timestamp,
        "job_no": shown.job_no if at_work else 0,
        "sampling_step": shown.sampling_step,
        "sampling_steps": shown.sampling_steps,
    }
    if version == "v1.7.0":
        del state["stopping_generation"]
    return {
        "progress": shown.progress if at_work else 0.0,
        "eta_relative": shown.eta or 0.0,
        "state": state,
        "current_image": _base64(shown.preview) if shown.preview and with_image else None,
        "textinfo": _textinfo(shown),
    }


def _job(kind: str) -> str:
    return kind if kind == "extras" else f"scripts_{kind}"


def _textinfo(found: OrderProgress) -> str | None:
    return f"In queue: {found.place}/{found.places}" if found.state == "queued" else None


def _base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def add_routes(app: FastAPI, prefix: str) -> None:
    """`prefix` is empty or /v1."""
    sdapi = f"{prefix}/sdapi/v1"
    wrong: dict[int | str, dict[str, Any]] = {422: {"description": "Unprocessable Content"}}
    documented = {**wrong, 200: {"model": Progress}}
    app.get(f"{sdapi}/progress", dependencies=[READ], responses=documented)(progress)
    app.post(f"{sdapi}/interrupt", dependencies=[GENERATE], responses=wrong)(interrupt)
    app.post(f"{sdapi}/skip", response_model=NoneType, dependencies=[GENERATE], responses=wrong)(skip)
    app.post(f"{prefix}/internal/progress", dependencies=[READ], responses=wrong)(internal_progress)
    app.get(f"{prefix}/internal/pending-tasks", dependencies=[READ])(pending_tasks)
    app.get(f"{prefix}/internal/ping", dependencies=[READ])(ping)
