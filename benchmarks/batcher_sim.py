"""Which row next? Policies side by side on the same arrivals: `python -m benchmarks.batcher_sim`.

Drives the engine's batcher, and others, with traces of jobs in simulated time: no model, no sleeping. A job
is one encode, its evaluations and one decode. Reports mean and p95 latency and, for fairness, slowdown: a
job's latency over what it would have taken on an idle machine. A tenth of the jobs are due after five times
that; the share of them that are done by then is told too.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import inf
from pathlib import Path
from random import Random
from typing import Protocol

from engine.batcher import Batcher, Waiting

RESULTS = Path(__file__).resolve().parent / "results"

MAX_ROWS = 16
AREAS: Mapping[str, float] = {"512": 1.0, "768": 2.3, "1024": 4.6}
"""Latent shapes, and what a row of them costs against 512 px (FLOPs of SD 1.5's UNet with attention)."""


def cost(key: str, rows: int) -> float:
    """Seconds of a call: a fixed part and one for each row, of the order of a GPU's with SD 1.5."""
    if key == "encode":
        return 0.008 + 0.001 * rows
    if key.startswith("decode "):
        return 0.005 + 0.020 * AREAS[key.removeprefix("decode ")] * rows
    return 0.010 + 0.007 * AREAS[key] * rows


@dataclass(slots=True)
class Arrival:
    """A job of a trace, and what became of it. `stage` counts the calls it has taken part in."""

    at: float
    shape: str
    steps: int
    width: int
    due: float = inf
    stage: int = 0
    done: float = 0.0

    @property
    def key(self) -> str:
        if self.stage == 0:
            return "encode"
        return self.shape if self.stage <= self.steps else f"decode {self.shape}"

    @property
    def alone(self) -> float:
        """Seconds on an idle machine."""
        calls = cost("encode", self.width) + cost(f"decode {self.shape}", 1)
        return calls + self.steps * cost(self.shape, self.width)

    @property
    def latency(self) -> float:
        return self.done - self.at

    def waiting(self, row: int) -> Waiting:
        decoding = self.stage > self.steps
        return Waiting(
            row=row,
            key=self.key,
            width=1 if decoding else self.width,
            remaining=self.steps - max(0, self.stage - 1) if not decoding else 0,
            max_rows=4 if decoding else None,
            due=self.due,
        )


class Policy(Protocol):
    """The batcher's part that the simulation drives."""

    def put(self, operation: Waiting) -> None: ...
    def next(self, now: float) -> list[int]: ...
    def remove(self, row: int) -> None: ...
    def observe(self, key: str, rows: int, seconds: float) -> None: ...


class Baseline:
    """What the policies below share: what waits, in the order in which it was put."""

    def __init__(self) -> None:
        self.waiting: dict[int, Waiting] = {}

    def put(self, operation: Waiting) -> None:
        self.waiting[operation.row] = operation

    def remove(self, row: int) -> None:
        self.waiting.pop(row, None)

    def observe(self, key: str, rows: int, seconds: float) -> None:
        """They do not learn."""

    def take(self, candidates: Sequence[Waiting]) -> list[int]:
        """As many as fit, in their order, of the first one's key."""
        room = min(MAX_ROWS, candidates[0].max_rows or MAX_ROWS)
        chosen: list[int] = []
        for operation in candidates:
            if operation.key == candidates[0].key and (not chosen or operation.width <= room):
                chosen.append(operation.row)
                room -= operation.width
        for row in chosen:
            del self.waiting[row]
        return chosen


class OneAtATime(Baseline):
    """First come, first served, each job alone to its end: a lock around a pipeline."""

    def next(self, now: float) -> list[int]:
        return self.take([self.waiting[min(self.waiting)]]) if self.waiting else []


class StaticBatches(Baseline):
    """Jobs of equal settings that wait when the machine gets free run together to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.batch: set[int] = set()

    def next(self, now: float) -> list[int]:
        running = [op for op in self.waiting.values() if op.row in self.batch]
        if running:
            return self.take(running)
        if not self.waiting:
            return []
        first = self.waiting[min(self.waiting)]
        alike = [op for _, op in sorted(self.waiting.items()) if op.remaining == first.remaining]
        chosen = self.take(alike)
        self.batch = set(chosen)
        return chosen


class RoundRobin(Baseline):
    """Continuous batching; who was served longest ago goes first, with all that share the call."""

    def put(self, operation: Waiting) -> None:
        self.waiting.pop(operation.row, None)
        super().put(operation)

    def next(self, now: float) -> list[int]:
        return self.take(list(self.waiting.values())) if self.waiting else []


class InOrder(Baseline):
    """Continuous batching; who came first goes first, with all that share the call."""

    def next(self, now: float) -> list[int]:
        return self.take([op for _, op in sorted(self.waiting.items())]) if self.waiting else []


class Untold(Batcher):
    """Ours, if it did not know when jobs are due."""

    def next(self, now: float = 0.0) -> list[int]:
        return super().next(-inf)


POLICIES: Mapping[str, Callable[[], Policy]] = {
    "one at a time": OneAtATime,
    "static batches": StaticBatches,
    "round robin": RoundRobin,
    "in order": InOrder,
    "ours, not told when": lambda: Untold(MAX_ROWS),
    "ours": lambda: Batcher(MAX_ROWS),
}


TIGHT = 0.1
"""The share of jobs that are due after SLACK times what they take on an idle machine."""
SLACK = 5


def one_size(random: Random) -> tuple[str, int]:
    return "512", random.choice([8, 20, 25, 30, 50])


def mixed(random: Random) -> tuple[str, int]:
    return random.choices(list(AREAS), [6, 3, 1])[0], random.choice([8, 20, 25, 30, 50])


def previews(random: Random) -> tuple[str, int]:
    return ("512", 6) if random.random() < 0.7 else ("1024", 40)


TRACES: Mapping[str, tuple[Callable[[Random], tuple[str, int]], int]] = {
    "one size": (one_size, 1),
    "mixed sizes": (mixed, 1),
    "previews and large": (previews, 1),
    "bursts of eight": (mixed, 8),
}
"""Kind of job, and how many of one kind come at once."""


def trace(name: str, count: int, load: float, random: Random) -> list[Arrival]:
    """Poisson arrivals at `load` of what full batches could do."""
    kind, together = TRACES[name]
    jobs = []
    for _ in range(count // together):
        shape, steps = kind(random)
        jobs += [Arrival(0, shape, steps, 1 if random.random() < 0.1 else 2) for _ in range(together)]
    work = sum(job.steps * job.width * cost(job.shape, MAX_ROWS) / MAX_ROWS for job in jobs)
    now, rate = 0.0, len(jobs) / together * load / work
    for i, job in enumerate(jobs):
        now += random.expovariate(rate) if i % together == 0 else 0
        job.at = now
        job.due = now + SLACK * job.alone if random.random() < TIGHT else inf
    return jobs


def simulate(jobs: Sequence[Arrival], policy: Policy) -> None:
    """Run a trace to its end; jobs are in the order of their arrival."""
    now, arrived, done = 0.0, 0, 0
    while done < len(jobs):
        while arrived < len(jobs) and jobs[arrived].at <= now:
            policy.put(jobs[arrived].waiting(arrived))
            arrived += 1
        batch = policy.next(now)
        if not batch:
            now = jobs[arrived].at
            continue
        key, rows = jobs[batch[0]].key, sum(jobs[row].waiting(row).width for row in batch)
        now += cost(key, rows)
        policy.observe(key, rows, cost(key, rows))
        for row in batch:
            job = jobs[row]
            job.stage += 1
            if job.stage <= job.steps + 1:
                policy.put(job.waiting(row))
            else:
                job.done = now
                policy.remove(row)
                done += 1


def line(name: str, load: float, policy: str, jobs: Sequence[Arrival]) -> str:
    latencies = sorted(job.latency for job in jobs)
    slowdowns = sorted(job.latency / job.alone for job in jobs)
    figures = (
        statistics.mean(latencies),
        latencies[int(0.95 * len(jobs))],
        latencies[int(0.99 * len(jobs))],
        statistics.mean(slowdowns),
        slowdowns[int(0.99 * len(jobs))],
        slowdowns[-1],
        100 * statistics.mean(job.done <= job.due for job in jobs if job.due < inf),
    )
    return f"| {name} | {load:.2f} | {policy} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=800)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 0.9])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    table = [
        f"# Batching policies in simulated time, {date.today()}",
        "",
        f"{args.jobs} jobs a trace, seed {args.seed}, at most {MAX_ROWS} model rows a call. Latencies are "
        "seconds of simulated time, the same on any machine; costs of calls are assumed, see `cost`.",
        "",
        "| trace | load | policy | mean | p95 | p99 | mean slowdown | p99 | worst | % in time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in TRACES:
        for load in args.loads:
            for policy, make in POLICIES.items():
                jobs = trace(name, args.jobs, load, Random(args.seed))
                simulate(jobs, make())
                table.append(line(name, load, policy, jobs))
    text = "\n".join(table) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"batcher-sim-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
