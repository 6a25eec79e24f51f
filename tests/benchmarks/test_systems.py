"""What is read of the service's metrics."""

import pytest

from benchmarks.systems import read_counts
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
