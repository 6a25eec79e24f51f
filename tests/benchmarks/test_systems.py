"""What servers are configured with and asked, and what is read of the service's metrics."""

from pathlib import Path

import psutil
import pytest

from benchmarks.baselines import xinference
from benchmarks.served import Served
from benchmarks.systems import EngineCounts, System, at_hand, read_counts, serve_config
from deployments.metrics import ReplicaMetrics, merge
from deployments.serve import check
from engine.protocol import JobResult, StepStats, Timings


def observed(checkpoint: str, replica: str) -> ReplicaMetrics:
    metrics = ReplicaMetrics(checkpoint, replica)
    for operation, jobs, rows in (("evaluate", 4, 6), ("evaluate", 1, 2), ("decode", 5, 5)):
        metrics.observe_step(
            StepStats(
                operation=operation,
                jobs=jobs,
                rows=rows,
                seconds=0.5,
                model_seconds=0.4,
                running=0,
                waiting=0,
            )
        )
    timings = Timings(wait=0.25, encode=0, denoise=0, decode=0, write=0, total=1)
    metrics.observe_job(
        JobResult(job_id="j", image=b"", seed=1, evaluations=20, timings=timings, infotext="")
    )
    return metrics


def test_counts_are_of_evaluations_and_of_all_steps_seconds_by_replica() -> None:
    replicas = [observed("bench", "a"), observed("other", "b"), ReplicaMetrics("other", "idle")]
    counts = read_counts(merge(metrics.text(running=0, waiting=0) for metrics in replicas))
    assert counts.keys() == {"a", "b", "idle"}
    assert counts["idle"] == EngineCounts()
    total = EngineCounts.total(counts.values())
    assert (total.calls, total.rows, total.evaluations, total.steps, total.jobs) == (4, 16, 10, 6, 2)
    assert (total.seconds, total.model_seconds, total.wait_seconds) == pytest.approx((3.0, 2.4, 0.5))


def test_counts_since_another_moment_are_the_difference() -> None:
    (first,) = read_counts(observed("bench", "a").text(running=0, waiting=0)).values()
    assert EngineCounts.total([first, first]).since(first) == first
    assert EngineCounts.total([]) == EngineCounts()


@pytest.mark.parametrize(("name", "dtype"), [("atelier", "float32"), ("atelier-bf16", "bfloat16")])
def test_the_service_gets_an_application_for_each_checkpoint_that_fit_on_two_cores(
    name: str, dtype: str
) -> None:
    paths = tuple(Path(f"/bench/model-{i}.safetensors") for i in range(8))
    config = serve_config(name, Served(paths, 1, Path("/bench/loras"), replicas=2), Path("/bench/keys"))
    check(config)
    gateway, *checkpoints = config["applications"]
    offered = gateway["deployments"][0]["user_config"]["checkpoints"]
    assert [each["name"] for each in offered] == [path.stem for path in paths]
    args = [application["args"] for application in checkpoints]
    assert [each["path"] for each in args] == [str(path) for path in paths]
    assert {each["dtype"] for each in args} == {dtype}
    assert sum(each["num_cpus"] * each["replicas"] for each in args) <= 2


def test_xinference_is_at_hand_once_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xinference, "ENVIRONMENT", tmp_path)
    assert at_hand(["lock", "xinference"]) == ["lock"]
    (tmp_path / ".ready").touch()
    assert at_hand(["lock", "xinference"]) == ["lock", "xinference"]


@pytest.mark.parametrize(("name", "sent"), [("lock", {}), ("xinference", {"model": "bench"})])
def test_each_system_is_asked_in_its_own_words(name: str, sent: dict[str, str]) -> None:
    body = {"prompt": "a ring", "sampler_name": "Euler"}
    assert System(name, "", "", psutil.Process()).words(body) == body | sent
