"""What is not here: clients that ask for it are told so, and go on."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from ingress.routes.absent import ANSWERS
from ingress.settings import Settings


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(("path", "answered"), ANSWERS.items())
def test_lists_of_extensions_are_empty(client: TestClient, prefix: str, path: str, answered: Any) -> None:
    answer = client.get(f"{prefix}{path}")
    assert (answer.status_code, answer.json()) == (200, answered)


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/controlnet/version", "ControlNet"),
        ("POST", "/controlnet/detect", "ControlNet"),
        ("POST", "/controlnet/txt2img", "ControlNet"),
        ("POST", "/controlnet/render_openpose_json", "ControlNet"),
        ("GET", "/adetailer/v1/version", "ADetailer"),
        ("GET", "/adetailer/v1/ad_model", "ADetailer"),
        ("POST", "/reactor/image", "ReActor"),
        ("POST", "/reactor/facemodels", "ReActor"),
        ("GET", "/sam/heartbeat", "Segment Anything"),
        ("POST", "/sam/sam-predict", "Segment Anything"),
        ("POST", "/rembg", "rembg"),
        ("POST", "/tagger/v1/interrogate", "WD14"),
        ("GET", "/model_keyword/get_keywords", "model-keyword"),
        ("POST", "/promptgen/generate", "promptgen"),
        ("POST", "/instruct-pix2pix/img2img", "instruct-pix2pix"),
        ("GET", "/config", "web interface"),
        ("POST", "/login", "API key"),
    ],
)
def test_what_extensions_do_is_refused_by_name(
    client: TestClient, prefix: str, method: str, path: str, name: str
) -> None:
    answer = client.request(method, f"{prefix}{path}/", content=b"not json")
    assert answer.status_code == 404
    assert list(answer.json()) == ["error", "detail", "body", "errors"]
    assert name in answer.json()["detail"]
    assert answer.headers["x-should-retry"] == "false"


def test_a_preflight_of_what_is_absent_is_answered(client: TestClient) -> None:
    assert client.options("/controlnet/model_list").status_code == 204


def test_strangers_are_not_told_what_is_absent(client: TestClient, settings: Settings) -> None:
    assert settings.auth == "keys"
    for path in ("/controlnet/model_list", "/internal/ping", "/reactor/any", "/sdapi/v1/artists"):
        assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
