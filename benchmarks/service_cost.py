"""What a request costs beyond its picture: `python -m benchmarks.service_cost`.

One client asks the service, as `make serve` starts it, for pictures of about half a megabyte, one after the
other. Off each request's time is taken what its replica reports for the job: the wait, all operations, the
PNG. What is left is the service's: HTTP and Serve's proxy, the gateway, the way to the replica and back.
Then the bare engine in this process draws the same pictures, which shows what being inside the service does
to the engine itself. Last comes Ray Serve with nothing in it, which answers with as many bytes: what the
proxy and one handle cost on this machine, as Serve comes.
"""

import argparse
import asyncio
import base64
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import httpx2
import psutil
import torch
from prometheus_client.parser import text_string_to_metric_families
from tqdm import trange

from benchmarks.engine_overhead import jobs
from benchmarks.load import PATH
from benchmarks.machine import RESULTS, machine
from benchmarks.models import stand_in
from benchmarks.served import Served
from benchmarks.systems import System, start
from benchmarks.workloads import request
from engine.checkpoint import load_checkpoint
from engine.engine import Engine
from engine.protocol import Job
from engine.worker import Worker

SIZE = 416
"""Pixels: what the stand-in draws there is noise, so that its PNG has about half a megabyte."""
WARM_UP = 5
LEAST_CPU = 0.1
"""Milliseconds a request; processes below are not told."""

GATEWAY = "atelier_http_request_seconds"
ROUTING = "atelier_job_routing_seconds"
ENGINE = ("atelier_job_wait_seconds", "atelier_stage_seconds")


@dataclass(frozen=True)
class Cost:
    """Milliseconds a request, means unless said otherwise; `cpu` by process, of the service alone. `plain` is
    Ray Serve's with nothing in it."""

    requests: int
    picture_bytes: float
    latency: float
    engine: float
    http: float
    gateway: float
    routing: float
    plain: float
    bare_median: float
    latency_median: float
    cpu: Mapping[str, float]

    @property
    def service(self) -> float:
        return self.latency - self.engine


def sums(exposition: str) -> dict[str, float]:
    """The sum of each histogram, of requests those for pictures alone."""
    total: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name.endswith("_sum") and sample.labels.get("route", PATH) == PATH:
                total[family.name] += sample.value
    return total


def cpu_seconds(root: psutil.Process) -> dict[int, tuple[str, float]]:
    """Each process' name, as Ray titles actors, and what it used so far."""
    used = {}
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            title, times = (process.cmdline() or [""])[0], process.cpu_times()
            name = title.removeprefix("ray::").split(".")[0] if title.startswith("ray::") else "others"
            used[process.pid] = name, times.user + times.system
    return used


def ask(client: httpx2.Client, system: System, body: Mapping[str, Any]) -> tuple[float, int]:
    """Seconds to the last byte, and the picture's bytes."""
    began = time.perf_counter()
    answer = client.post(f"{system.url}{PATH}", json=dict(body))
    seconds = time.perf_counter() - began
    return seconds, len(base64.b64decode(answer.raise_for_status().json()["images"][0]))


async def draw(worker: Worker, job: Job) -> float:
    began = time.perf_counter()
    await worker.run(job)
    return time.perf_counter() - began


def plain_seconds(served: Served, folder: Path, picture_bytes: int, count: int) -> list[float]:
    """Of requests to Ray Serve with nothing in it."""
    body = {"prompt": str(picture_bytes)}
    with start("plain", served, folder) as system, httpx2.Client(timeout=120) as client:
        for _ in range(WARM_UP):
            ask(client, system, body)
        return [ask(client, system, body)[0] for _ in range(count)]


def measure(system: System, worker: Worker, count: int) -> Cost:
    """`plain` is not measured here, and 0."""
    body = request(random.Random(0), SIZE, steps=1, cfg_scale=1.0).body
    job = replace(jobs(1, SIZE, 2)[0], steps=1, sampler="Euler", schedule="normal")
    with httpx2.Client(timeout=120, headers=system.headers) as client:

        def metrics() -> dict[str, float]:
            return sums(client.get(f"{system.url}/metrics").text)

        for _ in range(WARM_UP):
            ask(client, system, body)
            asyncio.run(draw(worker, job))
        before, cpu_before = metrics(), cpu_seconds(system.process)
        answers = [ask(client, system, {**body, "seed": seed}) for seed in trange(count, unit="request")]
        after, cpu_after = metrics(), cpu_seconds(system.process)
    alone = [asyncio.run(draw(worker, replace(job, seed=seed))) for seed in trange(count, unit="picture")]
    cpu: dict[str, float] = defaultdict(float)
    for pid, (name, total) in cpu_after.items():
        cpu[name] += total - cpu_before.get(pid, (name, 0.0))[1]
    spent = {name: (total - before.get(name, 0.0)) / count for name, total in after.items()}
    seconds = [taken for taken, _ in answers]
    latency, engine = statistics.fmean(seconds), sum(spent[name] for name in ENGINE)
    gateway, routing = spent[GATEWAY], spent[ROUTING]
    return Cost(
        requests=count,
        picture_bytes=statistics.fmean(size for _, size in answers),
        latency=1e3 * latency,
        engine=1e3 * engine,
        http=1e3 * (latency - gateway),
        gateway=1e3 * (gateway - routing - engine),
        routing=1e3 * routing,
        plain=0.0,
        bare_median=1e3 * statistics.median(alone),
        latency_median=1e3 * statistics.median(seconds),
        cpu={name: 1e3 * value / count for name, value in cpu.items()},
    )


def to_markdown(cost: Cost, seen_on: str) -> str:
    busiest = sorted(cost.cpu.items(), key=lambda each: -each[1])
    cpu = ", ".join(f"{name} {ms:.1f}" for name, ms in busiest if ms >= LEAST_CPU)
    about = (
        f"{cost.requests} requests, one after the other, for pictures of {cost.picture_bytes / 1e6:.2f} MB."
    )
    heads = (
        "request",
        "the engine's part",
        "**the service's**",
        "HTTP and proxy",
        "gateway",
        "way to replica",
        "Ray Serve with nothing in it",
    )
    parts = (cost.latency, cost.engine, cost.service, cost.http, cost.gateway, cost.routing, cost.plain)
    return "\n".join(
        [
            f"# The service's cost per request, {date.today()}",
            "",
            seen_on,
            "",
            about,
            "",
            f"| ms | {' | '.join(heads)} |",
            "|---" * (len(heads) + 1) + "|",
            f"| mean | {' | '.join(f'{part:.1f}' for part in parts)} |",
            "",
            f"The bare engine: median {cost.bare_median:.1f} ms, of the requests "
            f"{cost.latency_median:.1f} ms. CPU-ms a request: {cpu}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = stand_in(Path(folder))
        worker = Worker(Engine(load_checkpoint(model.path, device="cpu", dtype="float32")), cpu_threads=1)
        worker.start()
        served = Served((model.path,), threads=1)
        with start("atelier", served, Path(folder)) as system:
            cost = measure(system, worker, args.requests)
        asyncio.run(worker.stop())
        plain = plain_seconds(served, Path(folder), round(cost.picture_bytes), args.requests)
    cost = replace(cost, plain=1e3 * statistics.fmean(plain))
    seen_on = machine()
    text = to_markdown(cost, seen_on)
    path = RESULTS / f"service-cost-{date.today()}"
    path.with_suffix(".md").write_text(text)
    path.with_suffix(".json").write_text(
        json.dumps({"machine": seen_on, "service_ms": cost.service, **vars(cost)}, indent=1)
    )
    print(text)


if __name__ == "__main__":
    main()
