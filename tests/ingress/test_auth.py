import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.testclient import TestClient

from ingress.app import build_app
from ingress.dialects import dialect
from ingress.routes import absent
from ingress.scopes import GENERATE, READ, check_routes, need_of
from ingress.settings import KEY_SCOPES, Key, KeyScope, Settings
from tests.ingress.bodies import bodies, willing_backend
from tests.ingress.fakes import FakeBackend

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

FORMS: dict[str, Callable[[bytes], Headers]] = {
    "bearer": lambda secret: [(b"authorization", b"Bearer " + secret)],
    "basic password": lambda secret: [(b"authorization", basic(b"anyone", secret))],
    "basic user name": lambda secret: [(b"authorization", basic(secret, b""))],
    "x-api-key": lambda secret: [(b"x-api-key", secret)],
}


def key(secret: str, *scopes: KeyScope) -> Key:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return Key(id=secret, sha256=digest, scopes=frozenset(scopes or KEY_SCOPES))


def filled(template: str) -> str:
    """A path of the template."""
    return re.sub(r"\{[^}]*\}", "x", template.replace("{number:int}", "0"))


SETTINGS = Settings(
    keys=(
        key("correct-horse"),
        key("battery-staple"),
        *(key(f"for-{scope}", scope) for scope in KEY_SCOPES),
    )
)

PUBLIC_PATHS = {"/", "/health/live", "/health/ready"}
ABSENT = {
    filled(prefix + refusal.path)
    for prefixes, refusals in ((("/sdapi/v1", "/v1/sdapi/v1"), absent.SDAPI), (("", "/v1"), absent.ROOT))
    for prefix in prefixes
    for refusal in refusals
}
"""Paths of what is refused to every key."""

ROUTES = [
    (method, filled(route.path), need_of(route))
    for route in build_app(FakeBackend(), SETTINGS).routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods or ())
] + [
    ("GET", "/docs/assets/swagger-ui.css", "key"),
    ("GET", "/nope", "key"),
    ("GET", "/v1/nope", "key"),
    ("PUT", "/metrics", "key"),
]
"""Every route with what it says that it needs; and what there is not."""

BODIES = bodies(build_app(FakeBackend(), SETTINGS))


@pytest.fixture(scope="module")
def anybody() -> Iterator[TestClient]:
    with TestClient(build_app(willing_backend(), SETTINGS)) as client:
        yield client


def ask(client: TestClient, method: str, path: str, headers: Headers) -> Any:
    content = json.dumps(BODIES.get(path, {})).encode()
    return client.request(method, path, headers=headers, content=content)


def test_the_matrix_covers_every_route() -> None:
    paths = {path for _, path, _ in ROUTES}
    assert {"/", "/docs", "/redoc", "/metrics", "/openapi.json", "/health/live"} <= paths
    assert {"/v1/sdapi/v1/txt2img", "/sdapi/v1/sd-models", "/v1/jobs/x/events"} <= paths


FOR_ANY_KEY = ("/docs", "/redoc", "/openapi.json", "/nope", "/v1/nope")
READING_POSTS = ("/png-info", "/internal/progress")


def test_what_routes_need_is_what_was_meant() -> None:
    """Told here once more, in another way: a route that is opened by mistake is found."""
    for method, path, need in ROUTES:
        if path in PUBLIC_PATHS:
            assert need == "public", path
        elif path in ABSENT or method == "PUT" or path.startswith(FOR_ANY_KEY):
            assert need == "key", path
        elif path == "/metrics" or re.search("/(refresh-|unload-|reload-)", path):
            assert need == "operate", path
        else:
            reads = method == "GET" or path.endswith(READING_POSTS)
            assert need == ("read" if reads else "generate"), path


