import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.metrics import GatewayMetrics, ReplicaMetrics, merge
from engine.protocol import JobResult, StepStats, Timings

TIMINGS = Timings(wait=0.1, encode=0.02, denoise=2.0, decode=0.2, write=0.05, total=2.5)
RESULT = JobResult(job_id="j", image=b"", seed=1, evaluations=20, timings=TIMINGS, infotext="")


def step(operation: str) -> StepStats:
    return StepStats(
        operation=operation,
        jobs=3,
        rows=6,
        seconds=0.2,
        model_seconds=0.15,
        waiting=1,
        running=3,
    )


def exposition() -> str:
    """Two gateways and three replicas of two checkpoints."""
    gateways = [GatewayMetrics(replica) for replica in ("g1", "g2")]
    for gateway in gateways:
        gateway.observe_request(route="/sdapi/v1/txt2img", model="demo", status=200, seconds=2.6)
        gateway.observe_job("demo", 2.6, RESULT)
        gateway.count_retry("demo")
    replicas = [ReplicaMetrics(*names) for names in (("demo", "a"), ("demo", "b"), ("other", "c", "fp8"))]
    for replica in replicas:
        replica.observe_step(step("evaluate"))
        replica.observe_step(step("decode"))
        replica.observe_job(RESULT)
    texts = [replica.text(running=3, waiting=1) for replica in replicas]
    return merge([gateway.text() for gateway in gateways] + texts)


def test_every_family_is_there_once_with_the_samples_of_all() -> None:
    families = list(text_string_to_metric_families(exposition()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert set(names) == {
        "atelier_http_requests",
        "atelier_http_request_seconds",
        "atelier_job_routing_seconds",
        "atelier_job_retries",
        "atelier_quality",
        "atelier_job_wait_seconds",
        "atelier_stage_seconds",
        "atelier_batch_jobs",
        "atelier_batch_rows",
        "atelier_step_seconds",
        "atelier_evaluations",
        "atelier_model_seconds",
        "atelier_rows_running",
        "atelier_rows_waiting",
    }


def test_samples_are_unique_and_tell_what_happened() -> None:
    samples = [sample for family in text_string_to_metric_families(exposition()) for sample in family.samples]
    keys = [(sample.name, *sorted(sample.labels.items())) for sample in samples]
    assert len(keys) == len(set(keys))

    def total(name: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    assert total("atelier_evaluations_total", checkpoint="demo") == 6
    assert total("atelier_evaluations_total") == 9
    assert total("atelier_quality", quality="exact") == 2
    assert total("atelier_quality", quality="fp8", checkpoint="other") == 1
    assert total("atelier_http_requests_total", status="200", model="demo") == 2
    assert total("atelier_stage_seconds_sum", stage="denoise", replica="a") == 2.0
    assert total("atelier_rows_running", checkpoint="other") == 3
    assert total("atelier_job_routing_seconds_sum") == pytest.approx(0.2)
    assert total("atelier_batch_rows_sum", operation="evaluate", replica="a") == 6


def test_merging_text_of_two_versions_keeps_one_header() -> None:
    old = '# HELP x old words\n# TYPE x gauge\nx{replica="a"} 1.0\n'
    new = '# HELP x new words\n# TYPE x gauge\nx{replica="b"} 2.0\n'
    assert merge([old, new]) == old + 'x{replica="b"} 2.0\n'


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: apt install prometheus")
def test_promtool_finds_nothing_wrong() -> None:
    check = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exposition(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr
