"""From measurements to what the tables say."""

from dataclasses import replace

import pytest

from benchmarks.load import Measurement, Outcome
from benchmarks.plot import panels
from benchmarks.report import Report, Setup, from_json, load_tables, speedup, to_json, to_markdown
from benchmarks.systems import EngineCounts, Swaps

SETUP = Setup("stand-in", "tiny", 64, 89.0, 0.0, {}, ("short-beside-long",))


def measurement(system: str, seconds: float, **changes: object) -> Measurement:
    """Ten pictures, each of which took a tenth of the phase; the slowest of the short ones all of it."""
    outcomes = [
        Outcome("short" if i % 2 else "long", seconds / 10, "picture", at=seconds / 2) for i in range(9)
    ]
    settings: dict[str, object] = {
        "model": "stand-in",
        "workload": "short-beside-long",
        "level": 1.0,
        "repeat": 0,
        "system": system,
        "seconds": seconds,
        "cpu_seconds": seconds,
        "outcomes": (*outcomes, Outcome("short", seconds, "picture", at=seconds)),
        "engine": None,
    }
    return Measurement(**settings | changes)  # type: ignore[arg-type]


def report(*measurements: Measurement) -> Report:
    return Report("Serving", "a machine", {"diffusers": "0"}, [SETUP], measurements)


def test_a_report_is_the_same_from_its_json() -> None:
    whole = report(
        measurement("swap", 8.0, swaps=Swaps(3, 0.5), killed_at=2.0),
        measurement("atelier", 2.0, engine=EngineCounts(calls=1.0)),
    )
    again = from_json(to_json(whole))
    assert again.measurements == list(whole.measurements)
    assert to_markdown(again) == to_markdown(whole)


def test_p99_of_a_kind_is_told_as_times_lower_than_the_locks() -> None:
    text = to_markdown(report(measurement("lock", 8.0), measurement("atelier", 2.0)))
    assert "| lock | 0.80 | 7.71 | 1.00× [1.00, 1.00] | 1.00× [1.00, 1.00] |" in text
    assert "| atelier | 0.20 | 1.93 | 4.00× [4.00, 4.00] | 4.00× [4.00, 4.00] |" in text


def test_a_report_with_xinference_says_that_it_answers_with_jpeg() -> None:
    without = report(measurement("atelier", 2.0))
    assert "JPEG" not in to_markdown(without)
    assert "xinference answers with JPEG" in to_markdown(replace(without, packages={"xinference": "0"}))


def test_the_engines_own_figures_are_per_call_step_and_job() -> None:
    counts = EngineCounts(
        calls=10, rows=65, evaluations=40, steps=20, seconds=2.0, model_seconds=1.9, jobs=4, wait_seconds=0.1
    )
    lines = list(load_tables([measurement("atelier", 2.0, engine=counts)]))
    assert "| atelier | 6.5 | 5000 | 5.0% | 25.0 |" in lines


def test_swaps_are_told_with_their_share_of_the_servers_time() -> None:
    lines = list(load_tables([measurement("swap", 8.0, swaps=Swaps(5, 2.0))]))
    assert "* swap: 5 changes of the checkpoint for 10 pictures, 400 ms each, 25.0% of its time" in lines


def test_pictures_a_second_are_told_before_and_after_a_replica_died() -> None:
    run = measurement("ray", 8.0, killed_at=4.0)
    assert run.rates_around(4.0) == pytest.approx((9 / 4, 1 / 4))


def test_evaluations_done_again_are_those_beyond_what_the_same_requests_need() -> None:
    whole, killed = (
        measurement(
            "atelier", 2.0, workload="replica-kill", level=level, engine=EngineCounts(evaluations=made)
        )
        for level, made in ((0.0, 200.0), (1.0, 213.0))
    )
    lines = list(load_tables([whole, killed]))
    assert lines[-1] == "* atelier: 13 evaluations done again, 6.5% of those needed"


def test_the_plot_has_the_ratio_of_the_table() -> None:
    lock, ours = measurement("lock", 8.0), measurement("atelier", 2.0)
    ((title, systems),) = panels(report(lock, ours))
    assert title == "stand-in, short-beside-long"
    assert systems["atelier"].value / systems["lock"].value == pytest.approx(speedup([ours], [lock]).value)
