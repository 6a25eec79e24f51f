import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from engine.protocol import (
    AtelierError,
    DeadlineExceeded,
    InvalidJob,
    JobAborted,
    JobFailed,
    NotFinite,
    OutOfMemory,
    Overloaded,
    Unavailable,
)
from ingress.app import build_app
from ingress.schemas.sdapi import Txt2ImgRequest
from ingress.settings import Settings
from tests.ingress.fakes import FakeBackend

ROOT = re.escape(str(Path(__file__).parents[2]))
LEAKS = re.compile(ROOT + r"|0x[0-9a-f]{6,}|Traceback|/home|/usr|site-packages|\b\d+\.\d+\.\d+\.\d+\b")

Draw = Callable[..., Any]


def assert_four_keys(answer: Any) -> dict[str, str]:
    body = answer.json()
    assert list(body) == ["error", "detail", "body", "errors"]
    assert all(isinstance(value, str) for value in body.values())
    assert not LEAKS.search(answer.text)
    return dict(body)


class Unforeseen(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "status", "name", "header"),
    [
        (InvalidJob("no such size"), 422, "InvalidRequest", ("x-should-retry", "false")),
        (JobFailed("it failed"), 500, "RuntimeError", ("x-should-retry", "false")),
        (NotFinite("not finite"), 500, "NansException", ("x-should-retry", "false")),
        (OutOfMemory("too large"), 507, "OutOfMemoryError", ("x-should-retry", "false")),
        (JobAborted("aborted"), 409, "JobAborted", ("x-should-retry", "false")),
        (Overloaded("full", 2.3), 429, "Overloaded", ("retry-after", "3")),
        (Overloaded("full"), 429, "Overloaded", ("retry-after", "1")),
        (Unavailable("loading", 0.0), 503, "Unavailable", ("retry-after", "1")),
        (Unavailable("loading", float("inf")), 503, "Unavailable", ("retry-after", "120")),
        (DeadlineExceeded("too late"), 504, "DeadlineExceeded", None),
        (AtelierError("odd"), 500, "RuntimeError", ("x-should-retry", "false")),
        (type("RayTaskError", (OutOfMemory,), {})("subclass"), 507, "OutOfMemoryError", None),
    ],
)
def test_each_error_of_a_job_has_its_status(
    draw: Draw,
    backend: FakeBackend,
    error: AtelierError,
    status: int,
    name: str,
    header: tuple[str, str] | None,
) -> None:
    backend.fail = error
    answer = draw(batch_size=2)
    assert answer.status_code == status
    assert assert_four_keys(answer) == {"error": name, "detail": error.message, "body": "", "errors": ""}
    if header:
        assert answer.headers[header[0]] == header[1]


