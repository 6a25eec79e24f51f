from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from ingress.settings import Settings

PAGE = "https://page.example"
ROUTE = "/sdapi/v1/txt2img"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}

MakeClient = Callable[..., TestClient]


@pytest.fixture(params=[(PAGE, "http://other.example:7860"), r"https://\w+\.example"])
def page_client(request: pytest.FixtureRequest, make_client: MakeClient) -> TestClient:
    return make_client(cors_origins=request.param)


def granted(answer: Any) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-allow")}


def test_it_is_off_unless_configured(client: TestClient) -> None:
    for answer in (
        client.get("/sdapi/v1/samplers", headers={"origin": PAGE}),
        client.options(ROUTE, headers={"origin": PAGE, **PREFLIGHT}),
    ):
        assert answer.status_code in (200, 204)
        assert granted(answer) == {}


def test_a_preflight_needs_no_key(page_client: TestClient) -> None:
    page_client.headers.pop("authorization")
    answer = page_client.options(ROUTE, headers={"origin": PAGE, **PREFLIGHT})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
    assert {"GET", "POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))


def test_pages_of_these_origins_can_read_answers_and_errors(page_client: TestClient) -> None:
    for path, headers, status in (
        ("/sdapi/v1/samplers", {}, 200),
        ("/sdapi/v1/samplers", {"authorization": "Bearer wrong"}, 401),
        ("/nope", {}, 404),
    ):
        answer = page_client.get(path, headers={"origin": PAGE, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in answer.headers["vary"]
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


def test_pages_can_read_of_errors_that_nobody_foresaw(make_client: MakeClient, backend: Any) -> None:
    backend.fail = RuntimeError("unforeseen")
    answer = make_client(cors_origins=(PAGE,)).post(ROUTE, json={}, headers={"origin": PAGE})
    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    "origin", ["https://page.example.evil", "http://page.example", "https://x.evil", "null"]
)
def test_other_origins_are_granted_nothing(page_client: TestClient, origin: str) -> None:
    answer = page_client.get("/sdapi/v1/samplers", headers={"origin": origin})
    assert "access-control-allow-origin" not in answer.headers
    preflight = page_client.options(ROUTE, headers={"origin": origin, **PREFLIGHT})
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("origins", [("*",), (PAGE, "*")])
def test_every_origin_means_no_credentials(make_client: MakeClient, origins: tuple[str, ...]) -> None:
    client = make_client(cors_origins=origins)
    for answer in (
        client.get("/sdapi/v1/samplers", headers={"origin": PAGE, "cookie": "a=b"}),
        client.options(ROUTE, headers={"origin": PAGE, **PREFLIGHT}),
    ):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("origins", "said"),
    [
        (("https://page.example/",), "is no origin"),
        (("page.example",), "is no origin"),
        (("https://Page.example",), "is no origin"),
        (("https://*.example",), "is no origin"),
        (("null",), "is no origin"),
        ("*", "no regular expression"),
        (".*", "every origin"),
        ("https?://.+", "every origin"),
    ],
)
def test_what_could_not_work_or_would_open_everything_is_refused(origins: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings(auth="off", cors_origins=origins)
