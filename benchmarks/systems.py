"""The servers under test: starting them, each in processes of its own, and reading what they used."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.baselines import xinference
from benchmarks.served import Served
from benchmarks.workloads import OURS

ROOT = Path(__file__).resolve().parent.parent
PORTS = {
    "lock": 18101,
    "litserve": 18102,
    "ray": 18104,
    "swap": 18106,
    "xinference": 18105,
    "atelier": 18103,
    "atelier-bf16": 18107,
    "plain": 18108,
}
DTYPES = {"atelier-bf16": "bfloat16"}
"""Of those that are not float32."""
READY = "/health/ready"
START_SECONDS = 600
POLL_SECONDS = 0.5
LOG_LINES = 20
REPLICA = "ray::ServeReplica:"
"""How the process of a replica of Ray Serve calls itself, before application and deployment."""
CPUS = 1.5
"""What Ray reserves for all our replicas together, of the machine's cores."""


@dataclass(frozen=True)
class System:
    """A server under test, up and answering; on Ray Serve it has so many `replicas` of its models."""

    name: str
    url: str
    key: str
    process: psutil.Process
    replicas: int = 1

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

    def engines(self) -> "Mapping[str, EngineCounts] | None":
        """By replica; None of a system that does not tell. Asks until all replicas answer."""
        if self.name not in OURS:
            return None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            text = httpx2.get(f"{self.url}/metrics", headers=self.headers, timeout=60).text
            if len(counts := read_counts(text)) == self.replicas:
                return counts
            time.sleep(POLL_SECONDS)
        raise RuntimeError(f"{self.name}: not all of {self.replicas} replicas answer")

    def swaps(self) -> "Swaps | None":
        """None of a system that does not swap."""
        return Swaps(**httpx2.get(f"{self.url}/swaps").json()) if self.name == "swap" else None

    def replica_processes(self) -> list[psutil.Process]:
        """Those with the models, oldest first; none where the system is not on Ray Serve."""
        found = []
        for process in self.process.children(recursive=True):
            try:
                title = "".join(process.cmdline()[:1])
                if title.startswith(REPLICA) and "Diffusion" in title:
                    found.append((process.create_time(), process))
            except psutil.NoSuchProcess:
                continue
        return [process for _, process in sorted(found, key=lambda each: each[0])]


@dataclass(frozen=True)
class Swaps:
    """Changes of the one checkpoint in memory since the start, and the seconds they took."""

    count: float
    seconds: float

    def since(self, before: "Swaps") -> "Swaps":
        return Swaps(self.count - before.count, self.seconds - before.seconds)


@dataclass(frozen=True)
class EngineCounts:
    """A replica's counters since its start: evaluations' calls, model rows and jobs; all steps, their
    seconds, and those of them inside models; finished jobs, and their seconds before the first step."""

    calls: float = 0.0
    rows: float = 0.0
    evaluations: float = 0.0
    steps: float = 0.0
    seconds: float = 0.0
    model_seconds: float = 0.0
    jobs: float = 0.0
    wait_seconds: float = 0.0

    def since(self, before: "EngineCounts") -> "EngineCounts":
        return EngineCounts(*(a - b for a, b in zip(astuple(self), astuple(before), strict=True)))

    @staticmethod
    def total(counts: Iterable["EngineCounts"]) -> "EngineCounts":
        return EngineCounts(*map(sum, zip(*map(astuple, counts), strict=True)))


def read_counts(exposition: str) -> dict[str, EngineCounts]:
    """By replica."""

    def total(replica: str, name: str, **labels: str) -> float:
        wanted = {"replica": replica, **labels}.items()
        return sum(s.value for s in samples if s.name == name and wanted <= s.labels.items())

    families = text_string_to_metric_families(exposition)
    samples = [sample for family in families for sample in family.samples]
    return {
        replica: EngineCounts(
            calls=total(replica, "atelier_batch_rows_count", operation="evaluate"),
            rows=total(replica, "atelier_batch_rows_sum", operation="evaluate"),
            evaluations=total(replica, "atelier_evaluations_total"),
            steps=total(replica, "atelier_step_seconds_count"),
            seconds=total(replica, "atelier_step_seconds_sum"),
            model_seconds=total(replica, "atelier_model_seconds_total"),
            jobs=total(replica, "atelier_job_wait_seconds_count"),
            wait_seconds=total(replica, "atelier_job_wait_seconds_sum"),
        )
        for replica in {s.labels["replica"] for s in samples if s.name == "atelier_rows_running"}
    }


