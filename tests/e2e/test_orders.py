"""Jobs of `/v1/jobs` on real processes: they are followed while they run, and outlive all of the service."""

import base64
import io
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from PIL import Image

from tests.e2e.service import SECRET, Service, checkpoint_app, free_port, wait_until
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.ray

MARK = "ATELIER_TEST_MARK"
LONG = {"prompt": "a red circle", "steps": 150, "sampler_name": "Heun", "width": 256, "height": 256}


def read_event(lines: Iterator[str]) -> tuple[str, float]:
    """An event's name, and when it came."""
    for line in lines:
        if line.startswith("event: "):
            return line.removeprefix("event: "), time.monotonic()
    raise AssertionError("no event came")


def test_a_job_is_followed_while_it_runs_and_aborted(service: Service) -> None:
    """Events come through Serve's proxy one by one, not all of them at the end."""
    id = service.client.post("/v1/jobs", json=LONG | {"n_iter": 4}).json()["id"]
    with service.client.stream("GET", f"/v1/jobs/{id}/events") as stream:
        lines = stream.iter_lines()
        name, came = read_event(lines)
        while name == "queued":
            name, came = read_event(lines)
        assert name == "progress"
        wait_until(lambda: service.metric("atelier_rows_running", checkpoint="tiny"))
        assert service.client.get(f"/v1/jobs/{id}").json()["state"] == "running"
        aborted = time.monotonic()
        assert came < aborted
        assert service.client.delete(f"/v1/jobs/{id}").status_code == 204
        while name == "progress":
            name, came = read_event(lines)
        assert name == "aborted"
        assert came - aborted < 3
    assert wait_until(lambda: not service.metric("atelier_rows_running", checkpoint="tiny")) < 5


def test_a_job_has_the_pictures_of_a_request(service: Service) -> None:
    body = {"prompt": "a red circle", "seed": 4, "steps": 3, "width": 64, "height": 64}
    id = service.client.post("/v1/jobs", json=body).json()["id"]
    job: dict[str, Any] = {}

    def is_done() -> bool:
        job.update(service.client.get(f"/v1/jobs/{id}").json())
        return bool(job["state"] == "done")

    wait_until(is_done)
    [link] = job["result"]["images"]
    assert service.client.get(link).content == service.txt2img(**body)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a service of its own, whose gateways are soon given up."""
    (tmp_path / "keys").write_text(f"local {SECRET}\n")
    gateway = {
        "name": "gateway",
        "route_prefix": "/",
        "import_path": "deployments.app:build_gateway",
        "args": {
            "keys_file": str(tmp_path / "keys"),
            "database": f"sqlite:///{tmp_path}/atelier.sqlite",
            "results": str(tmp_path / "results"),
            "orders": {"lease_seconds": 3},
        },
        "deployments": [
            {
                "name": "Gateway",
                "user_config": {"checkpoints": [{"name": "tiny", "filename": "tiny.safetensors"}]},
            }
        ],
    }
    tiny = checkpoint_app("tiny", write_checkpoint(tmp_path / "tiny.safetensors", seed=0))
    path = tmp_path / "serve_config.yaml"
    http = {"host": "127.0.0.1", "port": free_port()}
    path.write_text(yaml.safe_dump({"http_options": http, "applications": [gateway, tiny]}))
    return path


@contextmanager
def running(config: Path) -> Iterator[tuple[httpx2.Client, str]]:
    """A client of the service, once it draws, and the mark of its processes. Killed at the end, all of it."""
    mark = uuid.uuid4().hex
    port = yaml.safe_load(config.read_text())["http_options"]["port"]
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.serve", str(config)],
        env={**os.environ, MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    headers = {"Authorization": f"Bearer {SECRET}"}
    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30)
    try:
        wait_until(lambda: is_ready(client))
        yield client, mark
    finally:
        client.close()
        kill(mark)
        process.communicate()


def is_ready(client: httpx2.Client) -> bool:
    with suppress(httpx2.TransportError):
        return bool(client.get("/health/ready").status_code == 200)
    return False


def kill(mark: str) -> None:
    """Every process that inherited the mark, at once and without a word, until there is none."""

    def marked() -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    wait_until(lambda: not marked(), seconds=20)


def pixels(picture: bytes) -> bytes:
    """Without the infotext: a gateway that has just started may not know a checkpoint's hash yet."""
    return Image.open(io.BytesIO(picture)).tobytes()


def test_after_all_of_the_service_was_killed_what_was_accepted_is_drawn(config: Path) -> None:
    """One job runs, the other waits in the database; both come to the pictures that they would have been."""
    short = {"prompt": "x", "seed": 5, "steps": 2, "width": 64, "height": 64}
    with running(config) as (client, _):
        wanted = client.post("/sdapi/v1/txt2img", json=short).json()["images"][0]
        ids = [client.post("/v1/jobs", json=body).json()["id"] for body in (LONG, short)]
        wait_until(lambda: client.get(f"/v1/jobs/{ids[0]}").json()["state"] == "running")
        begun = client.get(f"/v1/jobs/{ids[0]}").json()["started"]
    with running(config) as (client, _):
        wait_until(lambda: {client.get(f"/v1/jobs/{id}").json()["state"] for id in ids} == {"done"})
        jobs = [client.get(f"/v1/jobs/{id}").json() for id in ids]
        assert jobs[0]["started"] > begun
        [link] = jobs[1]["result"]["images"]
        assert pixels(client.get(link).content) == pixels(base64.b64decode(wanted))
