"""What a request costs the gateway: `python -m benchmarks.gateway`.

The real HTTP side, with keys, in front of pictures that are there at once: under uvicorn alone, and as the
service runs it, with Serve's proxy, the gateway's deployment and a checkpoint's replica. As many clients as
keep it busy ask for one picture each, again and again; CPU-seconds are counted by process. From them follows
how many gateways a cluster needs.
"""

import argparse
import asyncio
import json
import multiprocessing
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date
from math import ceil
from pathlib import Path

import psutil
import yaml

from benchmarks.figures import percentile
from benchmarks.load import PATH
from benchmarks.machine import RESULTS, machine
from benchmarks.systems import ROOT, environment, stop, wait_ready

PORTS = {"uvicorn": 18111, "serve": 18112}
ROLES = {
    "ProxyActor": "proxy",
    "ServeReplica:gateway": "gateway",
    "ServeReplica:instant": "replica",
    "ServeController": "controller",
}
"""What Ray calls its processes, and what they are here. All others are Ray's own."""
WARM_UP_SECONDS = 3.0
BUSY = 0.6
"""How much of a core a gateway is to use at most, so that requests seldom wait for one another."""
AIMS = {"SD 1.5, 512 px": 12.0, "SDXL, 1024 px": 1.8}
"""Pictures a second of one GPU: what is aimed at on an H200, measured by nobody."""
GPUS = 1000


@dataclass(frozen=True)
class Load:
    clients: int
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """`cpu` is seconds a request by role, `picture` bytes."""

    system: str
    picture: int
    load: Load
    latencies: Sequence[float]
    cpu: Mapping[str, float]


def cpu_by_role(server: psutil.Process) -> Counter[str]:
    """CPU-seconds so far of all processes of a server, by what they do."""
    seconds: Counter[str] = Counter()
    for process in [server, *server.children(recursive=True)]:
        try:
            name, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        alone = "benchmarks.instant" in name
        role = next((role for part, role in ROLES.items() if part in name), "gateway" if alone else "Ray")
        seconds[role] += times.user + times.system
    return seconds


