"""How an error is written down: in A1111's four keys, or as OpenAI's object. The path decides, here alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from starlette.responses import JSONResponse
from starlette.types import Scope

Dialect = Literal["a1111", "openai"]

A1111_UNDER_V1 = frozenset(
    {
        *("sdapi", "internal", "config", "login"),
        *("controlnet", "adetailer", "reactor", "sam", "rembg", "tagger", "model_keyword", "promptgen"),
        "instruct-pix2pix",
    }
)
"""What `/v1/` has of A1111's and its extensions' routes. All others there are our own or OpenAI's."""

_TYPES: Mapping[int, str] = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
)
"""OpenAI's, of those that have one of their own."""

RETRY_AFTER = 1
"""Seconds, where nobody knows better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error as a client is told of it.

    `code` is for programs that speak OpenAI's dialect, `error` is A1111's name for the same, and `errors`
    what it says beside the detail. `field` is the field that is wrong, if one is.
    """

    status: int
    detail: str
    code: str
    error: str = "HTTPException"
    errors: str = ""
    field: str | None = None


def dialect(path: str) -> Dialect:
    """Of a route, registered or not. `path` begins at the service's own root."""
    _, version, family, *_ = [*path.split("/"), "", ""]
    return "openai" if version == "v1" and family not in A1111_UNDER_V1 else "a1111"


def own_path(scope: Scope) -> str:
    """A request's path without the prefix that the service is mounted under."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


def written(problem: Problem, scope: Scope) -> JSONResponse:
    """The answer to a request. 429 and 503 always say when to come again."""
    if dialect(own_path(scope)) == "openai":
        request_id = scope["state"]["request_id"]
        content = {"error": {**openai_error(problem), "request_id": request_id}}
    else:
        content = _a1111(problem)
    response = JSONResponse(content, status_code=problem.status)
    if problem.status in (429, 503):
        response.headers["retry-after"] = str(RETRY_AFTER)
    return response


def _a1111(problem: Problem) -> dict[str, Any]:
    """Four keys, in this order."""
    return {"error": problem.error, "detail": problem.detail, "body": "", "errors": problem.errors}


def openai_error(problem: Problem) -> dict[str, Any]:
    """OpenAI's object, of no request."""
    others = "server_error" if problem.status >= 500 else "invalid_request_error"
    return {
        "message": problem.detail,
        "type": _TYPES.get(problem.status, others),
        "param": problem.field,
        "code": problem.code,
    }
