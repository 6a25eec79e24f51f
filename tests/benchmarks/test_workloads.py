"""Requests follow from the seed alone, so that every system meets the same ones."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.workloads import (
    LORAS,
    SLO_KINDS,
    WORKLOADS,
    Traffic,
    burst,
    disconnects,
    loras,
    mixed,
    models,
    models_in_bursts,
    of_kind,
    slo,
)

TRAFFIC = Traffic(size=64, count=400, seed=3, capacity=2.0)


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_is_the_same_for_the_same_seed(name: str) -> None:
    requests = WORKLOADS[name].requests
    assert list(requests(TRAFFIC)) == list(requests(TRAFFIC))


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_differs_with_the_seed(name: str) -> None:
    requests = WORKLOADS[name].requests
    other = Traffic(size=64, count=400, seed=4, capacity=2.0)
    assert list(requests(TRAFFIC)) != list(requests(other))


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_has_as_many_requests_as_asked_for_in_order(name: str) -> None:
    requests = list(WORKLOADS[name].requests(TRAFFIC))
    assert len(requests) == TRAFFIC.count
    assert all(before.due <= after.due for before, after in pairwise(requests))


def test_uniform_requests_could_share_a_pipeline_call_and_sizes_are_four() -> None:
    uniform = [request.body for request in WORKLOADS["uniform"].requests(TRAFFIC)]
    assert (
        len({(b["steps"], b["sampler_name"], b["cfg_scale"], b["width"], b["height"]) for b in uniform}) == 1
    )
    sizes = [request.body for request in WORKLOADS["sizes"].requests(TRAFFIC)]
    assert {(b["width"], b["height"]) for b in sizes} == {(64, 64), (64, 96), (96, 64), (96, 96)}


@pytest.mark.parametrize("level", [0.5, 4.0])
def test_slo_offers_its_level_of_the_capacity(level: float) -> None:
    requests = list(slo(Traffic(size=64, count=2000, seed=0, capacity=3.0, level=level)))
    assert len(requests) / requests[-1].due == pytest.approx(3.0 * level, rel=0.1)


@pytest.mark.parametrize("brief", [1, 8])
def test_every_slo_kind_is_timed_alone_under_the_name_it_is_sent_with(brief: int) -> None:
    traffic = replace(TRAFFIC, brief=brief)
    alone = {of_kind(random.Random(0), traffic, kind).kind for kind in SLO_KINDS}
    assert {request.kind for request in slo(traffic)} == alone
    assert len(alone) == len(SLO_KINDS)


def test_burst_brings_ten_times_as_many() -> None:
    requests = list(burst(Traffic(size=64, count=4000, seed=0, capacity=1.0)))
    gaps: dict[str, list[float]] = {}
    for before, after in pairwise(requests):
        gaps.setdefault(after.kind, []).append(after.due - before.due)
    means = {kind: sum(each) / len(each) for kind, each in gaps.items()}
    assert means["beside it"] / means["in the burst"] == pytest.approx(10, rel=0.15)


def test_those_who_leave_ask_for_what_those_who_stay_do() -> None:
    stay = list(disconnects(Traffic(size=64, count=1000, seed=0, capacity=2.0, level=0.0)))
    leave = list(disconnects(Traffic(size=64, count=1000, seed=0, capacity=2.0, level=0.3)))
    assert [request.body for request in stay] == [request.body for request in leave]
    assert all(request.leaves is None for request in stay)
    assert sum(request.leaves is not None for request in leave) / 1000 == pytest.approx(0.3, abs=0.05)


def test_brief_requests_are_the_same_with_an_eighth_of_the_steps_but_2_at_least() -> None:
    usual, brief = (list(mixed(replace(TRAFFIC, brief=each))) for each in (1, 8))
    assert [{**request.body, "steps": 0} for request in brief] == [
        {**request.body, "steps": 0} for request in usual
    ]
    steps = {(u.body["steps"], b.body["steps"]) for u, b in zip(usual, brief, strict=True)}
    assert steps == {(4, 2), (8, 2), (20, 2), (30, 4), (50, 6)}


def test_models_are_named_by_popularity_and_mostly_draw_30_steps() -> None:
    names = tuple(f"checkpoint-{i}" for i in range(8))
    requests = list(models(replace(TRAFFIC, count=10_000, checkpoints=names)))
    named = Counter(request.body["model"] for request in requests)
    assert named.keys() == set(names)
    assert named[names[0]] / 10_000 == pytest.approx(0.307 / 0.8012, abs=0.02)
    usual = sum(request.body["steps"] == 30 for request in requests) / 10_000
    assert usual == pytest.approx(0.906 + 0.094 / 5, abs=0.01)


def test_models_in_bursts_are_the_same_requests_at_the_rate_of_their_level() -> None:
    traffic = replace(TRAFFIC, count=200_000, level=0.5, capacity=4.0)
    requests = list(models_in_bursts(traffic))
    assert [request.body for request in requests] == [request.body for request in models(traffic)]
    assert len(requests) / requests[-1].due == pytest.approx(2.0, rel=0.15)


def test_a_fifth_of_the_loras_requests_name_one_the_popular_ones_most() -> None:
    traffic = replace(TRAFFIC, count=20_000)
    requests = list(loras(traffic))
    tags = [r.body["prompt"].rpartition(" <lora:")[2] for r in requests if "<lora:" in r.body["prompt"]]
    assert len(tags) / 20_000 == pytest.approx(0.2, abs=0.01)
    uses = Counter(tag.partition(":")[0] for tag in tags)
    assert uses.keys() <= {f"lora-{rank}" for rank in range(LORAS)}
    assert sum(uses[f"lora-{rank}"] for rank in range(10)) / len(tags) == pytest.approx(0.2, abs=0.03)
    without = [r.body["prompt"].partition(" <lora:")[0] for r in requests]
    assert without == [r.body["prompt"] for r in mixed(traffic)]
