import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from engine.protocol import Checkpoint
from ingress.app import build_app
from ingress.settings import Limits, Settings
from tests.ingress.fakes import FakeBackend


@pytest.mark.parametrize(("path", "files"), [("/docs", 3), ("/redoc", 2)])
def test_docs_load_nothing_from_another_host(client: TestClient, path: str, files: int) -> None:
    page = client.get(path)
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert not re.search(r"[a-z]+://|\*|https?:", policy)
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == files
    assert "://" not in page.text
    for link in links:
        assert re.match("/(docs|redoc)/assets/", link)
        assert client.get(link).status_code == 200
    assert "/openapi.json" in page.text
    assert client.get(f"{path}/assets/LICENSE").status_code == 200


def test_docs_work_under_a_root_path(client: TestClient) -> None:
    inner = TestClient(client.app, root_path="/sd", headers=dict(client.headers))
    assert '"/sd/docs/assets/swagger-ui-bundle.js"' in inner.get("/docs").text
    assert '"/sd/redoc/assets/redoc.standalone.js"' in inner.get("/redoc").text
    assert inner.get("/sd/docs/assets/swagger-ui.css").status_code == 200
    assert inner.get("/sd/openapi.json").json()["servers"] == [{"url": "/sd"}]
    assert "servers" not in client.get("/openapi.json").json()
    assert TestClient(client.app, root_path="/sd").get("/sd/health/live").status_code == 200
    assert TestClient(client.app, root_path="/sd").get("/sd/metrics").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/docs/assets/../../app.py",
        "/docs/assets/%2e%2e/%2e%2e/app.py",
        "/docs/assets/..%5c..%5capp.py",
        "/redoc/assets/%2e%2e/swagger-ui/LICENSE",
        "/redoc/assets//etc/passwd",
        "/redoc/assets/%00",
        "/redoc/assets/",
    ],
)
def test_assets_are_the_only_files_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_metrics_are_the_backends(client: TestClient) -> None:
    answer = client.get("/metrics")
    assert answer.text == "atelier_jobs_total 1\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_ready_means_that_some_checkpoint_takes_jobs(client: TestClient, backend: FakeBackend) -> None:
    assert client.get("/health/ready").status_code == 200
    backend.offered = (Checkpoint(name="a", filename="a.safetensors", available=False),)
    assert client.get("/health/ready").status_code == 503
    assert client.get("/health/live").status_code == 200


def test_probes_of_clients_are_answered(client: TestClient) -> None:
    assert client.head("/").status_code == 200
    assert client.get("/").json()["service"] == "atelier"


def test_options_are_answered_everywhere_and_to_everybody(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    stranger = TestClient(app)
    for route in app.routes:
        assert isinstance(route, APIRoute)
        path = route.path.replace("{number:int}", "0").replace("{", "").replace("}", "")
        answer = stranger.options(path)
        assert answer.status_code == 204, route.path
        assert set(route.methods or ()) <= set(answer.headers["allow"].split(", "))
        assert answer.content == b""
    assert stranger.options("/sdapi/v1/txt2img/").headers["allow"] == "OPTIONS, POST"
    for path in ("/nope", "/v1/images/generations"):
        assert (stranger.options(path).status_code, stranger.options(path).headers["allow"]) == (
            204,
            "OPTIONS",
        )


def test_sd_models_lists_titles_and_no_paths_of_the_machine(client: TestClient) -> None:
    models = client.get("/sdapi/v1/sd-models").json()
    assert list(models[0]) == ["title", "model_name", "hash", "sha256", "filename", "config", "name"]
    assert models[0] | {"config": None} == {
        "title": "demo.safetensors",
        "model_name": "demo",
        "hash": None,
        "sha256": None,
        "filename": "demo.safetensors",
        "config": None,
        "name": "demo",
    }
    assert models[1]["title"] == "real/majicmixRealistic_v7.safetensors [7c819b6d13]"
    assert models[1]["hash"] == models[1]["sha256"][:10]
    for model in models:
        assert client.post("/sdapi/v1/txt2img", json={"model": model["title"]}).status_code == 200


@pytest.mark.parametrize("given", ["abc-1.2_Z", "a" * 128])
def test_a_sane_request_id_is_kept(client: TestClient, given: str) -> None:
    assert client.get("/", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "a\u0301", "<x>"])
def test_any_other_request_id_is_replaced(client: TestClient, given: str) -> None:
    answer = client.get("/", headers=[(b"x-request-id", given.encode())])
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert float(answer.headers["x-process-time"]) >= 0


def test_every_request_is_observed_once_under_a_bounded_name(
    backend: FakeBackend, key: str, settings: Settings
) -> None:
    seen: list[tuple[str, str, int]] = []

    def observe(*, route: str, model: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        seen.append((route, model, status))

    small = settings.model_copy(update={"limits": Limits(max_body_bytes=1024)})
    app = build_app(backend, small, observe)
    with TestClient(app, headers={"authorization": f"Bearer {key}"}) as client:
        client.post("/sdapi/v1/txt2img", json={"model": "DEMO.safetensors"})
        client.post("/v1/sdapi/v1/txt2img/", json={"model": "unheard-of"})
        client.post("/sdapi/v1/txt2img", content=b" " * 2000)
        client.get("/sdapi/v1/txt2img")
        client.get("/metrics", headers={"authorization": ""})
        client.get("/docs/assets/swagger-ui.css")
        for number in range(3):
            client.get(f"/{number}")
        backend.fail = RuntimeError("unforeseen")
        client.post("/sdapi/v1/txt2img", json={})
    assert seen == [
        ("/sdapi/v1/txt2img", "demo", 200),
        ("/v1/sdapi/v1/txt2img", "", 404),
        ("/sdapi/v1/txt2img", "", 413),
        ("/sdapi/v1/txt2img", "", 405),
        ("/metrics", "", 401),
        ("/docs/assets/{name:path}", "", 200),
        *[("other", "", 404)] * 3,
        ("/sdapi/v1/txt2img", "demo", 500),
    ]


def test_the_app_depends_on_nothing_of_the_module(make_client: Callable[..., Any]) -> None:
    first, second = make_client(), make_client(compat_version="v1.10.1")
    assert len(first.get("/sdapi/v1/samplers").json()) == 30
    assert len(second.get("/sdapi/v1/samplers").json()) == 20
