"""Errors of the wire. What an exception means in HTTP is said here, once, and nowhere else."""

import json
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.protocol import (
    AtelierError,
    DeadlineExceeded,
    InvalidJob,
    JobAborted,
    JobFailed,
    NotFinite,
    NotOffered,
    OutOfMemory,
    Overloaded,
    Unavailable,
    UpscalerNotFound,
)

MAX_RETRY_AFTER = 120
"""Seconds. Known clients ignore a longer Retry-After."""
LISTED_NAMES = 5


class InvalidRequest(AtelierError):
    """The request says something that it may not say. Names the field, its value and what is allowed.

    The message begins with the field and a colon, as those of `NotFound` do.
    """


class NotFound(AtelierError):
    """The request names a checkpoint or a noise schedule that is not there."""


class SamplerNotFound(NotFound):
    """The request names a sampler that is not there."""


class Gone(AtelierError):
    """What the request names was there once, and is not kept any more."""


class ScriptRefused(InvalidRequest):
    """The request says of a script what A1111 refuses too, with this `detail`: the second argument."""

    @property
    def detail(self) -> str:
        return str(self.args[1])


class Absent(AtelierError):
    """The route belongs to a feature or an extension that this version does not have."""


class Unsupported(AtelierError):
    """The route is A1111's own, and what it does is not done here."""


class ModelNotFound(NotFound):
    """The request names a way to look at pictures that nobody knows."""


class ImageNotFound(NotFound):
    """The request lacks its picture."""


class StoreFailed(AtelierError):
    """Pictures could not be saved."""


class ClientDisconnected(AtelierError):
    """Nobody waits for the answer any more."""


class Answer(NamedTuple):
    """How one class of errors is answered. `error` is A1111's name for it where it has one."""

    status: int
    error: str
    final: bool = True
    """The same request would fail again: SDKs that repeat 5xx are told not to."""


ANSWERS: Mapping[type[AtelierError], Answer] = MappingProxyType(
    {
        AtelierError: Answer(500, "RuntimeError"),
        InvalidRequest: Answer(422, "InvalidRequest"),
        InvalidJob: Answer(422, "InvalidRequest"),
        NotFound: Answer(404, "HTTPException"),
        Gone: Answer(410, "HTTPException"),
        ScriptRefused: Answer(422, "HTTPException"),
        Absent: Answer(404, "HTTPException"),
        Unsupported: Answer(501, "HTTPException"),
        ClientDisconnected: Answer(499, "ClientDisconnected"),
        NotOffered: Answer(501, "HTTPException"),
        StoreFailed: Answer(500, "OSError"),
        JobFailed: Answer(500, "RuntimeError"),
        NotFinite: Answer(500, "NansException"),
        OutOfMemory: Answer(507, "OutOfMemoryError"),
        JobAborted: Answer(409, "JobAborted"),
        Overloaded: Answer(429, "Overloaded", final=False),
        Unavailable: Answer(503, "Unavailable", final=False),
        DeadlineExceeded: Answer(504, "DeadlineExceeded", final=False),
    }
)


DETAILS: Mapping[type[AtelierError], str] = MappingProxyType(
    {
        SamplerNotFound: "Sampler not found",
        ModelNotFound: "Model not found",
        ImageNotFound: "Image not found",
    }
)
"""Details that clients compare: the explanation goes where A1111 leaves room for one."""


def error_response(
    status: int, detail: str, *, error: str = "HTTPException", errors: str = ""
) -> JSONResponse:
    return JSONResponse(_content(error, detail, errors), status_code=status)


def described(error: Exception) -> dict[str, str]:
    """The body that an error is answered with, for who asks later. Of what nobody foresaw nothing is told."""
    if not isinstance(error, AtelierError):
        return _content("RuntimeError", "Internal server error")
    return _content(_answer(error).error, error.message)


def _content(error: str, detail: str, errors: str = "") -> dict[str, str]:
    """A1111's error body: four keys, in this order."""
    return {"error": error, "detail": detail, "body": "", "errors": errors}


def _answer(error: AtelierError) -> Answer:
    return next(ANSWERS[cls] for cls in type(error).__mro__ if cls in ANSWERS)


def shown(value: object) -> str:
    """A client's value as an error message may repeat it: short and printable."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:80] + "…")
    if isinstance(value, bool | int | float | None):
        return json.dumps(value)[:80]
    return "an object" if isinstance(value, dict) else "a list"


def listed(names: Sequence[str]) -> str:
    """A client's names as a warning may repeat them: the first ones. Short, as it becomes a header."""
    more = len(names) - LISTED_NAMES
    return ", ".join(map(shown, names[:LISTED_NAMES])) + (f" and {more} more" if more > 0 else "")


def unknown_name(field: str, value: str, allowed: Sequence[str]) -> str:
    """The message for a name that is not there, with the nearest of those that are."""
    names = [*allowed[:20], *(["…"] if len(allowed) > 20 else [])]
    return f"{field}: {shown(value)} is not known.{nearest(value, allowed)} Allowed: {', '.join(names)}."


def nearest(value: str, names: Sequence[str]) -> str:
    """The sentence that tells the nearest names; empty if none is near."""
    near = get_close_matches(value[:80], names, n=3, cutoff=0.4)
    return f" Nearest: {', '.join(near)}." if near else ""


def validation_message(errors: Sequence[Any], prefix: str = "") -> str:
    """Pydantic's errors as one line: each field, its value and what is wrong with it. Five at most."""
    parts = []
    for error in errors[:5]:
        loc = [str(part) for part in error["loc"] if part != "body"]
        text = error["msg"].removeprefix("Value error, ")
        field = ".".join([prefix, *loc] if prefix else loc)
        parts.append(f"{field}: {shown(error['input'])} is not allowed: {text}" if field else text)
    return "; ".join(parts)


def _domain_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, AtelierError)
    answer = _answer(exc)
    if detail := exc.detail if isinstance(exc, ScriptRefused) else DETAILS.get(type(exc)):
        response = error_response(answer.status, detail, error=answer.error, errors=exc.message)
    else:
        errors = f"could not find upscaler named {exc.name}" if isinstance(exc, UpscalerNotFound) else ""
        response = error_response(answer.status, exc.message, error=answer.error, errors=errors)
    if answer.final:
        response.headers["x-should-retry"] = "false"
    if isinstance(exc, Overloaded | Unavailable):
        seconds = math.ceil(min(max(1, exc.retry_after), MAX_RETRY_AFTER))
        response.headers["retry-after"] = str(seconds)
    return response


def _invalid_body(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    if first["type"] == "json_invalid":
        detail = f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][1]}"
    elif first["type"] == "missing":
        detail = "the body is missing: a JSON object is needed"
    else:
        detail = validation_message(exc.errors())
    return error_response(422, detail, error="InvalidRequest")


def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers=exc.headers)
    if exc.status_code in (404, 405):  # the router's own: A1111 answers these with one key
        phrase = HTTPStatus(exc.status_code).phrase
        return JSONResponse({"detail": phrase}, exc.status_code, headers=exc.headers)
    if exc.status_code == 400:  # FastAPI's, for whatever its JSON parser could not survive
        return error_response(400, "the body cannot be read as JSON in UTF-8", error="InvalidRequest")
    return error_response(exc.status_code, str(exc.detail))


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(AtelierError, _domain_error)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(HTTPException, _http_error)
