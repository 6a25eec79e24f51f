from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from ingress.dialects import dialect
from ingress.openapi import document
from ingress.scopes import READ, need_of
from tests.ingress.bodies import willing_backend
from tests.ingress.fakes import FakeBackend

Operation = dict[str, Any]


@pytest.fixture
def backend() -> FakeBackend:
    return willing_backend()


@pytest.fixture
def found(client: TestClient) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json())


def operations(found: dict[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    for path, item in found["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def test_it_begins_with_the_documented_request(client: TestClient, found: dict[str, Any]) -> None:
    operation = found["paths"]["/v1/sdapi/v1/txt2img"]["post"]
    assert next(iter(found["paths"])) == "/v1/sdapi/v1/txt2img"
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert next(iter(examples.values()))["value"]["model"] == "majicmixRealistic_v7"


def test_every_example_of_a_request_is_one_that_works(client: TestClient, found: dict[str, Any]) -> None:
    tried = 0
    for method, path, operation in operations(found):
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in body.get("examples", {}).values():
            status = client.request(method, path, json=example["value"]).status_code
            assert status == (202 if path == "/v1/jobs" else 200), path
            tried += 1
        assert not body or body.get("examples"), f"{path} has no example"
    assert tried >= 8


def test_every_route_tells_its_errors_in_its_dialect(found: dict[str, Any]) -> None:
    for method, path, operation in operations(found):
        statuses = {status for status in operation["responses"] if status >= "400"}
        common = {"400", "413", "500"} | ({"401", "403"} if "security" in operation else set())
        assert common <= statuses, (method, path)
        assert ("422" in statuses) >= ("requestBody" in operation), (method, path)
        for status in statuses - ({"503"} if path == "/health/ready" else set()):
            content = operation["responses"][status]["content"]
            model = "ErrorResponse" if dialect(path) == "a1111" else "OpenAIErrorResponse"
            assert content == {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}, (
                method, path, status,
            )  # fmt: skip
    drawing = found["paths"]["/sdapi/v1/txt2img"]["post"]["responses"]
    assert {"404", "409", "429", "503", "504", "507"} <= drawing.keys()
    for status in ("429", "503"):
        assert drawing[status]["headers"]["Retry-After"]["required"]
    assert not {"HTTPValidationError", "ValidationError"} & found["components"]["schemas"].keys()


def test_our_own_routes_document_openais_errors() -> None:
    async def jobs() -> list[str]:
        return []

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.get("/v1/jobs", dependencies=[READ], responses={404: {}})(jobs)
    found = document(app, locked=True)
    responses = found["paths"]["/v1/jobs"]["get"]["responses"]
    for status in ("400", "401", "403", "404", "413", "500"):
        schema = responses[status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/OpenAIErrorResponse"}
    assert {"OpenAIErrorResponse", "OpenAIError"} <= found["components"]["schemas"].keys()


def test_every_route_tells_who_may_call_it(client: TestClient, found: dict[str, Any]) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    needs = {
        (method, route.path_format): need_of(route)
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert found["components"]["securitySchemes"].keys() == {"HTTPBearer", "HTTPBasic", "APIKeyHeader"}
    for method, path, operation in operations(found):
        need = needs[method, path]
        if need == "public":
            assert "security" not in operation
        else:
            scopes = [] if need == "key" else [need]
            assert operation["security"] == [
                {name: scopes} for name in ("HTTPBearer", "HTTPBasic", "APIKeyHeader")
            ]
            assert all(f"scope `{scope}`" in operation["description"] for scope in scopes)


def test_without_keys_it_speaks_of_none(make_client: Callable[..., TestClient]) -> None:
    found = make_client(auth="off", keys=()).get("/openapi.json").json()
    assert "securitySchemes" not in found["components"]
    for _, path, operation in operations(found):
        assert "security" not in operation
        assert not {"401", "403"} & operation["responses"].keys(), path
        assert "scope" not in operation.get("description", "")


def test_every_post_takes_an_idempotency_key(found: dict[str, Any]) -> None:
    for method, path, operation in operations(found):
        headers = [each["name"] for each in operation.get("parameters", []) if each["in"] == "header"]
        assert ("Idempotency-Key" in headers) == (method == "POST"), path
        if method == "POST":
            assert {"409", "422", "503"} <= operation["responses"].keys(), path


def test_every_answer_has_a_type(found: dict[str, Any]) -> None:
    for _, path, operation in operations(found):
        succeeding = {status: each for status, each in operation["responses"].items() if status < "300"}
        assert succeeding.keys() & {"200", "202", "204"}, path
        for status, each in succeeding.items():
            assert ("content" in each) == (status != "204"), path
            assert all(content["schema"] for content in each.get("content", {}).values()), path
