from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from ingress.app import build_app
from ingress.middleware import BodyLimit
from ingress.settings import Limits, Settings
from tests.ingress.fakes import FakeBackend

Draw = Callable[..., Any]


@pytest.mark.parametrize(
    "body",
    [
        {"restore_faces": True},
        {"s_min_uncond": 1},
        {"script_name": "X/Y/Z plot"},
        {"save_images": True},
        {"alwayson_scripts": {"controlnet": {"args": [{"enabled": True}]}}},
        {"override_settings": {"sigma_min": 0.1}},
        {"override_settings": {"sgm_noise_multiplier": True}},
        {"override_settings": {"uni_pc_order": 2}},
        {"override_settings": {"beta_dist_alpha": 0.5}},
        {"override_settings": {"token_merging_ratio": 0.5}},
        {"override_settings": {"inpainting_mask_weight": 0.5}},
        {"override_settings": {"sd_noise_schedule": "Zero Terminal SNR"}},
    ],
)
def test_a_feature_that_is_not_there_is_refused_by_name(
    draw: Draw, backend: FakeBackend, body: dict[str, Any]
) -> None:
    answer = draw(**body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(next(iter(body)))
    assert "feature that this version does not have" in answer.json()["detail"]
    assert backend.jobs == []


@pytest.mark.parametrize(
    "body",
    [
        {"seed_resize_from_h": 0, "seed_resize_from_w": 0},
        {"seed_resize_from_h": 512, "seed_resize_from_w": -1},
        {"s_min_uncond": 0},
        {"script_name": "", "script_args": [1]},
        {"styles": ["unknown"]},
        {"hr_upscaler": "Latent", "hr_scale": 4},
        {"denoising_strength": 0.7},
        {"alwayson_scripts": {"ADetailer": {"args": [False]}, "ControlNet": {"args": []}, "x": {}}},
        {"override_settings": {"sd_vae": "Automatic", "samples_format": "png", "filter_nsfw": True}},
    ],
)
def test_what_clients_send_without_meaning_it_is_accepted(draw: Draw, body: dict[str, Any]) -> None:
    assert draw(**body).status_code == 200


def test_the_operators_limits_count(make_client: Callable[..., TestClient]) -> None:
    limits = Limits(max_pixels=600 * 600, max_steps=10, max_images=2, max_prompt_chars=3)
    client = make_client(limits=limits)
    small = {"steps": 10}
    for body, status in (
        (small, 200),
        ({"steps": 11}, 422),
        (small | {"width": 600, "height": 600}, 200),
        (small | {"width": 601, "height": 600}, 422),
        (small | {"batch_size": 2}, 200),
        (small | {"batch_size": 2, "n_iter": 2}, 422),
        (small | {"negative_prompt": "abcd"}, 422),
    ):
        assert client.post("/sdapi/v1/txt2img", json=body).status_code == status, body


@pytest.fixture
def small_client() -> Iterator[TestClient]:
    settings = Settings(auth="off", limits=Limits(max_body_bytes=1024))
    with TestClient(build_app(FakeBackend(), settings)) as client:
        yield client


def test_a_body_over_the_limit_is_refused_unread(small_client: TestClient) -> None:
    def body() -> Iterator[bytes]:
        raise AssertionError("read")
        yield b""

    answer = small_client.post("/sdapi/v1/txt2img", content=body(), headers={"content-length": "1025"})
    assert answer.status_code == 413
    assert list(answer.json()) == ["error", "detail", "body", "errors"]
    assert "1024 bytes" in answer.json()["detail"]


async def test_a_body_that_does_not_declare_its_length_is_cut_off() -> None:
    sent: list[Message] = []
    chunks = 0

    async def receive() -> Message:
        nonlocal chunks
        chunks += 1
        return {"type": "http.request", "body": b" " * 512, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    app = build_app(FakeBackend(), Settings(auth="off", limits=Limits(max_body_bytes=1024)))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/sdapi/v1/txt2img",
        "query_string": b"",
        "headers": [],
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert b"1024 bytes" in sent[1]["body"]
    assert chunks == 3


def test_a_body_at_the_limit_is_read(small_client: TestClient) -> None:
    body = b'{"steps": 1}'.ljust(1024)
    assert small_client.post("/sdapi/v1/txt2img", content=body).status_code == 200
    assert small_client.post("/sdapi/v1/txt2img", content=body + b" ").status_code == 413


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "²", "", "9" * 5000])
async def test_a_wrong_content_length_is_answered(length: str) -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("passed on")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("read")

    scope = {"type": "http", "path": "/", "headers": [(b"content-length", length.encode("utf-8"))]}
    await BodyLimit(never, max_bytes=1024)(scope, receive, send)
    assert sent[0]["status"] == (413 if length.startswith("9") else 400)
