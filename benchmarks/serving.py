"""This service against other ways to serve the same checkpoint, in one run: `make bench`.

Each model is served by all systems at once: diffusers behind a lock, LitServe with its dynamic batching, Ray
Serve as its Stable Diffusion tutorial has it, Xinference if `make xinference` has installed it, and this
service as `make serve` starts it. Each workload then goes to one system after the other, repeat by repeat, in
an order that changes. Tables with the machine they were made on, and every latency as JSON, go to
`benchmarks/results/`.

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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import httpx2
from tqdm import tqdm

from benchmarks.baselines import xinference
from benchmarks.load import PATH, Measurement, Phase, drive, measure
from benchmarks.machine import RESULTS, machine
from benchmarks.models import MODELS, Model
from benchmarks.pictures import decoded, mean_square
from benchmarks.report import Setup, keeps_up, to_json, to_markdown
from benchmarks.systems import PORTS, System, at_hand, start
from benchmarks.workloads import NOT_YET, SLO_KINDS, WORKLOADS, Traffic, mixed, of_kind, request

WARM_UP = 8
CAPACITY_SAMPLE = 32
"""Requests; steps differ so much that the mean of fewer would be a matter of luck."""
ALONE = 3
"""How often each kind of request is timed alone."""
LEAST_PSNR = 40.0
"""dB. Systems whose pictures differ by more than this do not do the same work."""
PACED = {"slo", "burst", "disconnects"}
"""Workloads that go by the lock's capacity, or by that of the first system if the lock is not there."""


async def check_output(systems: Sequence[System], size: int) -> float | None:
    """The smallest PSNR in dB of our picture against a baseline's, by Euler; None without both."""
    body = request(random.Random(99), size).body
    pictures = {}
    for system in systems:
        async with httpx2.AsyncClient(timeout=600, headers=system.headers) as client:
            answer = await client.post(f"{system.url}{PATH}", json=system.words(body))
        pictures[system.name] = decoded(answer.raise_for_status().json())
    if "atelier" not in pictures or len(pictures) == 1:
        return None
    ours = pictures.pop("atelier")
    worst = max(mean_square(ours, theirs) for theirs in pictures.values())
    psnr = 10 * math.log10(255**2 / max(worst, 1e-9))
    if psnr < LEAST_PSNR:
        raise RuntimeError(f"the systems draw different pictures: {psnr:.1f} dB")
    return psnr


async def prepare(systems: Sequence[System], model: Model, args: argparse.Namespace) -> Setup:
    """Warm up, check the output, and measure what the workloads are set by, the lock's capacity first."""
    psnr = await check_output(systems, model.size)
    requests = list(mixed(Traffic(model.size, CAPACITY_SAMPLE, seed=0, capacity=0)))
    capacity = 0.0
    unloaded: dict[str, dict[str, float]] = {}
    with tqdm(desc=f"{model.name}: warm-up", unit="picture") as bar:
        for system in systems:
            await drive(system, requests[:WARM_UP], WARM_UP, bar)
        if PACED & set(args.workload):
            began = time.monotonic()
            await drive(systems[0], requests, WARM_UP, bar)
            capacity = CAPACITY_SAMPLE / (time.monotonic() - began)
    if "slo" in args.workload:
        unloaded = {system.name: await alone(system, model) for system in systems}
    return Setup(model.name, model.about, model.size, psnr, capacity, unloaded)


async def alone(system: System, model: Model) -> dict[str, float]:
    """Median seconds of each of SLO_KINDS without company."""
    requests = [of_kind(random.Random(i), model.size, kind) for i in range(ALONE) for kind in SLO_KINDS]
    with tqdm(total=len(requests), desc=f"{system.name}: alone", unit="picture") as bar:
        outcomes = await drive(system, requests, 1, bar)
    kinds = {outcome.kind for outcome in outcomes}
    return {kind: statistics.median(o.seconds for o in outcomes if o.kind == kind) for kind in kinds}


def phases(model: Model, setup: Setup, repeat: int, workloads: Sequence[str], count: int) -> Iterator[Phase]:
    """Of one repeat: each workload at each of its levels."""
    for name in workloads:
        workload = WORKLOADS[name]
        for level in workload.levels:
            traffic = Traffic(model.size, count, 1 + repeat, setup.capacity, level)
            yield Phase(model.name, name, level, repeat, list(workload.requests(traffic)), workload.clients)


async def run(
    systems: Sequence[System], model: Model, setup: Setup, args: argparse.Namespace
) -> list[Measurement]:
    """Each phase on each system in turns, repeated. Who does not keep up with a rate of `slo` is not asked
    for more in that repeat."""
    results = []
    with tqdm(unit="picture") as bar:
        for repeat in range(args.repeats):
            first = repeat % len(systems)
            exhausted = set()
            for phase in phases(model, setup, repeat, args.workload, args.requests):
                for system in [*systems[first:], *systems[:first]]:
                    if phase.workload == "slo" and system.name in exhausted:
                        continue
                    bar.set_description(f"{model.name}, {phase.workload}, {repeat + 1}: {system.name}")
                    results.append(await measure(system, phase, bar))
                    if phase.workload == "slo" and not keeps_up(results[-1], setup):
                        exhausted.add(system.name)
    return results


def arguments() -> argparse.Namespace:
    planned = "; ".join(f"{name} ({about})" for name, about in NOT_YET.items())
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"Workloads not there yet: {planned}.")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["stand-in", "demo"])
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["mixed", "uniform"])
    parser.add_argument("--systems", nargs="+", choices=PORTS, default=at_hand())
    parser.add_argument("--requests", type=int, default=20, help="of each workload in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch in each system")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    setups: list[Setup] = []
    results: list[Measurement] = []
    name = f"serving-{platform.machine()}-{os.cpu_count()}cores-{date.today()}"
    args.out.mkdir(parents=True, exist_ok=True)
    for each in args.model:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
            model = MODELS[each](Path(folder))
            systems = [
                running.enter_context(start(system, model.path, Path(folder), args.threads))
                for system in args.systems
            ]
            setups.append(asyncio.run(prepare(systems, model, args)))
            results += asyncio.run(run(systems, model, setups[-1], args))
        seen_on = f"{machine()} Threads of torch in each system: {args.threads}."
        if "xinference" in args.systems:
            seen_on += f" {xinference.about()}"
        text = to_markdown(f"Serving, {date.today()}", seen_on, setups, results)
        (args.out / f"{name}.md").write_text(text)
        (args.out / f"{name}.json").write_text(to_json(seen_on, setups, results))
    print(text)


if __name__ == "__main__":
    main()
