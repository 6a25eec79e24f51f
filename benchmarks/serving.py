"""This service against other ways to serve the same checkpoint, in one run: `make bench`.

Each model is served by all systems at once: diffusers behind a lock, LitServe with its dynamic batching, Ray
Serve as its Stable Diffusion tutorial has it, Xinference if `make xinference` has installed it, and this
service as `make serve` starts it. Each workload then goes to one system after the other, repeat by repeat, in
an order that changes. Workloads that need something else of a server, several checkpoints, LoRAs, or two
replicas, have servers of their own, after the others. Tables and a plot with the machine they were made on,
and every latency as JSON, go to `benchmarks/results/`.

torch has one thread in each system. With more, it matters which thread of Python calls the model: outside
the main one, where all but LitServe call it, OpenMP took up to three times the CPU of one thread for no gain.
"""

import argparse
import asyncio
import math
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import httpx2
from tqdm import tqdm

from benchmarks.load import PATH, Measurement, Phase, drive, measure
from benchmarks.machine import RESULTS, machine
from benchmarks.models import MODELS, Model, write_loras
from benchmarks.pictures import decoded, mean_square
from benchmarks.plot import draw
from benchmarks.report import Report, Setup, keeps_up, packages, to_json, to_markdown
from benchmarks.served import Served
from benchmarks.systems import PORTS, System, at_hand, start
from benchmarks.workloads import (
    LORA_WEIGHTS,
    OURS,
    SLO_KINDS,
    WORKLOADS,
    Request,
    Site,
    Traffic,
    lora_name,
    mixed,
    of_kind,
    request,
    with_lora,
)

DEFAULT_SYSTEMS = ("lock", "litserve", "ray", "swap", "xinference", "atelier")
CAPACITY_SAMPLE = 32
"""Requests; steps differ so much that the mean of fewer would be a matter of luck."""
CHECKED_STEPS = 8
"""The fewest of a picture that is compared."""
LEAST_PSNR: Mapping[str, float] = {"atelier": 40.0, "atelier-bf16": 30.0}
"""dB. Systems whose pictures differ by more than this do not do the same work; bfloat16 is seen at 48."""
PACED = {"slo", "burst", "disconnects", "models-in-bursts"}
"""Workloads that go by the lock's capacity, or by that of the first system if the lock is not there."""


@dataclass(frozen=True)
class Plan:
    """Workloads of one site, which go to systems that have one model.

    `requests` of each workload in each repeat, `checkpoints` where the site has several, `warm_up` requests
    before all, `alone` how often each kind of request is timed alone. `levels` instead of those of
    workload `slo`.
    """

    model: str
    workloads: tuple[str, ...]
    systems: tuple[str, ...]
    requests: int
    repeats: int
    threads: int = 1
    checkpoints: int = 8
    warm_up: int = 8
    alone: int = 3
    levels: tuple[float, ...] = ()

    @property
    def site(self) -> Site:
        return WORKLOADS[self.workloads[0]].site

    def levels_of(self, workload: str) -> tuple[float, ...]:
        return self.levels if workload == "slo" and self.levels else WORKLOADS[workload].levels


def carry_out(plan: Plan) -> tuple[Setup, list[Measurement]]:
    """Start the systems, measure, and stop them."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        model = MODELS[plan.model](folder)
        served = provide(model, plan, folder)
        systems = [running.enter_context(start(system, served, folder)) for system in plan.systems]
        checkpoints = tuple(path.stem for path in served.checkpoints)
        traffic = Traffic(model.size, plan.requests, 0, 0.0, checkpoints=checkpoints, brief=model.brief)
        setup = asyncio.run(prepare(systems, model, plan, traffic))
        return setup, asyncio.run(run(systems, setup, plan, replace(traffic, capacity=setup.capacity)))


def provide(model: Model, plan: Plan, folder: Path) -> Served:
    """The files that the plan's site needs, made."""
    loras = folder / "loras" if plan.site.loras else None
    if loras:
        write_loras(model.path, loras)
    seeds = range(1, plan.checkpoints if plan.site.several else 1)
    others = [MODELS[plan.model](folder, seed).path for seed in seeds]
    return Served((model.path, *others), plan.threads, loras, plan.site.replicas)


async def check_output(systems: Sequence[System], body: Mapping[str, object]) -> float:
    """The smallest PSNR in dB of a picture of ours against a baseline's; infinite without both."""
    pictures = {}
    for system in systems:
        async with httpx2.AsyncClient(timeout=1200, headers=system.headers) as client:
            answer = await client.post(f"{system.url}{PATH}", json=system.words(body))
        pictures[system.name] = decoded(answer.raise_for_status().json())
    theirs = [picture for name, picture in pictures.items() if name not in OURS]
    least = math.inf
    for name in pictures.keys() & set(OURS):
        worst = max((mean_square(pictures[name], each) for each in theirs), default=0.0)
        psnr = 10 * math.log10(255**2 / max(worst, 1e-9)) if theirs else math.inf
        if psnr < LEAST_PSNR[name]:
            raise RuntimeError(f"{name} draws another picture than the others: {psnr:.1f} dB")
        least = min(least, psnr)
    return least


