"""What systems are asked, and what is read of the service's metrics."""

import psutil
import pytest

from benchmarks.systems import System, read_counts
from deployments.metrics import ReplicaMetrics, merge
from engine.protocol import StepStats


def test_counts_are_of_evaluations_and_of_all_steps_seconds_over_all_replicas() -> None:
    replicas = [ReplicaMetrics("bench", name) for name in ("a", "b")]
    for metrics in replicas:
        for operation, rows in (("evaluate", 6), ("evaluate", 2), ("decode", 5)):
            metrics.observe_step(
                StepStats(
                    operation=operation,
                    jobs=1,
                    rows=rows,
                    seconds=0.5,
                    model_seconds=0.4,
                    running=0,
                    waiting=0,
                )
            )
    counts = read_counts(merge(metrics.text(running=0, waiting=0) for metrics in replicas))
    assert (counts.calls, counts.rows) == (4, 16)
    assert counts.seconds == pytest.approx(3.0)
    assert counts.model_seconds == pytest.approx(2.4)


@pytest.mark.parametrize(("name", "sent"), [("lock", {}), ("xinference", {"model": "bench"})])
def test_each_system_is_asked_in_its_own_words(name: str, sent: dict[str, str]) -> None:
    body = {"prompt": "a ring", "sampler_name": "Euler"}
    assert System(name, "", "", psutil.Process()).words(body) == body | sent
