from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from engine.protocol import InvalidJob, JobFailed, OutOfMemory, Overloaded, Unavailable
from ingress.app import build_app
from ingress.dialects import dialect
from ingress.errors import InvalidRequest, NotFound, SamplerNotFound
from ingress.scopes import GENERATE, READ
from ingress.settings import Limits, Settings
from tests.ingress.fakes import FakeBackend

FAMILIES = ("/sdapi/v1/new", "/v1/new")
"""One path of each dialect."""


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/nope", "/metrics", "/docs", "/sdapi/v1/txt2img", "/v1/sdapi/v1/txt2img", "/v1/sdapi"),
        *("/internal/ping", "/v1/internal/ping", "/controlnet/detect", "/v1/controlnet/detect"),
        *("/reactor/image", "/v1/reactor/image", "/v1beta/x", "/x/v1/jobs"),
    ],
)
def test_a1111s_routes_and_whatever_belongs_to_nobody_speak_a1111(path: str) -> None:
    assert dialect(path) == "a1111"


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/jobs", "/v1/jobs/1/events", "/v1/models", "/v1/sdapix", "/v1/nope"]
)
def test_the_rest_of_v1_speaks_openai(path: str) -> None:
    assert dialect(path) == "openai"


def test_a_route_speaks_the_same_with_and_without_v1() -> None:
    routes = build_app(FakeBackend(), Settings(auth="off")).routes
    paths = {route.path for route in routes if isinstance(route, APIRoute)}
    for path in paths:
        assert f"/v1{path}" not in paths or dialect(f"/v1{path}") == "a1111", path


class Body(BaseModel):
    steps: int
    name: str = ""


@pytest.fixture
def client(settings: Settings, key: str) -> Iterator[TestClient]:
    """With a route of each dialect, which fails as the body's name says."""
    small = settings.model_copy(update={"limits": Limits(max_body_bytes=1024)})
    app = build_app(FakeBackend(), small)
    failures: dict[str, Exception] = {
        "field": InvalidRequest("steps: 151 is not allowed. Allowed: 1 to 150."),
        "fields": InvalidRequest("batch_size × n_iter: 20 images are not allowed."),
        "job": InvalidJob("prompt: too many parts"),
        "checkpoint": NotFound("model: 'x' is not known."),
        "sampler": SamplerNotFound("sampler_name: 'x' is not known."),
        "memory": OutOfMemory("Too large"),
        "failed": JobFailed("It: failed"),
        "full": Overloaded("full", 2.3),
        "loading": Unavailable("loading"),
        "plain 429": HTTPException(429, "slower"),
        "plain 503": HTTPException(503, "later"),
        "unforeseen": RuntimeError("/home/secret"),
    }

    async def failing(body: Body) -> None:
        if body.name in failures:
            raise failures[body.name]

    async def reading() -> None: ...

    for path in FAMILIES:
        app.post(path, dependencies=[GENERATE])(failing)
        app.get(path, dependencies=[READ])(reading)
    with TestClient(app, headers={"authorization": f"Bearer {key}"}) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "status", "kind", "param", "code"),
    [
        ("field", 422, "invalid_request_error", "steps", "invalid_request"),
        ("fields", 422, "invalid_request_error", None, "invalid_request"),
        ("job", 422, "invalid_request_error", "prompt", "invalid_request"),
        ("checkpoint", 404, "invalid_request_error", "model", "not_found"),
        ("sampler", 404, "invalid_request_error", "sampler_name", "not_found"),
        ("memory", 507, "server_error", None, "out_of_memory"),
        ("failed", 500, "server_error", None, "job_failed"),
        ("full", 429, "rate_limit_error", None, "overloaded"),
        ("loading", 503, "server_error", None, "unavailable"),
        ("plain 429", 429, "rate_limit_error", None, "http_error"),
        ("unforeseen", 500, "server_error", None, "internal_error"),
    ],
)
def test_openais_clients_find_what_they_look_for(
    client: TestClient, name: str, status: int, kind: str, param: str | None, code: str
) -> None:
    answer = client.post("/v1/new", json={"steps": 1, "name": name})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert list(answer.json()) == ["error"]
    assert list(error) == ["message", "type", "param", "code", "request_id"]
    assert (error["type"], error["param"], error["code"]) == (kind, param, code)
    assert error["request_id"] == answer.headers["x-request-id"]
    assert error["message"]
    assert "/home" not in answer.text


def refused(client: TestClient, path: str, status: int) -> Any:
    """A request that is answered with this status before any route sees it."""
    match status:
        case 400:
            return client.post(path, content=b"{}", headers={"content-length": "x"})
        case 401:
            return client.get(path, headers={"authorization": "Bearer wrong"})
        case 404:
            return client.get(f"{path}/nope")
        case 405:
            return client.put(path)
        case 413:
            return client.post(path, content=b" " * 1025)
        case _:
            return client.post(path, json={"steps": "many"})


@pytest.mark.parametrize("status", [400, 401, 404, 405, 413, 422])
def test_what_never_comes_to_a_route_speaks_its_dialect_too(client: TestClient, status: int) -> None:
    a1111, openai = (refused(client, path, status) for path in FAMILIES)
    assert (a1111.status_code, openai.status_code) == (status, status)
    assert list(openai.json()) == ["error"]
    error = openai.json()["error"]
    assert list(error) == ["message", "type", "param", "code", "request_id"]
    assert error["request_id"] == openai.headers["x-request-id"]
    assert error["type"] == ("authentication_error" if status == 401 else "invalid_request_error")
    if status in (404, 405):
        assert list(a1111.json()) == ["detail"]
    else:
        assert list(a1111.json()) == ["error", "detail", "body", "errors"]
        assert a1111.json()["detail"] == error["message"]
    if status == 422:
        assert error["param"] == "steps"
    if status == 405:
        assert set(openai.headers["allow"].split(", ")) >= {"POST"}


def test_a_missing_field_is_named(client: TestClient) -> None:
    assert client.post("/sdapi/v1/new", json={}).json()["detail"] == "steps: needed, and not given"
    assert "body is missing" in client.post("/sdapi/v1/new").json()["detail"]


@pytest.mark.parametrize("name", ["full", "loading", "plain 429", "plain 503"])
@pytest.mark.parametrize("path", FAMILIES)
def test_429_and_503_always_say_when_to_come_again(client: TestClient, path: str, name: str) -> None:
    answer = client.post(path, json={"steps": 1, "name": name})
    assert answer.status_code in (429, 503)
    assert 1 <= int(answer.headers["retry-after"]) <= 120


def test_a_mounted_service_finds_its_dialects(client: TestClient) -> None:
    inner = TestClient(client.app, root_path="/v1", headers=dict(client.headers))
    assert list(inner.get("/v1/nope").json()) == ["detail"]
    assert list(inner.get("/v1/v1/nope").json()) == ["error"]


def test_a_sampler_that_is_not_there_has_a_fixed_detail_for_a1111_alone(client: TestClient) -> None:
    body = {"steps": 1, "name": "sampler"}
    a1111 = client.post("/sdapi/v1/new", json=body).json()
    assert (a1111["detail"], a1111["errors"]) == ("Sampler not found", "sampler_name: 'x' is not known.")
    assert client.post("/v1/new", json=body).json()["error"]["message"] == a1111["errors"]


def test_the_nearest_of_a_closed_list_is_told(draw: Callable[..., Any]) -> None:
    detail = draw(override_settings={"emphasis": "no norn"}).json()["detail"]
    assert detail.startswith("override_settings.emphasis: 'no norn' is not allowed")
    assert "Nearest: No norm" in detail
