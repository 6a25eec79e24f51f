"""The routes extra-…: from their request fields to enlargements, and to the line that says what was done."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from pydantic import ValidationError
from starlette.types import Receive

from engine.protocol import (
    Enlargement,
    FileFormat,
    JobResult,
    Unavailable,
    UpscalerNotFound,
)
from ingress import dispatch, options
from ingress.backend import Backend, Order
from ingress.errors import InvalidRequest, validation_message
from ingress.files import file_format
from ingress.hires import MAX_SCALE, check_upscaler
from ingress.infotext import line
from ingress.limits import check_range
from ingress.metadata import read_metadata
from ingress.pictures import picture
from ingress.schemas.images import ExtraBatchRequest, ExtrasFields
from ingress.schemas.sdapi import OverrideSettings
from ingress.settings import Limits

MAX_SIDE = 2**14
"""Pixels that may be asked for."""

Sent = Sequence[tuple[str, str]]
"""The request's pictures: the name of the field and its text."""


def pictures_of(request: ExtraBatchRequest, limits: Limits) -> Sent:
    """Raises InvalidRequest for none or too many."""
    field = "imageList" if request.imageList or not request.image_list else "image_list"
    given = request.imageList or request.image_list or []
    if not 1 <= len(given) <= limits.max_images:
        raise InvalidRequest(
            f"{field}: {len(given)} pictures are not allowed. Allowed: 1 to {limits.max_images}."
        )
    return [
        (f"{field}[{i}].{'data' if each.data or not each.image else 'image'}", each.data or each.image)
        for i, each in enumerate(given)
    ]


def enlargements(
    request: ExtrasFields, sent: Sent, limits: Limits, random: Random, overlay: Mapping[str, Any]
) -> list[Enlargement]:
    """One for each picture, of no checkpoint yet. Takes a while for large files. `overlay` is what the caller
    has set of the options.

    Raises InvalidRequest.
    """
    _check(request)
    written = _file_format(request, overlay)
    done = _done(request)
    plain = Enlargement(
        id="",
        checkpoint="",
        image=b"",
        scale=request.upscaling_resize,
        box=(request.upscaling_resize_w, request.upscaling_resize_h) if request.resize_mode else None,
        crop=request.upscaling_crop,
        max_pixels=min(limits.max_upscaled_pixels, limits.max_images * limits.max_pixels // len(sent)),
        upscaler=request.upscaler_1 or "None",
        second=_second(request),
        second_visibility=request.extras_upscaler_2_visibility,
        texts={},
        file_format=written,
    )
    return [_of(plain, field, text, done, limits, random) for field, text in sent]


def _of(plain: Enlargement, field: str, text: str, done: str, limits: Limits, random: Random) -> Enlargement:
    data = picture(text, field, limits)
    texts = {**read_metadata(data, field).texts, **({"postprocessing": done} if done else {})}
    return replace(plain, id=f"{random.getrandbits(128):032x}", image=data, texts=texts)


def _file_format(request: ExtrasFields, overlay: Mapping[str, Any]) -> FileFormat:
    try:
        counting = options.counting(overlay, request.override_settings or {})
        return file_format(OverrideSettings.model_validate(counting))
    except ValidationError as error:
        raise InvalidRequest(validation_message(error.errors(), "override_settings")) from None


def _check(request: ExtrasFields) -> None:
    for field, low, high in (
        ("resize_mode", 0, 1),
        ("gfpgan_visibility", 0, 1),
        ("codeformer_visibility", 0, 1),
        ("codeformer_weight", 0, 1),
        ("upscaling_resize", 0.1, MAX_SCALE),
        ("upscaling_resize_w", 1, MAX_SIDE),
        ("upscaling_resize_h", 1, MAX_SIDE),
        ("extras_upscaler_2_visibility", 0, 1),
    ):
        check_range(field, getattr(request, field), low, high)
    for field, name in (("gfpgan_visibility", "GFPGAN"), ("codeformer_visibility", "CodeFormer")):
        if getattr(request, field):
            raise InvalidRequest(
                f"{field}: {getattr(request, field)} asks for {name}, which is not there. Allowed: 0."
            )
    for field in ("upscaler_1", "upscaler_2"):
        check_upscaler(field, getattr(request, field))


def _second(request: ExtrasFields) -> str:
    return (request.upscaler_2 if request.extras_upscaler_2_visibility else "") or "None"


def _done(request: ExtrasFields) -> str:
    """What is done to a picture, as an infotext says it; empty for nothing."""
    if request.upscaler_1 in ("", "None"):
        return ""
    size = f"{request.upscaling_resize_w}x{request.upscaling_resize_h}" if request.resize_mode else None
    second = _second(request)
    return line(
        {
            "Postprocess upscale by": None if size else request.upscaling_resize,
            "Postprocess upscale to": size,
            "Postprocess crop to": size if request.upscaling_crop else None,
            "Postprocess upscaler": request.upscaler_1,
            "Postprocess upscaler 2": None if second == "None" else second,
        }
    )


def html_info(request: ExtrasFields) -> str:
    return f"<p>{html.escape(_done(request))}</p>"


async def run(
    order: Order, jobs: Sequence[Enlargement], backend: Backend, receive: Receive, deadline_seconds: float
) -> list[JobResult]:
    """By replicas of the first checkpoint that has the upscalers: each may have others.

    Raises the errors of `dispatch.run`; UpscalerNotFound if no checkpoint has them.
    """
    missing: list[UpscalerNotFound] = []
    for checkpoint in backend.checkpoints():
        if checkpoint.available:
            own = [replace(job, checkpoint=checkpoint.name) for job in jobs]
            its = replace(order, checkpoint=checkpoint.name)
            try:
                return await dispatch.run(its, own, backend, receive, deadline_seconds)
            except UpscalerNotFound as error:
                missing.append(error)
    raise missing[0] if missing else Unavailable("No checkpoint is available now", 5.0)