def test_a_route_must_say_what_it_needs_once() -> None:
    async def endpoint() -> None: ...

    for stated in ([], [READ, GENERATE]):
        app = FastAPI(openapi_url=None)
        app.get("/new", dependencies=stated)(endpoint)
        with pytest.raises(TypeError, match=r"/new.*wants one of"):
            check_routes(app)
    app = FastAPI(openapi_url=None)
    app.get("/new", dependencies=[READ])(endpoint)
    app.api_route("/new", methods=["POST", "GET"], dependencies=[GENERATE])(endpoint)
    with pytest.raises(TypeError, match=r"GET /new.* twice"):
        check_routes(app)
    with pytest.raises(TypeError, match="wants one of"):
        check_routes(FastAPI(docs_url=None, redoc_url=None))  # FastAPI's own /openapi.json


@pytest.mark.parametrize("case", REFUSED)
def test_without_a_key_every_route_but_the_public_ones_gives_the_same_401(
    anybody: TestClient, case: str
) -> None:
    plain = anybody.get("/metrics")
    for method, path, _ in ROUTES:
        answer = anybody.request(method, path, headers=REFUSED[case])
        if path in PUBLIC_PATHS:
            assert answer.status_code == 200, (method, path)
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.headers.get_list("www-authenticate") == ["Bearer", 'Basic realm="atelier"']
        if method != "HEAD" and dialect(path) == "a1111":
            assert list(answer.json()) == ["error", "detail", "body", "errors"]
            assert answer.content == plain.content
        elif method != "HEAD":
            assert answer.json()["error"]["message"] == plain.json()["detail"]


@pytest.mark.parametrize("case", ADMITTED)
def test_a_key_is_understood_in_each_form(anybody: TestClient, case: str) -> None:
    for method, path in (("GET", "/metrics"), ("POST", "/sdapi/v1/txt2img"), ("GET", "/docs")):
        assert ask(anybody, method, path, ADMITTED[case]).status_code == 200, (method, path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", ["wrong", "correct-horse", *(f"for-{scope}" for scope in KEY_SCOPES)])
def test_a_key_opens_the_routes_that_it_is_for_and_no_others(
    anybody: TestClient, form: str, secret: str
) -> None:
    for method, path, need in ROUTES:
        answer = ask(anybody, method, path, FORMS[form](secret.encode()))
        if need != "public" and secret == "wrong":
            assert answer.status_code == 401, (method, path)
        elif need in KEY_SCOPES and secret not in ("correct-horse", f"for-{need}"):
            assert answer.status_code == 403, (method, path)
            assert f"a key with the scope {need}; this key has {secret.removeprefix('for-')}." in answer.text
        else:
            assert answer.status_code in expected(method, path), (method, path)


def expected(method: str, path: str) -> tuple[int, ...]:
    if method == "PUT":
        return (405,)
    if (method, path) == ("POST", "/v1/jobs"):
        return (202,)
    missing = (
        path.endswith("/nope")
        or path.startswith("/v1/jobs/")
        or path in ("/docs/assets/x", "/redoc/assets/x")
    )
    return (404,) if missing else (404, 501) if path in ABSENT else (200,)


def test_of_two_keys_the_one_that_is_for_it_counts(anybody: TestClient) -> None:
    both = [*FORMS["bearer"](b"for-read"), *FORMS["x-api-key"](b"for-operate")]
    assert ask(anybody, "GET", "/metrics", both).status_code == 200
    assert ask(anybody, "GET", "/sdapi/v1/loras", both).status_code == 200
    assert ask(anybody, "POST", "/sdapi/v1/txt2img", both).status_code == 403


def test_a_route_knows_whose_key_it_was(anybody: TestClient) -> None:
    backend = FakeBackend()
    with TestClient(build_app(backend, SETTINGS)) as client:
        for secret in (b"battery-staple", b"for-generate"):
            ask(client, "POST", "/sdapi/v1/txt2img", FORMS["bearer"](secret))
    assert [order.key for order in backend.orders] == ["battery-staple", "for-generate"]


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

    def post(headers: Headers) -> int:
        return anybody.post("/sdapi/v1/txt2img", content=body(), headers=headers).status_code  # type: ignore[arg-type]

    assert post([]) == 401
    assert post(FORMS["bearer"](b"for-read")) == 403