@contextmanager
def start(name: str, served: Served, folder: Path) -> Iterator[System]:
    """The server `name` of PORTS, whole; its log and files go to `folder`."""
    key = secrets.token_urlsafe(16)
    command = [sys.executable, "-m"]
    if name in OURS:
        command += ["deployments.serve", str(configure(folder, name, served, key))]
    else:
        command += ["benchmarks.baselines", name, "--port", str(PORTS[name]), *options(served)]
    log = folder / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        replicas = served.replicas * (len(served.checkpoints) if name in OURS else 1)
        path, seconds = READY, START_SECONDS
        if name == "xinference":
            path, seconds = xinference.READY, xinference.START_SECONDS
        url = wait_ready(PORTS[name], process, log, path, seconds)
        system = System(name, url, key, psutil.Process(process.pid), replicas)
        wait_whole(system)
        yield system
    finally:
        stop(process, signal.SIGINT if name in OURS else signal.SIGTERM)


def options(served: Served) -> list[str]:
    """As `benchmarks.baselines` takes them."""
    loras = ["--loras", str(served.loras)] if served.loras else []
    numbers = ["--threads", str(served.threads), "--replicas", str(served.replicas)]
    return ["--checkpoint", *map(str, served.checkpoints), *numbers, *loras]


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


def configure(folder: Path, name: str, served: Served, key: str) -> Path:
    """A configuration as `make serve` takes it."""
    keys, path = folder / f"{name}.keys", folder / f"{name}.yaml"
    keys.write_text(f"local {key}\n")
    path.write_text(yaml.safe_dump(serve_config(name, served, keys)))
    return path


def serve_config(name: str, served: Served, keys: Path) -> dict[str, Any]:
    """An application for each checkpoint, which gets its share of the machine."""
    offered = [{"name": path.stem, "filename": path.name} for path in served.checkpoints]
    gateway = {
        "name": "gateway",
        "route_prefix": "/",
        "import_path": "deployments.app:build_gateway",
        "args": {
            "keys_file": str(keys),
            "database": f"sqlite:///{keys}.sqlite",
            "results": "memory://results",
        },
        "deployments": [
            {
                "name": "Gateway",
                "user_config": {"checkpoints": offered},
            }
        ],
    }
    http = {"host": "127.0.0.1", "port": PORTS[name]}
    replicas = [checkpoint_config(name, served, path) for path in served.checkpoints]
    return {"http_options": http, "applications": [gateway, *replicas]}


def checkpoint_config(name: str, served: Served, path: Path) -> dict[str, Any]:
    share = CPUS / (served.replicas * len(served.checkpoints))
    args = {
        "name": path.stem,
        "path": str(path),
        "dtype": DTYPES.get(name, "float32"),
        "replicas": served.replicas,
        "num_cpus": min(0.5, round(share, 3)),
        "cpu_threads": served.threads,
        "max_rows": 32,
    }
    return {
        "name": path.stem,
        "route_prefix": None,
        "import_path": "deployments.app:build_checkpoint",
        "args": args | ({"loras_dir": str(served.loras)} if served.loras else {}),
    }


def at_hand(names: Iterable[str]) -> list[str]:
    """Those of the systems that can be started: Xinference needs an environment of its own."""
    return [name for name in names if name != "xinference" or xinference.installed()]


def wait_ready(
    port: int,
    process: "subprocess.Popen[bytes]",
    log: Path,
    path: str = READY,
    seconds: float = START_SECONDS,
) -> str:
    """The address of the server at this port of this machine, once it answers at `path`."""
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx2.get(f"{url}{path}", timeout=2).status_code == 200:
                return url
        except httpx2.HTTPError:
            pass
        time.sleep(POLL_SECONDS)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    raise RuntimeError(f"nothing answers at port {port}; the server's last words:\n{end}")


def wait_whole(system: System) -> None:
    """Until all replicas are there: of ours those that answer, of others the processes."""
    deadline = time.monotonic() + START_SECONDS
    while system.name == "ray" and len(system.replica_processes()) != system.replicas:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{system.name}: not all of {system.replicas} replicas are there")
        time.sleep(POLL_SECONDS)
    system.engines()


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
