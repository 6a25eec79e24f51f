"""From one replica to a thousand in simulated time: `python -m benchmarks.cluster_sim`.

Drives the product's routing and batcher with the jobs of workload `sizes`, as Poisson arrivals, in bursts,
and with a long tail of checkpoints, and compares the routing with others on the same arrivals. Costs of calls
are assumed for an H200 unless `--costs` names a table that `python -m benchmarks.costs` has measured.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from heapq import heapify, heapreplace
from math import ceil, sqrt
from pathlib import Path
from random import Random

from tqdm import tqdm

from benchmarks.cluster import Cluster, Length, MakePolicy, Sent, Setup
from benchmarks.costs import CallCosts, assumed_h200, read
from benchmarks.figures import percentile
from benchmarks.machine import RESULTS, machine
from benchmarks.workloads import Traffic, sizes
from deployments.routing import Routing

BURSTY = 12.0
"""Coefficient of variation of the time between arrivals in a production trace (GenTD26); Poisson's is 1."""
TAIL = 1.3
"""Zipf's exponent for the checkpoints of that trace: the first has a third of the jobs, five two thirds."""
REPLICAS_A_CHECKPOINT = 5
MOST_CHECKPOINTS = 87
WARM_UP = 0.4
"""The share of the jobs that come before figures are taken."""
BUSY = 0.6
"""How much of a gateway's core its requests take."""
HOP_SECONDS = 0.002


class Anywhere:
    """Random."""

    def __init__(self, replicas: Sequence[int], length: Length, limit: int, random: Random) -> None:
        self._replicas, self._random = replicas, random

    def ranks(self, key: Hashable) -> Sequence[Sequence[int]]:
        return [[self._random.choice(self._replicas)], [self._random.choice(self._replicas)]]

    def sent(self, replica: int, key: Hashable) -> None:
        """It keeps nothing."""

    def done(self, replica: int, key: Hashable) -> None:
        """It keeps nothing."""


class OfTwo(Anywhere):
    """The one with the shorter queue of two at random: Serve's own."""

    def ranks(self, key: Hashable) -> Sequence[Sequence[int]]:
        return [self._random.sample(self._replicas, min(2, len(self._replicas)))]


class AmongAll(Routing[int]):
    """Ours, if it did not keep to few replicas."""

    def _used(self) -> list[int]:
        return self._order


def routed(kind: Callable[[int, Length, Random], Routing[int]]) -> MakePolicy:
    def make(replicas: Sequence[int], length: Length, limit: int, random: Random) -> Routing[int]:
        routing = kind(limit, length, random)
        routing.offer(replicas)
        return routing

    return make


POLICIES: Mapping[str, MakePolicy] = {
    "random": Anywhere,
    "shorter of two": OfTwo,
    "ours, among all": routed(AmongAll),
    "ours": routed(Routing),
}


@dataclass(frozen=True)
class Case:
    """`load` is the share of what full batches could do. `news`: see `Setup`."""

    arrivals: str
    replicas: int
    load: float
    checkpoints: int = 1
    news: float = 0.0


def job(body: Mapping[str, object]) -> Sent:
    """What a request's job asks of a replica, before it is known when it comes and for which checkpoint."""
    evaluations = int(str(body["steps"])) * (2 if body["sampler_name"] == "Heun" else 1)
    return Sent(0, f"{body['width']}x{body['height']}", evaluations, 1 if body["cfg_scale"] == 1 else 2)


def work(job: Sent, costs: CallCosts) -> float:
    """A replica's seconds for a job in full batches."""
    encode, evaluation = (costs(key, costs.max_rows) / costs.max_rows for key in ("encode", job.shape))
    return (encode + job.steps * evaluation) * job.width + costs(f"decode {job.shape}", 4) / 4


def gaps(rate: float, variation: float, random: Random) -> Iterator[float]:
    """Seconds between arrivals, of this coefficient of variation: exponential, or of two exponentials with
    as much time in either."""
    square = variation**2
    seldom = (1 - sqrt((square - 1) / (square + 1))) / 2
    while True:
        share = seldom if random.random() < seldom else 1 - seldom
        yield random.expovariate(2 * share * rate)


def zipf(count: int) -> list[float]:
    weights = [1 / rank**TAIL for rank in range(1, count + 1)]
    return [weight / sum(weights) for weight in weights]


def apportion(replicas: int, shares: Sequence[float]) -> list[int]:
    """At least one each, and the next to whom has most load a replica."""
    given = [1] * len(shares)
    loads = [(-share, i) for i, share in enumerate(shares)]
    heapify(loads)
    for _ in range(replicas - len(shares)):
        i = loads[0][1]
        given[i] += 1
        heapreplace(loads, (-shares[i] / given[i], i))
    return given