def test_what_nobody_foresaw_is_logged_and_not_told(
    draw: Draw, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.fail = Unforeseen("/home/secret 10.0.0.1")
    with caplog.at_level(logging.ERROR):
        answer = draw()
    assert answer.status_code == 500
    body = assert_four_keys(answer)
    assert body["detail"] == "Internal server error"
    assert answer.headers["x-request-id"] in body["errors"]
    assert answer.headers["x-request-id"] in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b'{"cfg_scale": NaN}', 422, ["cfg_scale", "nan", "finite"]),
        (b'{"steps": Infinity}', 422, ["steps", "inf", "finite"]),
        (b'{"cfg_scale": 1e999}', 422, ["cfg_scale", "inf", "finite"]),
        (b'{"script_args": [NaN]}', 422, ["script_args", "finite"]),
        (b'{"steps": "many"}', 422, ["steps", "'many'", "integer"]),
        (b'{"steps": 0}', 422, ["steps", "0", "1 to 150"]),
        (b'{"steps": 151}', 422, ["steps", "151", "1 to 150"]),
        (b'{"width": 63}', 422, ["width", "63", "64 to 2048"]),
        (b'{"height": 2049}', 422, ["height", "2049", "64 to 2048"]),
        (b'{"batch_size": 0}', 422, ["batch_size", "0", "1 to 16"]),
        (b'{"batch_size": 4, "n_iter": 5}', 422, ["batch_size", "n_iter", "20", "1 to 16"]),
        (b'{"cfg_scale": 31}', 422, ["cfg_scale", "31", "0 to 30"]),
        (b'{"eta": 2}', 422, ["eta", "2", "0 to 1"]),
        (b'{"seed": 9223372036854775807}', 422, ["seed", "64 bits"]),
        (b'{"seed": 99999999999999999999}', 422, ["seed", "64 bits"]),
        (b'{"prompt": "%s"}' % (b"a" * 4001), 422, ["prompt", "4001", "4000"]),
        (b'{"model": "majicmix"}', 404, ["model", "'majicmix'", "Nearest: majicmixRealistic_v7", "demo"]),
        (b'{"override_settings": {"sd_model_checkpoint": "x"}}', 404, ["sd_model_checkpoint", "'x'"]),
        (b'{"override_settings": {"CLIP_stop_at_last_layers": 13}}', 422, ["CLIP_stop", "13", "12"]),
        (b'{"scheduler": "fast"}', 404, ["scheduler", "'fast'", "Karras"]),
        (b'{"prompt": "\\ud800"}', 422, ["prompt", "Unicode"]),
        (b'{"steps": 20', 422, ["JSON", "character"]),
        (b"", 422, ["body"]),
        (b"[]", 422, ["JSON object"]),
        (b'"text"', 422, ["JSON object"]),
        (b"null", 422, ["body"]),
        (b"[" * 100_000, 400, ["JSON"]),
        (b'{"script_args": ' + b"[" * 900 + b"]" * 900 + b"}", 422, ["script_args", "nested"]),
        (b'{"seed": ' + b"1" * 5000 + b"}", 400, ["JSON"]),
        (b"\xff\xfe\xfd", 400, ["UTF-8"]),
        (b'{"prompt": "\xff"}', 400, ["UTF-8"]),
    ],
)
def test_bad_input_is_answered_with_field_value_and_what_is_allowed(
    client: TestClient, body: bytes, status: int, said: list[str]
) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post("/sdapi/v1/txt2img", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    detail = assert_four_keys(answer)["detail"]
    for part in said:
        assert part in detail
    assert len(detail) < 500


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "x", ""])
def test_a_wrong_content_type_is_never_a_server_error(client: TestClient, content_type: str) -> None:
    answer = client.post("/sdapi/v1/txt2img", content=b'{"steps": 1}', headers={"content-type": content_type})
    assert answer.status_code in (200, 422)
    if answer.status_code == 422:
        assert "application/json" in assert_four_keys(answer)["detail"]


def test_a_huge_value_is_not_repeated(draw: Draw) -> None:
    for body in ({"steps": "x" * 1_000_000}, {"model": "y" * 1_000_000}, {"sampler_name": "z" * 1_000_000}):
        answer = draw(**body)
        assert answer.status_code in (404, 422)
        assert len(answer.content) < 1000


def test_no_checkpoint_at_all_is_said(draw: Draw, backend: FakeBackend) -> None:
    backend.offered = ()
    assert draw().status_code == 503


def test_unknown_routes_and_methods_answer_as_upstream(client: TestClient) -> None:
    unknown, method = client.get("/sdapi/v1/nope"), client.get("/sdapi/v1/txt2img")
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Not Found"})
    assert (method.status_code, method.json()) == (405, {"detail": "Method Not Allowed"})
    assert method.headers["allow"] == "POST"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(list(Txt2ImgRequest.model_fields))
PLAUSIBLE = st.sampled_from(["20", 20.7, -1, 0, 1, 2**63, True, "", "Euler a", "karras", "demo", [], {}])


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[TestClient]:
    with TestClient(build_app(FakeBackend(), Settings(auth="off"))) as client:
        yield client


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.dictionaries(FIELDS, PLAUSIBLE | JSON, max_size=6))
def test_no_json_object_gives_a_server_error(fuzzed: TestClient, body: dict[str, Any]) -> None:
    answer = fuzzed.post("/sdapi/v1/txt2img", content=json.dumps(body).encode())
    assert answer.status_code in (200, 400, 404, 422), answer.text
    if answer.status_code != 200:
        assert_four_keys(answer)


@hypothesis_settings(max_examples=50, deadline=None)
@given(body=st.binary(max_size=64))
def test_no_bytes_give_a_server_error(fuzzed: TestClient, body: bytes) -> None:
    answer = fuzzed.post("/sdapi/v1/txt2img", content=body)
    assert answer.status_code in (200, 400, 422), answer.text
