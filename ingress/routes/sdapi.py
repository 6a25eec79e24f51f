"""AUTOMATIC1111's API: what draws."""

from typing import Annotated

from fastapi import Body, FastAPI, Request
from pydantic_core import to_json
from starlette.responses import Response

from ingress import generate
from ingress.deps import Service, ServiceDep, random_of, time_of
from ingress.errors import JOB_ERRORS
from ingress.generate import Asked
from ingress.schemas.examples import IMG2IMG_EXAMPLES, TXT2IMG_EXAMPLES
from ingress.schemas.sdapi import (
    GenerationRequest,
    GenerationResponse,
    Img2ImgRequest,
    Txt2ImgRequest,
)
from ingress.scopes import GENERATE
from ingress.store import options as stored_options


async def txt2img(
    body: Annotated[Txt2ImgRequest, Body(openapi_examples=TXT2IMG_EXAMPLES)],
    request: Request,
    service: ServiceDep,
) -> Response:
    """Draw pictures from a prompt. Unknown keys are ignored, null means not given."""
    return await _generate(body, request, service)


async def img2img(
    body: Annotated[Img2ImgRequest, Body(openapi_examples=IMG2IMG_EXAMPLES)],
    request: Request,
    service: ServiceDep,
) -> Response:
    """Draw pictures from a prompt and a picture, all of it or the part that a mask covers."""
    return await _generate(body, request, service)


async def _generate(body: GenerationRequest, request: Request, service: Service) -> Response:
    asked = Asked(
        id=generate.order_id(body, request.state.request_id),
        key=request.state.key,
        options=await stored_options.read(service.database, request.state.key),
        random=random_of(request, service),
        now=time_of(request, service),
    )
    generation = generate.resolved(body, asked, service)
    options = generate.options_after(generation, asked, service)
    request.state.model = generation.checkpoint.name
    drawn = await generate.drawn(generation, asked, service, request.receive)
    await stored_options.save(service.database, asked.key, asked.options, options)
    # Sooner done than by the standard library, with half a megabyte of base64, while all others wait.
    answer = to_json(drawn.content)
    return Response(answer, headers={**drawn.headers, "X-Task-Id": asked.id}, media_type="application/json")


def add_routes(app: FastAPI, prefix: str) -> None:
    for path, route in (("txt2img", txt2img), ("img2img", img2img)):
        app.post(
            f"{prefix}/{path}",
            response_model=GenerationResponse,
            responses=dict(JOB_ERRORS),
            dependencies=[GENERATE],
        )(route)
