"""Targets: which runs they need, and what their table says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load import Measurement, Outcome
from benchmarks.report import Setup
from benchmarks.targets import MIXED, TARGETS, Kept, cost_row, plan, runs, short_p99, table
from benchmarks.workloads import WORKLOADS

KEPT = Kept(3.5, 3.3, 3.7, requests=48, repeats=5, date="2026-01-01", machine="a machine", psnr=89.0)


def test_rows_of_the_same_load_share_a_run_of_their_systems_alone() -> None:
    ((load, targets),) = runs(["mixed-lock", "mixed-litserve"])
    assert load == MIXED
    assert plan(load, targets).systems == ("lock", "litserve", "atelier")
    ((load, targets),) = runs(["mixed-litserve"])
    assert plan(load, targets).systems == ("litserve", "atelier")


def test_all_rows_are_run_once_on_systems_that_have_what_the_workload_needs() -> None:
    ran = list(runs(list(TARGETS)))
    assert [name for _, targets in ran for name in targets] == list(TARGETS)
    for load, targets in ran:
        assert set(plan(load, targets).systems) <= set(WORKLOADS[load.workload].site.systems)


@pytest.mark.parametrize(("value", "says"), [(3.1, "missed"), (3.2, "enough"), (4.0, "reached")])
def test_a_row_says_whether_the_target_was_met(value: float, says: str) -> None:
    lines = list(table({"mixed-lock": replace(KEPT, value=value)}))
    (line,) = [line for line in lines if line.startswith("| mixed-lock |")]
    assert "| 3.2× | 4× |" in line
    assert f"| {value:.2f}× [3.30, 3.70] | {says} | 89 | 5 × 48 | 2026-01-01 |" in line


def test_rows_never_run_are_there_without_a_figure() -> None:
    lines = list(table({}))
    assert len(lines) == 2 + len(TARGETS)
    assert all("| – |" in line for line in lines[2:])


@pytest.mark.parametrize(("cost", "says"), [(12.5, "missed"), (9.0, "enough"), (5.5, "reached")])
def test_the_services_cost_is_of_its_last_file(tmp_path: Path, cost: float, says: str) -> None:
    assert cost_row(tmp_path) == []
    for day, value in (("01", 99.0), ("02", cost)):
        (tmp_path / f"service-cost-2026-01-{day}.json").write_text(json.dumps({"service_ms": value}))
    *_, line = table({}, cost_row(tmp_path))
    assert f"| 12 ms | 6 ms | {cost:.1f} ms | {says} |" in line


def test_machines_are_told_with_the_rows_that_ran_on_them() -> None:
    kept = {"mixed-lock": KEPT, "full": replace(KEPT, machine="another machine", note="* swap: 3 changes")}
    lines = list(table(kept))
    assert "mixed-lock: a machine" in lines
    assert "full: another machine" in lines
    assert "* swap: 3 changes" in lines


def test_p99_of_short_requests_is_how_many_times_lower_than_theirs() -> None:
    ours, theirs = (
        Measurement(
            "stand-in",
            "short-beside-long",
            1.0,
            0,
            system,
            10.0,
            10.0,
            (Outcome("short", seconds, "picture"), Outcome("long", 9.0, "picture")),
            None,
        )
        for system, seconds in (("atelier", 0.5), ("lock", 2.0))
    )
    setup = Setup("stand-in", "", 64, None, 0.0, {}, ("short-beside-long",))
    assert short_p99([theirs, ours], setup, "atelier", "lock").value == pytest.approx(4.0)
