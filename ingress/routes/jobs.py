"""Jobs that outlast the connection they were posted through: accepted at once, looked at later."""

from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, Query, Request
from fastapi.sse import EventSourceResponse
from starlette.responses import JSONResponse, Response

from ingress import generate, orders
from ingress.deps import Service, ServiceDep, random_of, time_of
from ingress.errors import Gone, InvalidRequest, NotFound, shown
from ingress.events import events
from ingress.generate import Asked
from ingress.schemas import jobs
from ingress.schemas.examples import JOB_EXAMPLES
from ingress.schemas.jobs import JobAccepted, JobList, JobStatus, JobSummary
from ingress.scopes import GENERATE, READ
from ingress.store import options as stored_options
from ingress.store.orders import OPEN, State, StoredOrder
from ingress.webhooks import checked_webhook

MAX_PAGE = 100

IMAGE_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
"""By how files begin."""

PICTURES = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES.values()}
EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}


async def submit(
    body: Annotated[Any, Body(openapi_examples=JOB_EXAMPLES)], request: Request, service: ServiceDep
) -> Response:
    """Have pictures drawn, and look at them later: the body of `/sdapi/v1/txt2img` or `img2img`.

    What is accepted is drawn, also where the service is restarted meanwhile. Pictures are kept for a day,
    unless the operator says otherwise.
    """
    kind, webhook, sent = jobs.read(body)
    key = request.state.key
    random = random_of(request, service)
    id = orders.random_id(random)
    asked = Asked(
        id=generate.order_id(sent, id),
        key=key,
        options=await stored_options.read(service.database, key),
        random=random,
        now=time_of(request, service),
    )
    order = orders.new(id, kind, sent, checked_webhook(webhook, service.settings), asked)
    generation, asked = orders.resolved(order, service)
    generate.options_after(generation, asked, service)
    request.state.model = generation.checkpoint.name
    await service.orders.accept(order)
    stored = await _own(order.id, key, service)
    accepted = JobAccepted(
        id=stored.id,
        state=stored.state,
        created=orders.utc(stored.created),
        place=await service.orders.place(stored.id),
        links=orders.links(stored.id),
    )
    return JSONResponse(accepted.model_dump(), 202, headers={"Location": accepted.links["self"]})


async def look(id: str, request: Request, service: ServiceDep) -> JobStatus:
    """What has become of a job."""
    return await orders.status(await _own(id, request.state.key, service), service)


async def listing(
    request: Request,
    service: ServiceDep,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    after: str | None = None,
) -> JobList:
    """Your jobs, the newest first. `after` is the id of the last one that you have."""
    key = request.state.key
    before = None
    if after is not None:
        last = await service.orders.find(after, key)
        if last is None:
            raise InvalidRequest(f"after: {shown(after)} is none of your jobs.")
        before = last.number
    found = await service.orders.listed(key, state=state, limit=limit + 1, before=before)
    page = found[:limit]
    more = f"&state={state}" if state else ""
    return JobList(
        jobs=[JobSummary(**orders.summary(order)) for order in page],
        next=f"/v1/jobs?limit={limit}&after={page[-1].id}{more}" if len(found) > limit else None,
    )


async def abort(id: str, request: Request, service: ServiceDep) -> Response:
    """Abort a job that waits or runs; delete the pictures of one that is done. Again: nothing more."""
    key = request.state.key
    order = await _own(id, key, service)
    if order.state in OPEN:
        await service.orders.abort(id, key)
    elif order.state == "done" and order.claim:
        await service.orders.expire(id, key)
        await service.results.drop(order.claim)
    return Response(status_code=204)


async def result(
    id: str,
    number: int,
    request: Request,
    service: ServiceDep,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    """One of the pictures, as it was made."""
    order = await _own(id, request.state.key, service)
    if order.state == "expired":
        raise Gone("The job's pictures are not kept any more.")
    if order.state != "done" or order.claim is None:
        raise NotFound(f"id: {shown(id)} has no pictures: it is {order.state}.")
    if number >= orders.pictures(order):
        raise NotFound(f"number: {number} is not there. Allowed: 0 to {orders.pictures(order) - 1}.")
    headers = {"ETag": f'"{order.claim}-{number}"', "Cache-Control": "private, max-age=86400, immutable"}
    if if_none_match.strip() == "*" or headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    picture = await service.results.read(order.claim, number)
    if picture is None:
        raise Gone("The picture is not kept any more.")
    kind = next((name for start, name in IMAGE_TYPES.items() if picture.startswith(start)), None)
    return Response(picture, headers=headers, media_type=kind or "application/octet-stream")


async def follow(
    id: str, request: Request, service: ServiceDep, last_event_id: Annotated[str, Header()] = ""
) -> Response:
    """Server-sent events: `queued` with the place, `progress` with previews where there are any, and at the
    end one of `done`, `failed` and `aborted`, with what `GET /v1/jobs/{id}` says.

    A client that comes again is told what is now; one that knows the end is told to stay away (204).
    """
    order = await _own(id, request.state.key, service)
    if order.state not in OPEN and last_event_id == order.state:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return EventSourceResponse(events(id, service, request.receive), headers=headers)


async def _own(id: str, key: str, service: Service) -> StoredOrder:
    order = await service.orders.find(id, key)
    if order is None:
        raise NotFound(f"id: {shown(id)} is none of your jobs.")
    return order


def add_routes(app: FastAPI) -> None:
    path = "/v1/jobs"
    app.post(
        path,
        status_code=202,
        response_model=JobAccepted,
        responses={status: {} for status in (404, 422, 429, 503)},
        openapi_extra=dict(jobs.BODY_IN_DOCUMENT),
        dependencies=[GENERATE],
    )(submit)
    app.get(path, responses={422: {}}, dependencies=[READ])(listing)
    app.get(f"{path}/{{id}}", responses={404: {}}, dependencies=[READ])(look)
    app.delete(f"{path}/{{id}}", status_code=204, responses={404: {}}, dependencies=[GENERATE])(abort)
    app.get(
        f"{path}/{{id}}/results/{{number:int}}",
        response_class=Response,
        responses={404: {}, 410: {}, 503: {}, 200: {"content": PICTURES}},
        dependencies=[READ],
    )(result)
    app.get(
        f"{path}/{{id}}/events",
        response_class=Response,
        responses={404: {}, 204: {"description": "Nothing more will come"}, 200: {"content": EVENTS}},
        dependencies=[READ],
    )(follow)
