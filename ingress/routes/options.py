"""A1111's options: each caller has its own."""

from types import NoneType
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response

from ingress import options, translate
from ingress.deps import ServiceDep
from ingress.schemas.examples import OPTIONS_EXAMPLES
from ingress.schemas.sdapi import Object
from ingress.scopes import GENERATE, READ
from ingress.store import options as stored


async def get_options(request: Request, service: ServiceDep) -> dict[str, Any]:
    """Every option, as it is for the requests of this key."""
    overlay = await stored.read(service.database, request.state.key)
    return options.shown(overlay, service.settings, service.backend.checkpoints())


async def set_options(
    body: Annotated[Object, Body(openapi_examples=OPTIONS_EXAMPLES)],
    request: Request,
    response: Response,
    service: ServiceDep,
) -> None:
    """Set options for all further requests of this key; those of other keys stay as they are.

    Null sets an option to its default again. Unknown options are left out, and named in `X-Warnings`, if
    there are known ones beside them.
    """
    unknown = options.unknown(body)
    if unknown and len(unknown) == len(body):
        options.refuse_unknown(unknown)
    overlay = await stored.read(service.database, request.state.key)
    changed = options.changed(overlay, body, service.settings, service.backend.checkpoints())
    await stored.save(service.database, request.state.key, overlay, changed)
    response.headers.update(translate.warnings_header(options.unknown_options("options", unknown)))


def add_routes(app: FastAPI, prefix: str) -> None:
    app.get(f"{prefix}/options", responses={503: {}}, dependencies=[READ])(get_options)
    app.post(
        f"{prefix}/options",
        response_model=NoneType,
        responses={404: {}, 422: {}, 503: {}},
        dependencies=[GENERATE],
    )(set_options)
