"""AUTOMATIC1111's routes about given pictures: what they say of themselves, what is in them, enlarging."""

import asyncio
import base64
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from pydantic_core import to_json
from starlette.responses import Response

from engine.protocol import NotOffered
from ingress import dispatch, extras
from ingress.backend import Order
from ingress.deps import Service, ServiceDep, random_of, time_of
from ingress.errors import JOB_ERRORS, ImageNotFound, InvalidRequest, ModelNotFound, unknown_name
from ingress.infotext import read
from ingress.metadata import Metadata, read_metadata
from ingress.pictures import picture
from ingress.replay import MAX_CHARS
from ingress.schemas.examples import (
    EXTRA_BATCH_EXAMPLES,
    EXTRA_SINGLE_EXAMPLES,
    INTERROGATE_EXAMPLES,
    PNG_INFO_EXAMPLES,
)
from ingress.schemas.images import (
    ExtraBatchRequest,
    ExtraBatchResponse,
    ExtrasFields,
    ExtraSingleRequest,
    ExtraSingleResponse,
    InterrogateRequest,
    InterrogateResponse,
    PngInfoRequest,
    PngInfoResponse,
)
from ingress.scopes import GENERATE, READ
from ingress.settings import Limits, Settings
from ingress.store import options as stored_options

CAPTIONERS = ("clip", "deepdanbooru")
"""The models that A1111 knows."""


async def png_info(
    body: Annotated[PngInfoRequest, Body(openapi_examples=PNG_INFO_EXAMPLES)], service: ServiceDep
) -> PngInfoResponse:
    """Read what a picture's file says of it: PNG's texts, EXIF, comments, ours and other programs'."""
    return await asyncio.to_thread(_png_info, body.image, service.settings)


def _png_info(text: str, settings: Settings) -> PngInfoResponse:
    said = _metadata(text, settings.limits)
    if len(said.infotext) > MAX_CHARS:
        raise InvalidRequest(
            f"image: its infotext has {len(said.infotext)} characters. Allowed: up to {MAX_CHARS}."
        )
    parameters = read(said.infotext, settings.styles)
    return PngInfoResponse(info=said.infotext, items=dict(said.items), parameters=parameters)


def _metadata(text: str, limits: Limits) -> Metadata:
    return read_metadata(picture(text, "image", limits), "image")


async def extra_single_image(
    body: Annotated[ExtraSingleRequest, Body(openapi_examples=EXTRA_SINGLE_EXAMPLES)],
    request: Request,
    service: ServiceDep,
) -> Response:
    """Enlarge a picture. Face restoration is not there yet."""
    images = await _enlarged(body, [("image", body.image)], request, service)
    return _json({"html_info": extras.html_info(body), "image": images[0] if images else ""})


async def extra_batch_images(
    body: Annotated[ExtraBatchRequest, Body(openapi_examples=EXTRA_BATCH_EXAMPLES)],
    request: Request,
    service: ServiceDep,
) -> Response:
    """Enlarge pictures, all in the same way."""
    sent = extras.pictures_of(body, service.settings.limits)
    images = await _enlarged(body, sent, request, service)
    return _json({"html_info": extras.html_info(body), "images": images})


async def _enlarged(body: ExtrasFields, sent: extras.Sent, request: Request, service: Service) -> list[str]:
    """In base64; none if they are not to be shown."""
    limits = service.settings.limits
    overlay = await stored_options.read(service.database, request.state.key)
    random = random_of(request, service)
    jobs = await asyncio.to_thread(extras.enlargements, body, sent, limits, random, overlay)
    order = Order(
        id=request.state.request_id,
        key=request.state.key,
        kind="extras",
        checkpoint="",
        jobs=tuple(job.id for job in jobs),
        batch_size=len(jobs),
        steps=0,
        timestamp=f"{time_of(request, service):%Y%m%d%H%M%S}",
    )
    results = await extras.run(order, jobs, service.backend, request.receive, limits.deadline_seconds)
    shown = results if body.show_extras_results else []
    return [base64.b64encode(result.image).decode() for result in shown]


def _json(answer: dict[str, Any]) -> Response:
    return Response(to_json(answer), media_type="application/json")


async def interrogate(
    body: Annotated[InterrogateRequest, Body(openapi_examples=INTERROGATE_EXAMPLES)],
    request: Request,
    service: ServiceDep,
) -> InterrogateResponse:
    """Say in words what is in a picture. 501 where no captioner is configured."""
    if not body.image:
        raise ImageNotFound("image: a picture in base64 is needed.")
    if body.model not in CAPTIONERS:
        raise ModelNotFound(unknown_name("model", body.model, CAPTIONERS))
    if body.model == "deepdanbooru":
        raise NotOffered("model: deepdanbooru is not there. Allowed: clip.")
    limits = service.settings.limits
    image = picture(body.image, "image", limits)
    (caption,) = await dispatch.together(
        [service.backend.caption(image)], request.receive, limits.deadline_seconds
    )
    return InterrogateResponse(caption=caption)


def add_routes(app: FastAPI, prefix: str) -> None:
    app.post(f"{prefix}/png-info", response_model=PngInfoResponse, dependencies=[READ])(png_info)
    for path, route, answer in (
        ("extra-single-image", extra_single_image, ExtraSingleResponse),
        ("extra-batch-images", extra_batch_images, ExtraBatchResponse),
        ("interrogate", interrogate, InterrogateResponse),
    ):
        app.post(
            f"{prefix}/{path}",
            response_model=answer,
            responses={**JOB_ERRORS, 501: {}},
            dependencies=[GENERATE],
        )(route)