def checked(plan: Plan, traffic: Traffic) -> list[Request]:
    """By Euler: from the first and the last checkpoint, and with a LoRA, where there are such."""
    steps = max(CHECKED_STEPS, traffic.steps(20))
    plain = request(random.Random(99), traffic.size, steps=steps)
    requests = [plain]
    if plan.site.several:
        requests.append(request(random.Random(98), traffic.size, steps=steps, model=traffic.checkpoints[-1]))
    if plan.site.loras:
        requests.append(with_lora(plain, lora_name(0), LORA_WEIGHTS[0]))
    return requests


async def prepare(systems: Sequence[System], model: Model, plan: Plan, traffic: Traffic) -> Setup:
    """Warm up, check the output, and measure what the workloads are set by, the lock's capacity first."""
    psnr = min([await check_output(systems, each.body) for each in checked(plan, traffic)])
    requests = list(mixed(replace(traffic, count=min(CAPACITY_SAMPLE, 2 * plan.requests))))
    each_once = [request(random.Random(97), model.size, steps=2, model=name) for name in traffic.checkpoints]
    capacity = 0.0
    unloaded: dict[str, dict[str, float]] = {}
    with tqdm(desc=f"{model.name}: warm-up", unit="picture") as bar:
        for system in systems:
            await drive(system, [*each_once, *requests[: plan.warm_up]], plan.warm_up, bar)
        if PACED & set(plan.workloads):
            began = time.monotonic()
            await drive(systems[0], requests, 8, bar)
            capacity = len(requests) / (time.monotonic() - began)
    if "slo" in plan.workloads:
        unloaded = {system.name: await alone(system, plan, traffic) for system in systems}
    return Setup(
        model.name,
        model.about,
        model.size,
        psnr if math.isfinite(psnr) else None,
        capacity,
        unloaded,
        plan.workloads,
        len(traffic.checkpoints),
    )


async def alone(system: System, plan: Plan, traffic: Traffic) -> dict[str, float]:
    """Median seconds of each of SLO_KINDS without company."""
    requests = [of_kind(random.Random(i), traffic, kind) for i in range(plan.alone) for kind in SLO_KINDS]
    with tqdm(total=len(requests), desc=f"{system.name}: alone", unit="picture") as bar:
        outcomes = await drive(system, requests, 1, bar)
    kinds = {outcome.kind for outcome in outcomes}
    return {kind: statistics.median(o.seconds for o in outcomes if o.kind == kind) for kind in kinds}


def phases(plan: Plan, traffic: Traffic, repeat: int) -> Iterator[Phase]:
    """Of one repeat: each workload at each of its levels."""
    for name in plan.workloads:
        workload = WORKLOADS[name]
        for level in plan.levels_of(name):
            requests = list(workload.requests(replace(traffic, seed=1 + repeat, level=level)))
            kills = workload.kills and level == 1
            yield Phase(plan.model, name, level, repeat, requests, workload.clients, kills)


async def run(systems: Sequence[System], setup: Setup, plan: Plan, traffic: Traffic) -> list[Measurement]:
    """Each phase on each system in turns, repeated. Who does not keep up with a rate of `slo` is not asked
    for more in that repeat."""
    results = []
    with tqdm(unit="picture") as bar:
        for repeat in range(plan.repeats):
            first = repeat % len(systems)
            exhausted = set()
            for phase in phases(plan, traffic, repeat):
                for system in [*systems[first:], *systems[:first]]:
                    if phase.workload == "slo" and system.name in exhausted:
                        continue
                    bar.set_description(f"{plan.model}, {phase.workload}, {repeat + 1}: {system.name}")
                    results.append(await measure(system, phase, bar))
                    if phase.workload == "slo" and not keeps_up(results[-1], setup):
                        exhausted.add(system.name)
    return results


def plans(args: argparse.Namespace) -> Iterator[Plan]:
    """One for each model and site."""
    for model in args.model:
        for site in dict.fromkeys(WORKLOADS[name].site for name in args.workload):
            yield Plan(
                model,
                tuple(name for name in args.workload if WORKLOADS[name].site == site),
                tuple(name for name in args.systems if name in site.systems),
                args.requests,
                args.repeats,
                args.threads,
                args.checkpoints,
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["stand-in", "demo"])
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["mixed", "uniform"])
    parser.add_argument(
        "--systems", nargs="+", choices=sorted(PORTS.keys() - {"plain"}), default=at_hand(DEFAULT_SYSTEMS)
    )
    parser.add_argument("--requests", type=int, default=20, help="of each workload in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch in each system")
    parser.add_argument("--checkpoints", type=int, default=8, help="of the workloads `models`, up to 87")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    for name in args.workload:
        able = WORKLOADS[name].site.systems
        if not set(able) & set(args.systems):
            parser.error(f"--systems: workload {name} needs one of {', '.join(able)}")
    return args


def main() -> None:
    args = arguments()
    setups: list[Setup] = []
    results: list[Measurement] = []
    name = f"serving-{platform.machine()}-{os.cpu_count()}cores-{date.today()}"
    args.out.mkdir(parents=True, exist_ok=True)
    for plan in plans(args):
        setup, measured = carry_out(plan)
        setups.append(setup)
        results += measured
        seen_on = f"{machine()} Threads of torch in each system: {args.threads}."
        versions = packages({each.system for each in results})
        report = Report(f"Serving, {date.today()}", seen_on, versions, setups, results)
        text = to_markdown(report)
        (args.out / f"{name}.md").write_text(text)
        (args.out / f"{name}.json").write_text(to_json(report))
        draw(report, args.out / f"{name}.png")
    print(text)


if __name__ == "__main__":
    main()
