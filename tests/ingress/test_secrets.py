"""What clients send in confidence is neither logged nor sent back."""

import json
import logging
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from tests.ingress.bodies import bodies, willing_backend
from tests.ingress.fakes import FakeBackend

SECRET = "canary-7f3a"
CREDENTIALS = {"auth": f"user:{SECRET}", "url": f"http://user:{SECRET}@127.0.0.1:7860"}


@pytest.fixture
def backend() -> FakeBackend:
    return willing_backend()


def posts(client: TestClient) -> dict[str, dict[str, Any]]:
    """Every route that does something, with a body that it takes."""
    assert isinstance(client.app, FastAPI)
    known = bodies(client.app)
    routes = [r for r in client.app.routes if isinstance(r, APIRoute) and r.include_in_schema]
    assert len(known) > 10
    return {route.path: known.get(route.path, {}) for route in routes if "POST" in (route.methods or ())}


@pytest.mark.parametrize(
    ("body", "failure", "expected"),
    [
        ({}, None, 200),
        ({"include_init_images": True}, None, 200),
        ({"steps": "many"}, None, 422),
        ({"model": "unheard-of"}, None, 404),
        ({}, RuntimeError("unforeseen"), 500),
    ],
)
def test_credentials_stay_in_no_log_and_no_answer(
    client: TestClient,
    backend: FakeBackend,
    caplog: pytest.LogCaptureFixture,
    key: str,
    body: dict[str, Any],
    failure: Exception | None,
    expected: int,
) -> None:
    backend.fail = failure
    headers = [("x-api-key", key), ("authorization", f"Bearer {SECRET}"), ("cookie", f"session={SECRET}")]
    statuses = set()
    with caplog.at_level(logging.DEBUG):
        for path, example in posts(client).items():
            answer = client.post(path, json={**CREDENTIALS, **example, **body}, headers=headers)
            statuses.add(answer.status_code)
            for said in (answer.text, str(answer.headers)):
                assert SECRET not in said
                assert key not in said
        stranger = client.get("/metrics", headers={"authorization": f"Bearer {SECRET}"})
        assert stranger.status_code == 401
        assert SECRET not in stranger.text + str(stranger.headers)
    assert statuses <= {200, 202, expected}
    assert expected in statuses
    logged = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert bool(logged) >= bool(failure)
    formatter = logging.Formatter()
    for record in logged:
        assert SECRET not in formatter.format(record)
        assert key not in formatter.format(record)


@pytest.mark.parametrize(
    "body", [b'{"auth": "canary-7f3a", ', b'["canary-7f3a"]', b'"canary-7f3a"', b"auth=canary-7f3a"]
)
def test_a_body_that_cannot_be_read_is_not_repeated(
    client: TestClient, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    with caplog.at_level(logging.DEBUG):
        for path in posts(client):
            answer = client.post(path, content=body)
            assert answer.status_code in (200, 400, 404, 422), path
            assert SECRET not in answer.text
    assert SECRET not in caplog.text


def test_every_post_works_without_a_content_type(client: TestClient) -> None:
    for path, example in posts(client).items():
        body = json.dumps(example).encode()
        plain = client.post(path, content=body)
        assert "content-type" not in plain.request.headers
        declared = client.post(path, content=body, headers={"content-type": "application/json"})
        status = 202 if path == "/v1/jobs" else 200
        assert plain.status_code == declared.status_code == status, (path, plain.text)
