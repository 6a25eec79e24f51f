"""The servers under test: starting them, each in processes of its own, and reading what they used."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.baselines import xinference

ROOT = Path(__file__).resolve().parent.parent
PORTS = {"lock": 18101, "litserve": 18102, "ray": 18104, "atelier": 18103, "xinference": 18105}
START_SECONDS = 300
LOG_LINES = 20


@dataclass(frozen=True)
class System:
    """A server under test, up and answering."""

    name: str
    url: str
    key: str
    process: psutil.Process

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def words(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A request's body as this system takes it."""
        return xinference.translated(body) if self.name == "xinference" else body

    def cpu_seconds(self) -> float:
        """Of the server's whole process tree, without those that have ended."""
        total = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def engine(self) -> "EngineCounts | None":
        """None of a system that does not tell."""
        if self.name != "atelier":
            return None
        text = httpx2.get(f"{self.url}/metrics", headers=self.headers, timeout=60).text
        return read_counts(text)


@dataclass(frozen=True)
class EngineCounts:
    """The service's counters since its start: evaluations' calls and model rows; seconds of all steps, and
    those of them inside models."""

    calls: float
    rows: float
    seconds: float
    model_seconds: float

    def since(self, before: "EngineCounts") -> "EngineCounts":
        return EngineCounts(
            self.calls - before.calls,
            self.rows - before.rows,
            self.seconds - before.seconds,
            self.model_seconds - before.model_seconds,
        )


def read_counts(exposition: str) -> EngineCounts:
    def total(name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    families = list(text_string_to_metric_families(exposition))
    return EngineCounts(
        calls=total("atelier_batch_rows_count", operation="evaluate"),
        rows=total("atelier_batch_rows_sum", operation="evaluate"),
        seconds=total("atelier_step_seconds_sum"),
        model_seconds=total("atelier_model_seconds_total"),
    )


@contextmanager
def start(name: str, checkpoint: Path, folder: Path, threads: int) -> Iterator[System]:
    """The server `name` of PORTS with this one checkpoint and so many threads of torch; its log and files go
    to `folder`."""
    key = secrets.token_urlsafe(16)
    command = [sys.executable, "-m", "benchmarks.baselines", name]
    command += ["--checkpoint", str(checkpoint), "--port", str(PORTS[name]), "--threads", str(threads)]
    if name == "atelier":
        command = [
            sys.executable,
            "-m",
            "deployments.serve",
            str(configure(folder, checkpoint, key, threads)),
        ]
    log = folder / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        yield System(name, wait_ready(name, process, log), key, psutil.Process(process.pid))
    finally:
        stop(process, signal.SIGINT if name == "atelier" else signal.SIGTERM)


def environment() -> Mapping[str, str]:
    """No cluster of somebody else's, no threads but as many as are given, and equal priority: Ray's
    workers, ours too, would run at nice 15 and lose to whatever else the machine does."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return {
        **inherited,
        "RAY_ADDRESS": "local",
        "RAY_worker_niceness": "0",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def configure(folder: Path, checkpoint: Path, key: str, threads: int) -> Path:
    """A configuration as `make serve` takes it."""
    keys, path = folder / "keys", folder / "config.yaml"
    keys.write_text(f"local {key}\n")
    path.write_text(yaml.safe_dump(serve_config(keys, checkpoint, threads)))
    return path


def serve_config(keys: Path, checkpoint: Path, threads: int) -> dict[str, Any]:
    gateway = {
        "name": "gateway",
        "route_prefix": "/",
        "import_path": "deployments.app:build_gateway",
        "args": {"keys_file": str(keys)},
        "deployments": [
            {
                "name": "Gateway",
                "user_config": {"checkpoints": [{"name": "bench", "filename": checkpoint.name}]},
            }
        ],
    }
    replica = {
        "name": "bench",
        "route_prefix": None,
        "import_path": "deployments.app:build_checkpoint",
        "args": {
            "name": "bench",
            "path": str(checkpoint),
            "num_cpus": 0.5,
            "cpu_threads": threads,
            "max_rows": 32,
        },
    }
    http = {"host": "127.0.0.1", "port": PORTS["atelier"]}
    return {"http_options": http, "applications": [gateway, replica]}


def at_hand() -> list[str]:
    """The systems that can be started: Xinference needs an environment of its own."""
    return [name for name in PORTS if name != "xinference" or xinference.installed()]


def wait_ready(name: str, process: "subprocess.Popen[bytes]", log: Path) -> str:
    path, seconds = "/health/ready", START_SECONDS
    if name == "xinference":
        path, seconds = xinference.READY, xinference.START_SECONDS
    url = f"http://127.0.0.1:{PORTS[name]}"
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx2.get(f"{url}{path}", timeout=2).status_code == 200:
                return url
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    raise RuntimeError(f"nothing answers at port {PORTS[name]}; the server's last words:\n{end}")


def stop(process: "subprocess.Popen[bytes]", how: signal.Signals) -> None:
    """Ask the server to end, and end those of its processes that it leaves behind."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.send_signal(how)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(family, timeout=5)
    for each in left:
        each.kill()
