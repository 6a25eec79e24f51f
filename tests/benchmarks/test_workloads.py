"""Requests follow from the seed alone, so that every system meets the same ones."""

import random
from itertools import pairwise

import pytest

from benchmarks.workloads import NOT_YET, SLO_KINDS, WORKLOADS, Traffic, burst, disconnects, of_kind, slo

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


def test_every_slo_kind_is_timed_alone_under_the_name_it_is_sent_with() -> None:
    alone = {of_kind(random.Random(0), 64, kind).kind for kind in SLO_KINDS}
    assert {request.kind for request in slo(TRAFFIC)} == alone
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


def test_no_workload_is_both_there_and_not() -> None:
    assert not WORKLOADS.keys() & NOT_YET.keys()
