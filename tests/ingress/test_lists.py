"""Lists of what there is to name, and looking for it again."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.protocol import Checkpoint
from tests.ingress.fakes import FakeBackend


def test_sd_models_are_by_name_behind_the_default(client: TestClient, backend: FakeBackend) -> None:
    backend.offered = [Checkpoint(name=n, filename=f"{n}.safetensors") for n in ("m", "b", "Z", "A")]
    listed = client.get("/sdapi/v1/sd-models").json()
    assert [model["model_name"] for model in listed] == ["m", "A", "b", "Z"]
    assert all(model["name"] == model["model_name"] for model in listed)
    backend.offered = ()
    assert client.get("/sdapi/v1/sd-models").json() == []


@pytest.mark.parametrize("prefix", ["/sdapi/v1", "/v1/sdapi/v1"])
@pytest.mark.parametrize("name", ["hypernetworks", "face-restorers", "extensions"])
def test_what_there_is_none_of_is_an_empty_list(client: TestClient, prefix: str, name: str) -> None:
    answer = client.get(f"{prefix}/{name}")
    assert (answer.status_code, answer.json()) == (200, [])


@pytest.mark.parametrize("prefix", ["/sdapi/v1", "/v1/sdapi/v1"])
@pytest.mark.parametrize(
    ("route", "kinds"),
    [
        ("refresh-loras", ["loras"]),
        ("refresh-embeddings", ["embeddings"]),
        ("refresh-vae", ["vaes"]),
        ("refresh-checkpoints", []),
    ],
)
def test_replicas_look_again(
    client: TestClient, backend: FakeBackend, prefix: str, route: str, kinds: list[str]
) -> None:
    answer = client.post(f"{prefix}/{route}")
    assert (answer.status_code, answer.json()) == (200, None)
    assert backend.refreshed == kinds


@pytest.mark.parametrize(
    ("route", "answered", "word"),
    [
        ("refresh-checkpoints", None, "configuration"),
        ("unload-checkpoint", {}, "replicas of its own"),
        ("reload-checkpoint", {}, "replicas of its own"),
    ],
)
def test_what_has_no_effect_says_so(client: TestClient, route: str, answered: Any, word: str) -> None:
    answer = client.post(f"/sdapi/v1/{route}")
    assert (answer.status_code, answer.json()) == (200, answered)
    (warning,) = json.loads(answer.headers["x-warnings"])
    assert word in warning
