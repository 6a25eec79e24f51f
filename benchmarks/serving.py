"""This service against diffusers behind a lock and a fixed-window batching server: `make bench`.

The same requests (mixed steps, samplers, guidance, prompts; one size) go to all three, in turns, in one
run: first 16 clients in a closed loop, then open loop at rising Poisson rates. Writes a table and the
machine it was made on to `benchmarks/results/`.
"""

import argparse
import asyncio
import base64
import io
import json
import math
import os
import platform
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import torch
import yaml
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SAMPLERS = ("Euler", "Euler a", "Heun", "DPM++ 2M Karras", "DPM++ 2M SDE Karras", "DDIM")
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
PORTS = {"lock": 18101, "window": 18102, "atelier": 18103}
CLIENTS = 16


@dataclass(frozen=True)
class System:
    """A server under test, up and answering."""

    name: str
    url: str
    key: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Of the server's whole process tree."""
        total = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total


@dataclass(frozen=True)
class Measurement:
    """One phase of load on one system. Latencies in seconds; `offered` in requests a second, 0 is closed."""

    system: str
    offered: float
    pictures: int
    failures: int
    pictures_per_second: float
    p50: float
    p95: float
    cpu_seconds_per_picture: float


def workload(count: int, seed: int, size: int) -> list[dict[str, Any]]:
    """Requests that differ in everything but size."""
    rng = random.Random(seed)
    return [
        {
            "prompt": f"a {rng.choice(COLOURS)} {rng.choice(SHAPES)} on a {rng.choice(COLOURS)} background",
            "negative_prompt": rng.choice(["", rng.choice(COLOURS)]),
            "seed": rng.randrange(2**32),
            "steps": rng.choice([8, 12, 20, 30]),
            "sampler_name": rng.choice(SAMPLERS),
            "cfg_scale": rng.choice([3.0, 5.0, 7.0, 9.0]),
            "width": size,
            "height": size,
        }
        for _ in range(count)
    ]


async def measure(
    system: System,
    requests: Sequence[dict[str, Any]],
    offered: float,
    bar: "tqdm[Any]",
) -> Measurement:
    """Send every request once: by 16 clients if `offered` is 0, else at Poisson arrivals."""
    latencies: list[float] = []
    failures = 0
    headers = {"Authorization": f"Bearer {system.key}"}

    async def one(client: httpx2.AsyncClient, body: dict[str, Any], due: float) -> None:
        nonlocal failures
        answer = await client.post("/sdapi/v1/txt2img", json=body)
        if answer.status_code == 200:
            latencies.append(time.monotonic() - due)
        else:
            failures += 1
        bar.update()

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=system.url, headers=headers, timeout=600, limits=limits) as client:
        cpu, began = system.cpu_seconds(), time.monotonic()
        await (open_loop(client, requests, offered, one) if offered else closed_loop(client, requests, one))
        seconds = time.monotonic() - began
        cpu = system.cpu_seconds() - cpu
    done = sorted(latencies)
    return Measurement(
        system=system.name,
        offered=offered,
        pictures=len(done),
        failures=failures,
        pictures_per_second=len(done) / seconds,
        p50=statistics.median(done),
        p95=done[int(0.95 * (len(done) - 1))],
        cpu_seconds_per_picture=cpu / len(done),
    )


Send = Callable[[httpx2.AsyncClient, dict[str, Any], float], Coroutine[None, None, None]]


async def closed_loop(client: httpx2.AsyncClient, requests: Sequence[dict[str, Any]], one: Send) -> None:
    queue = iter(requests)

    async def work() -> None:
        for body in queue:
            await one(client, body, time.monotonic())

    await asyncio.gather(*(work() for _ in range(CLIENTS)))


async def open_loop(
    client: httpx2.AsyncClient, requests: Sequence[dict[str, Any]], rate: float, one: Send
) -> None:
    """Latency counts from when a request was due, not from when it could be sent."""
    rng = random.Random(1)
    due = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for body in requests:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(client, body, due))


async def same_picture(systems: Sequence[System], size: int) -> float:
    """The smallest PSNR in dB between our picture and a baseline's, of one Euler request."""
    body = {**workload(1, 99, size)[0], "sampler_name": "Euler", "steps": 20}
    pictures = {}
    for system in systems:
        async with httpx2.AsyncClient(timeout=600) as client:
            answer = await client.post(
                f"{system.url}/sdapi/v1/txt2img",
                json=body,
                headers={"Authorization": f"Bearer {system.key}"},
            )
        png = base64.b64decode(answer.json()["images"][0])
        pictures[system.name] = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)
    ours = pictures.pop("atelier")
    worst = max(float(((ours - theirs) ** 2).mean()) for theirs in pictures.values())
    return 10 * math.log10(255**2 / max(worst, 1e-9))


