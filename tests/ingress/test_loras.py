"""LoRAs on the wire: what replicas know of them, and what clients are told."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.protocol import Enlargement, Job, JobResult, LoraFile
from tests.ingress.fakes import FakeBackend

HASHES = "ink: 0123456789ab, wash: ba9876543210"


class Knowing(FakeBackend):
    """Applies two LoRAs to every job, and does not know a third."""

    async def run(self, job: Job | Enlargement) -> JobResult:
        assert isinstance(job, Job)
        return dataclasses.replace(
            await super().run(job),
            infotext=f'{job.infotext}, Lora hashes: "{HASHES}"',
            lora_hashes=HASHES,
            warnings=("prompt: there is no LoRA 'größe'",),
        )


@pytest.fixture
def backend() -> FakeBackend:
    return Knowing()


def test_hashes_are_in_info_as_replicas_tell_them(draw: Callable[..., Any]) -> None:
    info = json.loads(draw(prompt="a <lora:ink:1>", batch_size=2).json()["info"])
    assert info["extra_generation_params"]["Lora hashes"] == HASHES
    assert all(text.endswith(f'Lora hashes: "{HASHES}"') for text in info["infotexts"])
    assert info["prompt"] == "a <lora:ink:1>"


def test_warnings_are_a_header_each_once(draw: Callable[..., Any]) -> None:
    answer = draw(prompt="a <lora:größe:1>", batch_size=2)
    assert json.loads(answer.headers["x-warnings"]) == ["prompt: there is no LoRA 'größe'"]


def test_disabled_extra_networks_reach_the_job(draw: Callable[..., Any], backend: FakeBackend) -> None:
    draw(prompt="a", disable_extra_networks=True)
    draw(prompt="a")
    assert [job.extra_networks for job in backend.jobs] == [False, True]


def test_loras_are_listed_without_paths_of_the_machine(client: TestClient, backend: FakeBackend) -> None:
    backend.lora_files = [
        LoraFile(name="ink", alias="Ink", filename="sub/ink.safetensors", metadata={"a": "b"})
    ]
    assert client.get("/sdapi/v1/loras").json() == [
        {"name": "ink", "alias": "Ink", "path": "sub/ink.safetensors", "metadata": {"a": "b"}}
    ]


def test_refresh_reaches_the_replicas(client: TestClient, backend: FakeBackend) -> None:
    answer = client.post("/sdapi/v1/refresh-loras")
    assert (answer.status_code, answer.json()) == (200, None)
    assert backend.refreshed == ["loras"]
