"""What clients ask for and this service does not have: they are told so, in words, and go on.

A list of what there is none of is empty. A route that does something is refused.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.protocol import AtelierError
from ingress.errors import Absent, Unsupported
from ingress.scopes import ANY_KEY, READ


class Refusal(NamedTuple):
    method: str
    path: str
    text: str
    error: type[AtelierError] = Absent


ANSWERS: Mapping[str, Any] = MappingProxyType(
    {
        "/controlnet/model_list": {"model_list": []},
        "/controlnet/module_list": {"module_list": [], "module_detail": {}},
        "/controlnet/control_types": {"control_types": {}},
        "/controlnet/settings": {"control_net_unit_count": 0},
        "/reactor/models": {"models": []},
        "/reactor/upscalers": {"upscalers": []},
        "/reactor/facemodels": {"facemodels": []},
        "/promptgen/list_models": {"available_models": []},
        "/sam/sam-model": [],
    }
)
"""What GET is asked before a client goes on."""

EXTENSIONS: Mapping[str, str] = MappingProxyType(
    {
        "/controlnet/{path:path}": "ControlNet",
        "/adetailer/{path:path}": "ADetailer",
        "/reactor/{path:path}": "ReActor",
        "/sam/{path:path}": "Segment Anything",
        "/rembg": "The extension rembg",
        "/tagger/{path:path}": "The WD14 tagger",
        "/model_keyword/{path:path}": "The extension model-keyword",
        "/promptgen/{path:path}": "The extension promptgen",
        "/instruct-pix2pix/{path:path}": "The extension instruct-pix2pix",
    }
)
"""By their routes."""

_TRAINING = "Nothing is trained here."
_STOPPING = "The service is stopped where it was started, not by its clients."
_ARTISTS = "There are no lists of artists; AUTOMATIC1111 has none any more either."

SDAPI: tuple[Refusal, ...] = (
    Refusal("POST", "/create/embedding", _TRAINING, Unsupported),
    Refusal("POST", "/create/hypernetwork", _TRAINING, Unsupported),
    Refusal("POST", "/train/embedding", _TRAINING, Unsupported),
    Refusal("POST", "/train/hypernetwork", _TRAINING, Unsupported),
    Refusal("POST", "/server-kill", _STOPPING),
    Refusal("POST", "/server-restart", _STOPPING),
    Refusal("POST", "/server-stop", _STOPPING),
    Refusal("GET", "/artists", _ARTISTS),
    Refusal("GET", "/artist-categories", _ARTISTS),
    Refusal("GET", "/sd-modules", "Those are Forge's: a request names its VAE by the option sd_vae."),
    Refusal("GET", "/version", "That is SD.Next's; info tells which AUTOMATIC1111 is spoken here."),
)
"""Below `/sdapi/v1`."""

ROOT: tuple[Refusal, ...] = (
    Refusal("GET", "/config", "There is no web interface here, so no configuration of one."),
    Refusal("POST", "/login", "There is no login: send an API key with each request, see /docs."),
    *(
        Refusal("GET", f"/internal/{name}", "That is for the web interface, which is not here.")
        for name in ("sysinfo", "sysinfo-download", "profile-startup", "quicksettings-hint")
    ),
    *(
        Refusal(method, path, f"{name} is no part of this service.")
        for path, name in EXTENSIONS.items()
        for method in ("GET", "POST")
    ),
)
"""Below the root and below `/v1`."""

Endpoint = Callable[[Request], Awaitable[Response]]


def add_sdapi_routes(app: FastAPI, prefix: str) -> None:
    _add(app, prefix, SDAPI)


def add_root_routes(app: FastAPI, prefix: str) -> None:
    """After all others: whole extensions are refused, but for what is answered."""
    for path, answer in ANSWERS.items():
        app.get(prefix + path, include_in_schema=False, dependencies=[READ])(_answering(answer))
    _add(app, prefix, ROOT)


def _add(app: FastAPI, prefix: str, refusals: Sequence[Refusal]) -> None:
    for refusal in refusals:
        app.api_route(
            prefix + refusal.path, methods=[refusal.method], include_in_schema=False, dependencies=[ANY_KEY]
        )(_refusing(refusal.error, refusal.text))


def _answering(answer: Any) -> Endpoint:
    async def answered(request: Request) -> Response:
        return JSONResponse(answer)

    return answered


def _refusing(error: type[AtelierError], text: str) -> Endpoint:
    async def refused(request: Request) -> Response:
        raise error(text)

    return refused