@contextmanager
def baseline(kind: str, checkpoint: Path) -> Iterator[System]:
    command = [sys.executable, "-m", "benchmarks.baselines", kind]
    command += ["--checkpoint", str(checkpoint), "--port", str(PORTS[kind])]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield System(kind, wait_ready(PORTS[kind], process), "unused", psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def atelier(checkpoint: Path) -> Iterator[System]:
    """The service as `make serve` starts it, with the one checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        key = secrets.token_urlsafe(16)
        keys, config = Path(folder, "keys"), Path(folder, "config.yaml")
        keys.write_text(f"local {key}\n")
        config.write_text(yaml.safe_dump(serve_config(keys, checkpoint)))
        process = subprocess.Popen([sys.executable, "-m", "deployments.serve", str(config)], cwd=ROOT)
        try:
            port = PORTS["atelier"]
            yield System("atelier", wait_ready(port, process), key, psutil.Process(process.pid))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


def serve_config(keys: Path, checkpoint: Path) -> dict[str, Any]:
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
        "args": {"name": "bench", "path": str(checkpoint), "num_cpus": 0.5, "max_rows": 32},
    }
    http = {"host": "127.0.0.1", "port": PORTS["atelier"]}
    return {"http_options": http, "applications": [gateway, replica]}


def wait_ready(port: int, process: "subprocess.Popen[bytes]") -> str:
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the server for port {port} ended with {process.returncode}")
        try:
            if httpx2.get(f"{url}/health/ready", timeout=2).status_code == 200:
                return url
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"nothing answers at port {port}")


async def run(systems: Sequence[System], args: argparse.Namespace) -> list[Measurement]:
    """Warm up, then each phase on each system in turns, repeated."""
    phases = [0.0, *args.rates]
    total = len(systems) * (4 + args.repeats * len(phases) * args.requests)
    results = []
    with tqdm(total=total, unit="picture") as bar:
        for system in systems:
            await measure(system, workload(4, 0, args.size), 0.0, bar)
        for repeat in range(args.repeats):
            requests = workload(args.requests, 1 + repeat, args.size)
            for offered in phases:
                for system in systems:
                    bar.set_description(f"{system.name} at {offered or 'full'}")
                    results.append(await measure(system, requests, offered, bar))
    return results


def summary(results: Sequence[Measurement], psnr: float, args: argparse.Namespace) -> str:
    """A Markdown table: medians over the repeats, and each system's ratio to the lock."""
    lines = [
        f"# Serving, {date.today()}",
        "",
        f"{machine()}",
        "",
        f"Checkpoint `{args.checkpoint.name}`, {args.size}×{args.size}, {args.requests} requests a phase, "
        f"medians of {args.repeats}. Steps 8, 12, 20 or 30, six samplers, guidance 3 to 9, all "
        "mixed. All servers were up at once and loaded in turns. Output check: our picture against the "
        f"baselines', same seed, Euler, {psnr:.1f} dB PSNR.",
        "",
        "| load | system | pictures/s | vs lock | p50 s | p95 s | CPU s/picture | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for offered in dict.fromkeys(m.offered for m in results):
        of_load = {name: [m for m in results if m.offered == offered and m.system == name] for name in PORTS}
        lock = statistics.median(m.pictures_per_second for m in of_load["lock"])
        for name, runs in of_load.items():
            rate, p50, p95, cpu = (
                statistics.median(getattr(m, field) for m in runs)
                for field in ("pictures_per_second", "p50", "p95", "cpu_seconds_per_picture")
            )
            load = f"{offered:g}/s" if offered else f"{CLIENTS} clients"
            failed = sum(m.failures for m in runs)
            lines.append(
                f"| {load} | {name} | {rate:.2f} | {rate / lock:.2f}× | {p50:.2f} | {p95:.2f} | {cpu:.2f} "
                f"| {failed} |"
            )
    return "\n".join(lines) + "\n"


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return (
        f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"load average at the end {load}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "demo.safetensors")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="*", default=[1.0, 2.0, 4.0])
    args = parser.parse_args()
    args.checkpoint = args.checkpoint.resolve()
    with (
        baseline("lock", args.checkpoint) as lock,
        baseline("window", args.checkpoint) as window,
        atelier(args.checkpoint) as ours,
    ):
        systems = [lock, window, ours]
        psnr = asyncio.run(same_picture(systems, args.size))
        results = asyncio.run(run(systems, args))
    text = summary(results, psnr, args)
    name = f"serving-{platform.machine()}-{os.cpu_count()}cores-{date.today()}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps([asdict(m) for m in results], indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