def call(key: str, picture: int) -> bytes:
    body = json.dumps({"prompt": str(picture), "steps": 20, "width": 512, "height": 512, "seed": 1}).encode()
    lines = [
        f"POST {PATH} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def client(port: int, message: bytes, until: float, latencies: list[tuple[float, float]]) -> None:
    """One request after the other over one connection. Raises RuntimeError for any answer but 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    with closing(writer):
        while (began := time.monotonic()) < until:
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            status, *fields = head.decode("latin-1").split("\r\n")
            length = next(int(f.split(":")[1]) for f in fields if f.lower().startswith("content-length"))
            answer = await reader.readexactly(length)
            if " 200 " not in status:
                raise RuntimeError(f"{status}: {answer[:200]!r}")
            ended = time.monotonic()
            latencies.append((ended, ended - began))
    await writer.wait_closed()


async def clients(port: int, message: bytes, count: int, until: float) -> list[tuple[float, float]]:
    latencies: list[tuple[float, float]] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(client(port, message, until, latencies))
    return latencies


def load(port: int, message: bytes, count: int, until: float) -> list[tuple[float, float]]:
    """When each request ended, and its seconds. For a process of its own, which is not measured."""
    return asyncio.run(clients(port, message, count, until))


def measure(system: str, server: psutil.Process, picture: int, key: str, asked: Load) -> Measurement:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        began = apart.submit(time.monotonic).result() + WARM_UP_SECONDS  # when it has started
        until = began + asked.seconds
        loading = apart.submit(load, PORTS[system], call(key, picture), asked.clients, until)
        time.sleep(max(0.0, began - time.monotonic()))
        before = cpu_by_role(server)
        time.sleep(max(0.0, until - time.monotonic()))
        cpu = cpu_by_role(server) - before
        latencies = [seconds for ended, seconds in loading.result() if began <= ended <= until]
    return Measurement(
        system, picture, asked, latencies, {role: s / len(latencies) for role, s in cpu.items()}
    )


@contextmanager
def running(system: str, folder: Path, key: str) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "benchmarks.instant", str(PORTS[system]), key]
    if system == "serve":
        command = [sys.executable, "-m", "deployments.serve", str(configure(folder, key))]
    log = folder / f"{system}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        wait_ready(PORTS[system], process, log)
        yield psutil.Process(process.pid)
    finally:
        stop(process, signal.SIGINT)


def configure(folder: Path, key: str) -> Path:
    keys, path = folder / "keys", folder / "config.yaml"
    keys.write_text(f"local {key}\n")
    offer = {"checkpoints": [{"name": "instant", "filename": "instant.safetensors"}]}
    gateway = {
        "name": "gateway",
        "route_prefix": "/",
        "import_path": "deployments.app:build_gateway",
        "args": {
            "keys_file": str(keys),
            "database": f"sqlite:///{folder}/atelier.sqlite",
            "results": "memory://results",
        },
        "deployments": [{"name": "Gateway", "user_config": offer}],
    }
    instant = {"name": "instant", "route_prefix": None, "import_path": "benchmarks.instant:build_instant"}
    http = {"host": "127.0.0.1", "port": PORTS["serve"]}
    path.write_text(yaml.safe_dump({"http_options": http, "applications": [gateway, instant]}))
    return path


def row(m: Measurement) -> str:
    cpu = {role: 1e3 * m.cpu.get(role, 0.0) for role in ("proxy", "gateway", "replica", "controller", "Ray")}
    figures = [f"{1e3 * percentile(m.latencies, share):.1f}" for share in (0.5, 0.95)]
    costs = [f"{ms:.2f}" for ms in cpu.values()]
    per_core = [f"{1e3 / cpu['gateway']:.0f}", f"{1e3 / cpu['proxy']:.0f}" if cpu["proxy"] else "–"]
    cells = [
        m.system,
        f"{m.picture / 1000:.0f}",
        f"{len(m.latencies) / m.load.seconds:.0f}",
        *figures,
        *costs,
        *per_core,
    ]
    return f"| {' | '.join(cells)} |"


def needs(m: Measurement, about: str, pictures: float) -> str:
    """How many processes of each kind keep below BUSY of a core, and how many cores they use together."""
    rate = GPUS * pictures
    gateways, proxies = (ceil(rate * m.cpu.get(role, 0.0) / BUSY) for role in ("gateway", "proxy"))
    cores = rate * (m.cpu["gateway"] + m.cpu.get("proxy", 0.0))
    cells = [
        f"{pictures:g}",
        f"{rate:.0f}",
        m.system,
        f"{m.picture / 1000:.0f}",
        gateways,
        proxies,
        f"{cores:.0f}",
    ]
    return f"| {about} | {' | '.join(map(str, cells))} |"


def markdown(measurements: Sequence[Measurement]) -> str:
    asked = measurements[0].load
    lines = [
        f"# What a request costs the gateway, {date.today()}",
        "",
        machine(),
        "",
        f"txt2img with a key, one picture a request, there at once; {asked.clients} clients on this machine, "
        f"{asked.seconds:g} s. CPU milliseconds of a request by process, without the load generator's.",
        "",
        "| under | picture kB | requests/s | p50 ms | p95 ms | proxy | gateway | replica | controller | Ray "
        "| requests/s a gateway core | a proxy core |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *map(row, measurements),
        "",
        f"For {GPUS} GPUs, each process at {BUSY:.0%} of a core. Pictures a second of a GPU are aims for an "
        "H200, not measurements.",
        "",
        "| GPUs draw | pictures/s each | requests/s | under | picture kB | gateways | proxies | cores busy |",
        "|---|---|---|---|---|---|---|---|",
        *(needs(m, about, pictures) for about, pictures in AIMS.items() for m in measurements),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=PORTS, default=list(PORTS))
    parser.add_argument("--bytes", type=int, nargs="+", default=[20_000, 500_000], help="of a picture")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    measurements = []
    key = secrets.token_urlsafe(16)
    for system in args.systems:
        with tempfile.TemporaryDirectory() as folder, running(system, Path(folder), key) as server:
            asked = Load(args.clients, args.seconds)
            measurements += [measure(system, server, size, key, asked) for size in args.bytes]
    text = markdown(measurements)
    (args.out / f"gateway-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