def prepare(
    case: Case, count: int, costs: CallCosts, request_seconds: float, seed: int
) -> tuple[Setup, list[Sent]]:
    """The cluster and its trace: the same for every policy."""
    random = Random(seed)
    jobs = [job(request.body) for request in sizes(Traffic(costs.size, count, seed, capacity=0))]
    rate = case.load * case.replicas * count / sum(work(job, costs) for job in jobs)
    shares = zipf(case.checkpoints)
    setup = Setup(
        replicas=apportion(case.replicas, shares),
        gateways=max(1, ceil(rate * request_seconds / BUSY)),
        costs=costs,
        jobs=costs.max_rows,
        before=request_seconds / 3,
        after=request_seconds * 2 / 3,
        hop=HOP_SECONDS,
        news=case.news,
    )
    now = 0.0
    between = gaps(rate, BURSTY if case.arrivals == "bursty" else 1.0, random)
    for each in jobs:
        now += next(between)
        each.at = now
        each.gateway = random.randrange(setup.gateways)
        each.checkpoint = random.choices(range(case.checkpoints), shares)[0]
    return setup, jobs


def simulate(case: Case, name: str, count: int, costs: CallCosts, request_seconds: float, seed: int) -> str:
    """The row of a table for one case with one policy."""
    setup, jobs = prepare(case, count, costs, request_seconds, seed)
    cluster = Cluster(setup, POLICIES[name], Random(seed))
    cluster.run(jobs)
    measured = [each for each in jobs if each.at >= jobs[int(WARM_UP * count)].at]
    began, ended = measured[0].at, measured[-1].at
    latencies = [each.latency for each in measured]
    calls = sum(replica.calls for replica in cluster.replicas)
    cells = [
        case.arrivals,
        case.checkpoints,
        case.replicas,
        case.load,
        name,
        setup.gateways,
        f"{len(measured) / (ended - began):.4g}",
        f"{sum(began <= each.done <= ended for each in jobs) / (ended - began):.4g}",
        f"{percentile(latencies, 0.5):.2f}",
        f"{percentile(latencies, 0.95):.2f}",
        f"{sum(replica.rows for replica in cluster.replicas) / calls:.1f}",
        f"{cluster.asked / count:.2f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def cases() -> list[Case]:
    poisson = [Case("Poisson", n, load) for n in (1, 10, 100, 1000) for load in (0.6, 0.9)]
    tails = [
        Case("long tail", n, load, min(MOST_CHECKPOINTS, n // REPLICAS_A_CHECKPOINT))
        for n, load in ((100, 0.6), (100, 0.9), (1000, 0.6))
    ]
    others = [Case("bursty", 10, 0.6), Case("bursty", 100, 0.6), Case("Poisson, told", 100, 0.9, news=0.2)]
    return [*poisson, *others, *tails]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--costs", type=Path, help="a table of benchmarks.costs; assumed for an H200 unless given"
    )
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--routing", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument(
        "--jobs", type=int, default=40_000, help="of a run, at most 80 for each replica or 2,000"
    )
    parser.add_argument("--processes", type=int, help="as many as there are cores unless given")
    parser.add_argument(
        "--request-ms", type=float, default=15.0, help="of a gateway's core: benchmarks.gateway"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    costs = read(args.costs) if args.costs else assumed_h200()
    table = [
        "| arrivals | checkpoints | replicas | load | routing | gateways | offered/s | pictures/s | p50 s "
        "| p95 s | rows/call | asked/job |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    began = time.monotonic()
    runs = [(case, name) for case in cases() if case.replicas in args.replicas for name in args.routing]
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        rows = []
        for case, name in runs:
            count = min(args.jobs, max(2000, 80 * case.replicas))
            rows.append(pool.submit(simulate, case, name, count, costs, args.request_ms / 1000, args.seed))
        table += [row.result() for row in tqdm(rows, unit="run")]
    lines = [
        f"# A cluster in simulated time, {date.today()}",
        "",
        f"{machine()} It took {time.monotonic() - began:.0f} s.",
        "",
        f"Costs of calls: {costs.about}. At most {costs.max_rows} model rows a call, as many jobs a replica. "
        f"A request takes {args.request_ms:g} ms of a gateway's core; so many gateways are {BUSY:.0%} busy. "
        f"Seed {args.seed}; 80 jobs a replica, at least 2,000 and at most {args.jobs:,}, of which the first "
        f"{WARM_UP:.0%} fill the cluster and are not counted. With fewer than 80 jobs a replica it is still "
        "filling at the end, so that pictures/s are below what it would keep up.",
        "",
        "Jobs are those of workload `sizes`. Load is against full batches of one size. Bursty arrivals have "
        f"a coefficient of variation of {BURSTY:g}. Told: all gateways know of all queues, every 0.2 s. "
        "Asked: how many replicas a router asks for their queue's length, per job.",
        "",
        *table,
    ]
    kind = args.costs.stem.removeprefix("call-costs-") if args.costs else "h200-assumed"
    text = "\n".join(lines) + "\n"
    (args.out / f"cluster-sim-{kind}-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
