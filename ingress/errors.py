"""Errors of the wire. What an exception means in HTTP is said here, once, and nowhere else."""

import json
import math
import re
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
from starlette.types import Scope

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
from ingress.dialects import Dialect, Problem, dialect, openai_error, own_path, written

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


class CheckpointNotFound(NotFound):
    """`POST /options` names a checkpoint that is not there. `CheckpointNotFound(message, name)`."""

    @property
    def name(self) -> str:
        return str(self.args[1])


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
    """How one class of errors is answered: `error` is A1111's name for it if it has one, `code` ours."""

    status: int
    error: str
    code: str
    final: bool = True
    """The same request would fail again: SDKs that repeat 5xx are told not to."""


ANSWERS: Mapping[type[AtelierError], Answer] = MappingProxyType(
    {
        AtelierError: Answer(500, "RuntimeError", "internal_error"),
        InvalidRequest: Answer(422, "InvalidRequest", "invalid_request"),
        InvalidJob: Answer(422, "InvalidRequest", "invalid_request"),
        NotFound: Answer(404, "HTTPException", "not_found"),
        CheckpointNotFound: Answer(404, "RuntimeError", "not_found"),
        Gone: Answer(410, "HTTPException", "gone"),
        ScriptRefused: Answer(422, "HTTPException", "invalid_request"),
        Absent: Answer(404, "HTTPException", "not_offered"),
        Unsupported: Answer(501, "HTTPException", "not_offered"),
        ClientDisconnected: Answer(499, "ClientDisconnected", "client_disconnected"),
        NotOffered: Answer(501, "HTTPException", "not_offered"),
        StoreFailed: Answer(500, "OSError", "store_failed"),
        JobFailed: Answer(500, "RuntimeError", "job_failed"),
        NotFinite: Answer(500, "NansException", "not_finite"),
        OutOfMemory: Answer(507, "OutOfMemoryError", "out_of_memory"),
        JobAborted: Answer(409, "JobAborted", "job_aborted"),
        Overloaded: Answer(429, "Overloaded", "overloaded", final=False),
        Unavailable: Answer(503, "Unavailable", "unavailable", final=False),
        DeadlineExceeded: Answer(504, "DeadlineExceeded", "deadline_exceeded", final=False),
    }
)

HTTP_CODES: Mapping[int, str] = MappingProxyType(
    {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
)
"""Codes of what Starlette and FastAPI raise."""

JOB_ERRORS: Mapping[int | str, dict[str, Any]] = MappingProxyType(
    {status: {} for status in (404, 409, 422, 429, 500, 503, 504, 507)}
)
"""For `responses` of a route that draws: how it may fail. `ingress.openapi` fills in what that looks like."""

DETAILS: Mapping[type[AtelierError], str] = MappingProxyType(
    {
        SamplerNotFound: "Sampler not found",
        ModelNotFound: "Model not found",
        ImageNotFound: "Image not found",
    }
)
"""Details that clients compare: the explanation goes where A1111 leaves room for one."""


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
    return "; ".join(_validation_part(error, prefix) for error in errors[:5])


def _validation_part(error: Any, prefix: str) -> str:
    field = ".".join([*([prefix] if prefix else []), *_place(error)])
    text = error["msg"].removeprefix("Value error, ")
    if not field:
        return str(text)
    if error["type"] == "missing":
        return f"{field}: needed, and not given"
    if error["type"] == "literal_error":
        text = f"{text}.{_nearest_of(error)}".removesuffix(".")
    return f"{field}: {shown(error['input'])} is not allowed: {text}"


def _place(error: Any) -> list[str]:
    """The field's name and what is inside it, without where in the request it stands."""
    first, *rest = error["loc"] or ("",)
    return [str(part) for part in (rest if first in ("body", "query", "path", "header") else error["loc"])]


def _nearest_of(error: Any) -> str:
    """For a name that is none of a closed list's, of which pydantic's message quotes each."""
    if not isinstance(error["input"], str):
        return ""
    return nearest(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))


def described(error: Exception) -> dict[str, Any]:
    """An error as our own routes tell it, for who asks later. Of what nobody foresaw nothing is told."""
    known = error if isinstance(error, AtelierError) else AtelierError("Internal server error")
    return openai_error(_problem(known, "openai"))


def _problem(error: AtelierError, spoken: Dialect) -> Problem:
    answer = _answer(error)
    detail, errors = error.message, ""
    known = error.detail if isinstance(error, ScriptRefused) else DETAILS.get(type(error))
    if known and spoken == "a1111":
        detail, errors = known, error.message
    elif isinstance(error, UpscalerNotFound):
        errors = f"could not find upscaler named {error.name}"
    elif isinstance(error, CheckpointNotFound):
        errors = f"model {shown(error.name)} not found"
    return Problem(
        status=answer.status,
        detail=detail,
        code=answer.code,
        error=answer.error,
        errors=errors,
        field=_field(error.message) if isinstance(error, InvalidRequest | InvalidJob | NotFound) else None,
    )


def _answer(error: AtelierError) -> Answer:
    return next(ANSWERS[cls] for cls in type(error).__mro__ if cls in ANSWERS)


def domain_response(exc: AtelierError, scope: Scope) -> Response:
    """How an error of ours is answered."""
    problem = _problem(exc, dialect(own_path(scope)))
    response = written(problem, scope)
    if _answer(exc).final:
        response.headers["x-should-retry"] = "false"
    if isinstance(exc, Overloaded | Unavailable):
        seconds = math.ceil(min(max(1, exc.retry_after), MAX_RETRY_AFTER))
        response.headers["retry-after"] = str(seconds)
    return response


def _domain_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, AtelierError)
    return domain_response(exc, request.scope)


def _field(message: str) -> str | None:
    """The one that a message begins with."""
    match = re.match(r"([A-Za-z_][\w.\[\]]*): ", message)
    return match[1] if match else None


def _invalid_request(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    if first["type"] == "json_invalid":
        detail = f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][1]}"
    elif first["type"] == "missing" and first["loc"] == ("body",):
        detail = "the body is missing: a JSON object is needed"
    else:
        detail = validation_message(exc.errors())
    return _refused(request, 422, "invalid_request", detail, error="InvalidRequest", field=_field(detail))


def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    status, phrase = exc.status_code, HTTPStatus(exc.status_code).phrase
    if status in (404, 405) and dialect(own_path(request.scope)) == "a1111":
        # The router's own: A1111 answers these with one key.
        response: Response = JSONResponse({"detail": phrase}, status)
    elif status == 400:  # FastAPI's, for whatever its JSON parser could not survive
        detail = "the body cannot be read as JSON in UTF-8"
        response = _refused(request, 400, "invalid_request", detail, error="InvalidRequest")
    else:
        response = _refused(request, status, HTTP_CODES.get(status, "http_error"), str(exc.detail))
    response.headers.update(exc.headers or {})
    return response


def _refused(request: Request, status: int, code: str, detail: str, **more: Any) -> Response:
    return written(Problem(status=status, detail=detail, code=code, **more), request.scope)


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(AtelierError, _domain_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
