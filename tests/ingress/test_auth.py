import base64
import hashlib
import json
from collections.abc import Callable, Iterator

import pytest
from pydantic import ValidationError
from starlette.routing import Route
from starlette.testclient import TestClient

from ingress.app import build_app
from ingress.auth import PUBLIC_PATHS
from ingress.settings import Key, Settings
from tests.ingress.fakes import FakeBackend, picture

Headers = list[tuple[bytes, bytes]]


def basic(user: bytes, password: bytes) -> bytes:
    return b"Basic " + base64.b64encode(user + b":" + password)


KEY = b"correct-horse"

REFUSED: dict[str, Headers] = {
    "none": [],
    "empty": [(b"authorization", b"")],
    "scheme alone": [(b"authorization", b"Bearer")],
    "empty bearer": [(b"authorization", b"Bearer ")],
    "wrong scheme": [(b"authorization", b"Digest correct-horse")],
    "no scheme": [(b"authorization", b"correct-horse")],
    "wrong bearer": [(b"authorization", b"Bearer correct-horsf")],
    "prefix of the key": [(b"authorization", b"Bearer correct-hors")],
    "key and more": [(b"authorization", b"Bearer correct-horse x")],
    "other case": [(b"authorization", b"Bearer Correct-Horse")],
    "digest of the key": [(b"authorization", b"Bearer %s" % hashlib.sha256(KEY).hexdigest().encode())],
    "wrong basic": [(b"authorization", basic(b"correct-horse", b"wrong"))],
    "empty basic": [(b"authorization", basic(b"", b""))],
    "undecodable basic": [(b"authorization", b"Basic %%%")],
    "basic without colon": [(b"authorization", b"Basic " + base64.b64encode(b"wrong"))],
    "wrong x-api-key": [(b"x-api-key", b"wrong")],
    "non-ascii": [(b"authorization", b"Bearer \xff\xfe\xc3\xa9")],
    "non-ascii basic": [(b"authorization", b"Basic \xff\xfe")],
    "8 KB": [(b"authorization", b"Bearer " + b"a" * 8192)],
    "two wrong ones": [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")],
}  # fmt: skip

ADMITTED: dict[str, Headers] = {
    "bearer": [(b"authorization", b"Bearer correct-horse")],
    "lower case": [(b"authorization", b"bearer correct-horse")],
    "second key": [(b"authorization", b"Bearer battery-staple")],
    "basic password": [(b"authorization", basic(b"anyone", b"correct-horse"))],
    "basic without user": [(b"authorization", basic(b"", b"correct-horse"))],
    "basic user name": [(b"authorization", basic(b"correct-horse", b""))],
    "x-api-key": [(b"x-api-key", b"correct-horse")],
    "one of two": [(b"authorization", b"Bearer wrong"), (b"x-api-key", b"correct-horse")],
}

SETTINGS = Settings(
    keys=tuple(
        Key(id=secret, sha256=hashlib.sha256(secret.encode()).hexdigest())
        for secret in ("correct-horse", "battery-staple")
    )
)

ROUTES = [
    (method, route.path)
    for route in build_app(FakeBackend(), SETTINGS).routes
    if isinstance(route, Route)
    for method in sorted(route.methods or ())
] + [("GET", "/docs/assets/swagger-ui.css"), ("GET", "/nope"), ("OPTIONS", "/sdapi/v1/txt2img")]


@pytest.fixture(scope="module")
def anybody() -> Iterator[TestClient]:
    with TestClient(build_app(FakeBackend(), SETTINGS)) as client:
        yield client


def test_the_matrix_covers_every_route() -> None:
    paths = {path for _, path in ROUTES}
    operations = {"/", "/docs", "/metrics", "/openapi.json", "/health/live"}
    assert operations | {"/v1/sdapi/v1/txt2img", "/v1/jobs", "/v1/jobs/{id}/events"} <= paths


BODY = json.dumps({"init_images": [picture()]}).encode()
"""One that every route takes."""


@pytest.mark.parametrize("case", REFUSED)
def test_without_a_key_every_route_but_the_public_ones_gives_the_same_401(
    anybody: TestClient, case: str
) -> None:
    plain = anybody.get("/metrics")
    for method, path in ROUTES:
        answer = anybody.request(method, path, headers=REFUSED[case])
        if path in PUBLIC_PATHS:
            assert answer.status_code == 200, (method, path)
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.headers.get_list("www-authenticate") == ["Bearer", 'Basic realm="atelier"']
        if method != "HEAD":
            assert list(answer.json()) == ["error", "detail", "body", "errors"]
            assert answer.content == plain.content


@pytest.mark.parametrize("case", ADMITTED)
def test_with_a_key_every_route_answers(anybody: TestClient, case: str) -> None:
    for method, path in ROUTES:
        headers = [*ADMITTED[case], (b"content-type", b"application/json")]
        answer = anybody.request(method, path, headers=headers, content=BODY)
        assert answer.status_code in (200, 202, 204, 404, 501), (method, path)


def test_a_trailing_slash_opens_nothing(anybody: TestClient) -> None:
    assert anybody.get("/metrics/").status_code == 401
    assert anybody.get("/health/live/").status_code == 200
    assert anybody.get("/health/live/../../metrics").status_code == 401


def test_auth_is_off_only_where_the_operator_says_so(make_client: Callable[..., TestClient]) -> None:
    client = make_client(auth="off", keys=())
    client.headers.pop("authorization")
    assert client.post("/sdapi/v1/txt2img", json={}).status_code == 200
    assert client.get("/metrics", headers={"authorization": "Basic %%%"}).status_code == 200
    with pytest.raises(ValidationError, match="keys: at least one is needed"):
        Settings()
    with pytest.raises(ValidationError, match="once only"):
        Settings(keys=(SETTINGS.keys[0], SETTINGS.keys[0]))


def test_the_body_of_a_stranger_is_not_read(anybody: TestClient) -> None:
    def body() -> object:
        raise AssertionError("read")
        yield b""

    assert anybody.post("/sdapi/v1/txt2img", content=body()).status_code == 401  # type: ignore[arg-type]
