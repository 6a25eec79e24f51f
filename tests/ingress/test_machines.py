"""What is told of the machines: true numbers, and no secret."""

import psutil
from starlette.testclient import TestClient

from engine.protocol import DeviceMemory, Usage
from tests.ingress.fakes import FakeBackend


def replica(device: str, free: int, used: int, failures: int = 0) -> DeviceMemory:
    usage = Usage(current=used, peak=2 * used)
    return DeviceMemory(
        device=device,
        free=free,
        total=80,
        active=usage,
        allocated=usage,
        reserved=usage,
        inactive=Usage(current=0, peak=1),
        retries=1,
        failures=failures,
    )


def test_memory_is_the_machines_own(client: TestClient) -> None:
    answer = client.get("/sdapi/v1/memory").json()
    assert list(answer) == ["ram", "cuda"]
    assert answer["ram"]["total"] == psutil.virtual_memory().total
    assert answer["ram"]["free"] + answer["ram"]["used"] == answer["ram"]["total"]
    assert 0 < answer["ram"]["used"] < answer["ram"]["total"]
    assert answer["cuda"] == {"error": "unavailable"}


def test_replicas_memory_is_added_up_and_a_shared_device_counts_once(
    client: TestClient, backend: FakeBackend
) -> None:
    backend.device_memory = [replica("a", 50, 10), replica("a", 50, 20, failures=2), replica("b", 70, 5)]
    assert client.get("/v1/sdapi/v1/memory").json()["cuda"] == {
        "system": {"free": 120, "used": 40, "total": 160},
        "active": {"current": 35, "peak": 70},
        "allocated": {"current": 35, "peak": 70},
        "reserved": {"current": 35, "peak": 70},
        "inactive": {"current": 0, "peak": 3},
        "events": {"retries": 3, "oom": 2},
    }


def test_flags_tell_no_secrets(client: TestClient, key: str) -> None:
    answer = client.get("/sdapi/v1/cmd-flags")
    assert answer.json()["api"] is True
    assert all(isinstance(value, bool) for value in answer.json().values())
    assert key not in answer.text
