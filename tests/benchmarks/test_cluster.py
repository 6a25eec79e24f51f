"""The simulated cluster, against what must hold of any, and against the simulation of one engine."""

from random import Random

import pytest

from benchmarks import batcher_sim
from benchmarks.batcher_sim import AREAS, MAX_ROWS, Arrival, trace
from benchmarks.cluster import Cluster, MakePolicy, Sent, Setup
from benchmarks.cluster_sim import POLICIES, Case, apportion, gaps, prepare, zipf
from benchmarks.costs import CallCosts, assumed_h200
from engine.batcher import Batcher

SECONDS_A_REQUEST = 0.015
OURS = POLICIES["ours"]


def costs_of_one_engine() -> CallCosts:
    keys = ["encode", *AREAS, *(f"decode {area}" for area in AREAS)]
    seconds = {key: {rows: batcher_sim.cost(key, rows) for rows in range(1, MAX_ROWS + 1)} for key in keys}
    return CallCosts("as in batcher_sim", 512, MAX_ROWS, seconds)


def run(case: Case, make: MakePolicy, count: int = 400, seed: int = 1) -> tuple[Cluster, list[Sent]]:
    setup, jobs = prepare(case, count, assumed_h200(), SECONDS_A_REQUEST, seed)
    cluster = Cluster(setup, make, Random(seed))
    cluster.run(jobs)
    return cluster, jobs


CASES = [
    Case("Poisson", 1, 0.9),
    Case("Poisson", 10, 0.9),
    Case("bursty", 10, 0.9),
    Case("long tail", 10, 0.9, checkpoints=4),
    Case("told", 10, 0.9, news=0.2),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.arrivals}-{case.replicas}")
@pytest.mark.parametrize("name", POLICIES)
def test_every_job_leaves_once_and_no_sooner_than_its_calls_take(case: Case, name: str) -> None:
    cluster, jobs = run(case, POLICIES[name])
    costs = cluster.setup.costs
    assert cluster.left == len(jobs)
    assert all(each.stage == each.steps + 2 for each in jobs)
    assert all(replica.jobs == 0 and len(replica.batcher) == 0 for replica in cluster.replicas)
    for each in jobs:
        assert each.latency > SECONDS_A_REQUEST + each.steps * costs(each.shape, each.width)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.arrivals}-{case.replicas}")
def test_no_replica_works_more_than_all_the_time(case: Case) -> None:
    cluster, _ = run(case, OURS)
    assert all(0 < replica.seconds <= cluster.now for replica in cluster.replicas)


def test_a_run_is_the_same_for_the_same_seed() -> None:
    first, second = (run(CASES[1], OURS)[1] for _ in range(2))
    assert [each.done for each in first] == [each.done for each in second]


def test_one_replica_does_what_the_simulation_of_one_engine_does() -> None:
    alone: list[Arrival] = trace("mixed sizes", 200, 0.6, Random(1))
    jobs = [Sent(each.at, each.shape, each.steps, each.width, each.due) for each in alone]
    batcher_sim.simulate(alone, Batcher(MAX_ROWS))
    setup = Setup(replicas=[1], gateways=1, costs=costs_of_one_engine(), jobs=len(jobs))
    Cluster(setup, OURS, Random(1)).run(jobs)
    assert [each.done for each in jobs] == pytest.approx([each.done for each in alone])


def test_a_gateway_answers_one_request_after_the_other() -> None:
    setup = Setup(replicas=[100], gateways=1, costs=assumed_h200(), jobs=32, after=1.0)
    jobs = [Sent(0.0, "512x512", 1, 2) for _ in range(5)]
    Cluster(setup, OURS, Random(0)).run(jobs)
    assert [each.latency - jobs[0].latency for each in jobs] == pytest.approx([0, 1, 2, 3, 4])


def test_jobs_that_find_no_room_wait_and_are_not_lost() -> None:
    setup = Setup(replicas=[2], gateways=3, costs=assumed_h200(), jobs=2)
    jobs = [Sent(0.0, "512x512", 4, 2, gateway=i % 3) for i in range(30)]
    cluster = Cluster(setup, OURS, Random(0))
    cluster.run(jobs)
    assert cluster.left == 30
    assert cluster.asked > 0


@pytest.mark.parametrize("variation", [1.0, 12.0])
def test_gaps_have_the_rate_and_the_variation_asked_for(variation: float) -> None:
    between = gaps(4.0, variation, Random(0))
    drawn = [next(between) for _ in range(200_000)]
    mean = sum(drawn) / len(drawn)
    spread = (sum((gap - mean) ** 2 for gap in drawn) / len(drawn)) ** 0.5
    assert mean == pytest.approx(0.25, rel=0.1)
    assert spread / mean == pytest.approx(variation, rel=0.1)


def test_every_checkpoint_has_a_replica_and_the_busiest_most() -> None:
    given = apportion(100, zipf(20))
    assert sum(given) == 100
    assert given == sorted(given, reverse=True)
    assert min(given) >= 1
    loads = [share / number for share, number in zip(zipf(20), given, strict=True)]
    assert max(loads) < 1.5 / 100
