"""The option `sd_vae`, and what the answer says of files that only replicas know."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.protocol import VaeFile
from tests.ingress.fakes import FakeBackend

Draw = Callable[..., Any]


@pytest.mark.parametrize(
    ("asked", "vae"),
    [
        ("kl-f8.safetensors", "kl-f8.safetensors"),
        ("None", ""),
        ("Automatic", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_vae_is_the_jobs(draw: Draw, backend: FakeBackend, asked: str | None, vae: str) -> None:
    assert draw(override_settings={"sd_vae": asked}).status_code == 200
    assert backend.jobs[0].vae == vae


def test_info_tells_what_replicas_know(draw: Draw, backend: FakeBackend) -> None:
    backend.known = {
        "vae": "kl-f8.safetensors",
        "vae_hash": "0123456789",
        "lora_hashes": "ink: 1",
        "embedding_hashes": "thing: 2",
        "quality": "deepcache 3",
    }
    info = json.loads(draw().json()["info"])
    assert (info["sd_vae_name"], info["sd_vae_hash"]) == ("kl-f8.safetensors", "0123456789")
    assert info["extra_generation_params"] == {
        "Lora hashes": "ink: 1",
        "TI hashes": "thing: 2",
        "Quality": "deepcache 3",
    }


def test_sd_vae_lists_what_there_is(client: TestClient, backend: FakeBackend) -> None:
    backend.vae_files = [VaeFile(name="kl-f8.safetensors", filename="sd1/kl-f8.safetensors")]
    assert client.get("/sdapi/v1/sd-vae").json() == [
        {"model_name": "kl-f8.safetensors", "filename": "sd1/kl-f8.safetensors"}
    ]
