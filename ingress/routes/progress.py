"""How far a caller's orders are, and how they are stopped. Nobody sees or stops another key's."""

import base64
from types import NoneType
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Header, Request

from ingress.backend import OrderProgress
from ingress.deps import Service, ServiceDep
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
from ingress.store import options as stored_options

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
    preview = b"" if skip_current_image else await _preview(found, request, service)
    return _progress(found or NOTHING, preview, service.settings.compat_version)


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
    wanted = found is not None and body.live_preview and found.preview_id != body.id_live_preview
    preview = await _preview(found, request, service) if wanted else b""
    return InternalProgress(
        active=state == "running",
        queued=state == "queued",
        completed=state == "done",
        progress=found.progress if found and state == "running" else None,
        eta=found.eta if found and state == "running" else None,
        live_preview=f"data:image/jpeg;base64,{_base64(preview)}" if preview else None,
        id_live_preview=found.preview_id if found and preview else body.id_live_preview,
        textinfo=_textinfo(found) if found else "Waiting...",
    )


async def pending_tasks(request: Request, service: ServiceDep) -> PendingTasks:
    """The caller's orders that are queued."""
    tasks = list(await service.backend.pending(request.state.key))
    return PendingTasks(size=len(tasks), tasks=tasks)


async def ping() -> dict[str, Any]:
    return {}


async def _preview(found: OrderProgress | None, request: Request, service: Service) -> bytes:
    """That of the order, unless the caller has set the option `live_previews_enable` to false."""
    if found is None or not found.preview:
        return b""
    options = await stored_options.read(service.database, request.state.key)
    return found.preview if options.get("live_previews_enable", True) else b""


def _progress(shown: OrderProgress, preview: bytes, version: CompatVersion) -> dict[str, Any]:
    """What is done is as nothing at all: pollers wait for that."""
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
        "current_image": _base64(preview) if preview else None,
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
    away = {**wrong, 503: {}}
    app.post(f"{sdapi}/interrupt", dependencies=[GENERATE], responses=away)(interrupt)
    app.post(f"{sdapi}/skip", response_model=NoneType, dependencies=[GENERATE], responses=away)(skip)
    app.post(f"{prefix}/internal/progress", dependencies=[READ], responses=wrong)(internal_progress)
    app.get(f"{prefix}/internal/pending-tasks", dependencies=[READ])(pending_tasks)
    app.get(f"{prefix}/internal/ping", dependencies=[READ])(ping)
