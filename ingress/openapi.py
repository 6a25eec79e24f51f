"""The OpenAPI document: FastAPI's, with who may call what, and how each route's errors look."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from ingress.dialects import Dialect, dialect
from ingress.schemas.errors import ErrorResponse, OpenAIErrorResponse
from ingress.scopes import Need, need_of

SECURITY_SCHEMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "HTTPBearer": {"type": "http", "scheme": "bearer"},
        "HTTPBasic": {
            "type": "http",
            "scheme": "basic",
            "description": "The key as password; any user name.",
        },
        "APIKeyHeader": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
)

ERROR_MODELS: Mapping[Dialect, type[ErrorResponse | OpenAIErrorResponse]] = MappingProxyType(
    {"a1111": ErrorResponse, "openai": OpenAIErrorResponse}
)

EVERYWHERE = {400: "Bad Request", 413: "Content Too Large", 500: "Internal Server Error"}
LOCKED = {401: "Unauthorized", 403: "Forbidden"}

REPEATED = {409: "Conflict", 422: "Unprocessable Content", 503: "Service Unavailable"}
IDEMPOTENCY_KEY: Mapping[str, Any] = MappingProxyType(
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Names this request: sent again with the same name, it gets the same answer.",
        "schema": {"type": "string", "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    }
)
"""What every POST takes, and how that may fail."""

_REF = "#/components/schemas/"
_VALIDATION = {"HTTPValidationError", "ValidationError"}
"""FastAPI's own shape of a 422, which none of our routes answers with."""


def document(app: FastAPI, *, locked: bool) -> dict[str, Any]:
    """Of all routes that are in the schema. `locked`: keys are needed."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for route, operation in _operations(app, found):
        need = need_of(route)
        responses = operation["responses"]
        statuses = EVERYWHERE | (LOCKED if locked and need != "public" else {})
        if "POST" in (route.methods or ()):
            statuses |= REPEATED
            operation.setdefault("parameters", []).append(dict(IDEMPOTENCY_KEY))
        for status, phrase in statuses.items():
            responses.setdefault(str(status), {"description": phrase})
        _describe_errors(responses, dialect(route.path))
        if locked and need != "public":
            _describe_need(operation, need)
    components = found.setdefault("components", {})
    components["schemas"] = _schemas(components.get("schemas", {}))
    if locked:
        components["securitySchemes"] = {name: dict(scheme) for name, scheme in SECURITY_SCHEMES.items()}
    return found


def _operations(app: FastAPI, found: dict[str, Any]) -> Iterator[tuple[APIRoute, dict[str, Any]]]:
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                yield route, found["paths"][route.path_format][method.lower()]


def _describe_errors(responses: dict[str, Any], spoken: Dialect) -> None:
    """Each has its dialect's model, but for those that a route describes itself."""
    content = {"application/json": {"schema": {"$ref": _REF + ERROR_MODELS[spoken].__name__}}}
    for status, response in responses.items():
        if not status.startswith(("4", "5")):
            continue
        if status == "422" or "content" not in response:
            response["content"] = content
        if status in ("429", "503"):
            response["headers"] = {
                "Retry-After": {"description": "Seconds", "required": True, "schema": {"type": "integer"}}
            }


def _describe_need(operation: dict[str, Any], need: Need) -> None:
    scopes = [] if need == "key" else [need]
    operation["security"] = [{name: scopes} for name in SECURITY_SCHEMES]
    if scopes:
        text = operation.get("description", "")
        operation["description"] = f"{text}\n\nNeeds a key with the scope `{need}`.".strip()


def _schemas(found: dict[str, Any]) -> dict[str, Any]:
    _, errors = models_json_schema(
        [(model, "serialization") for model in ERROR_MODELS.values()], ref_template=_REF + "{model}"
    )
    kept = {name: schema for name, schema in found.items() if name not in _VALIDATION}
    return dict(sorted((kept | errors["$defs"]).items()))
