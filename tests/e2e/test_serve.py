"""`python -m deployments.serve`, which is `make serve`: from nothing to a picture, and back to nothing."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.e2e.service import checkpoint_app, free_port, wait_until
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.ray

MARK = "ATELIER_TEST_MARK"


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def config(tmp_path: Path) -> Path:
    offer = {"checkpoints": [{"name": "tiny", "filename": "tiny.safetensors"}]}
    gateway = {
        "name": "gateway",
        "route_prefix": "/",
        "import_path": "deployments.app:build_gateway",
        "args": {
            "keys_file": str(tmp_path / "keys"),
            "database": f"sqlite:///{tmp_path}/atelier.sqlite",
            "results": str(tmp_path / "results"),
        },
        "deployments": [{"name": "Gateway", "user_config": offer}],
    }
    tiny = checkpoint_app("tiny", write_checkpoint(tmp_path / "tiny.safetensors", seed=0))
    config = {
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [gateway, tiny],
    }
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def process(config: Path, mark: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "deployments.serve", str(config)],
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def alive(mark: str) -> list[str]:
    """The command lines of all processes that inherited the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_it_says_how_to_call_it_and_stops_all_that_it_started(
    process: "subprocess.Popen[str]", mark: str, tmp_path: Path
) -> None:
    told: dict[str, str] = {}
    assert process.stdout is not None
    for line in process.stdout:
        name, _, value = line.strip().partition("=")
        if name in ("ATELIER_URL", "ATELIER_KEY"):
            told[name] = value
        if len(told) == 2:
            break
    url = f"{told['ATELIER_URL']}/sdapi/v1/txt2img"
    job = {"prompt": "x", "steps": 2, "width": 64, "height": 64}
    assert httpx2.post(url, json=job).status_code == 401
    key = {"Authorization": f"Bearer {told['ATELIER_KEY']}"}
    assert httpx2.post(url, json=job, headers=key, timeout=60).status_code == 200
    assert len(alive(mark)) > 5
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    wait_until(lambda: not alive(mark), seconds=10)
    # The gateway has closed it: SQLite's other files go with its last connection.
    assert [file.name for file in tmp_path.glob("atelier.sqlite*")] == ["atelier.sqlite"]


def test_a_wrong_key_is_named_before_anything_starts(config: Path) -> None:
    config.write_text(config.read_text().replace("keys_file", "key_file"))
    refused = subprocess.run(
        [sys.executable, "-m", "deployments.serve", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "application gateway: " in refused.stderr
    assert "\nkey_file\n" in refused.stderr
