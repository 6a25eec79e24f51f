"""The service as a whole, on real processes: what it promises when things break or change."""

import base64
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from random import Random

import httpx2
import pytest

from ingress.translate import RANDOM_SEEDS
from tests.e2e.service import SECRET, Service, checkpoint_app, free_port, wait_until
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.ray

LONG = {
    "prompt": "a red circle",
    "seed": 7,
    "steps": 150,
    "sampler_name": "Heun",
    "width": 128,
    "height": 128,
}
LONG_EVALUATIONS = 299
"""Two a step, but one at the last."""


def busy(service: Service) -> list[str]:
    """The replicas that have rows running."""
    running = service.metric_by("replica", "atelier_rows_running", checkpoint="tiny")
    return [replica for replica, rows in running.items() if rows]


def test_a_job_outlives_its_replica_and_the_picture_is_the_same(service: Service) -> None:
    undisturbed = service.txt2img(**LONG)
    retries = service.metric("atelier_job_retries_total", checkpoint="tiny")
    with ThreadPoolExecutor() as pool:
        call = pool.submit(service.txt2img, **LONG)
        wait_until(lambda: busy(service))
        [replica] = busy(service)
        victim = service.pids("tiny")[replica]
        evaluations = service.metric("atelier_evaluations_total", replica=replica)
        wait_until(lambda: service.metric("atelier_evaluations_total", replica=replica) > evaluations)
        assert not call.done()
        os.kill(victim, signal.SIGKILL)
        assert call.result() == undisturbed
    assert service.metric("atelier_job_retries_total", checkpoint="tiny") == retries + 1
    wait_until(lambda: len(service.pids("tiny")) == 3)
    assert victim not in service.pids("tiny").values()


@pytest.mark.parametrize("headers", [{}, {"x-request-disconnect-disabled": "?1"}])
def test_a_client_that_leaves_frees_its_rows(service: Service, headers: dict[str, str]) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        service.client.post("/sdapi/v1/txt2img", json=LONG, headers=headers, timeout=0.5)
    assert wait_until(lambda: not busy(service), seconds=30) < 5
    evaluations = service.metric("atelier_evaluations_total")
    time.sleep(0.5)
    assert service.metric("atelier_evaluations_total") == evaluations


NAMED = {"idempotency-key": "0f2c7e1c-8d0f-4a2e-8f6c-3c1f3a5f9d11"}


def test_a_client_that_leaves_and_asks_again_by_name_gets_its_picture(service: Service) -> None:
    """And the picture is drawn once."""
    evaluations = service.metric("atelier_evaluations_total")
    with pytest.raises(httpx2.ReadTimeout):
        service.client.post("/sdapi/v1/txt2img", json=LONG, headers=NAMED, timeout=0.5)
    answer = service.client.post("/sdapi/v1/txt2img", json=LONG, headers=NAMED)
    assert answer.status_code == 200
    assert answer.headers["idempotent-replayed"] == "true"
    assert service.metric("atelier_evaluations_total") == evaluations + LONG_EVALUATIONS


def test_a_gateways_death_leaves_the_picture_to_its_repeat(service: Service) -> None:
    """Of a random seed: the repeat draws it with the randomness of the first."""
    named, body = {"idempotency-key": "after-its-death"}, {**LONG, "seed": -1}
    with ThreadPoolExecutor() as pool:
        call = pool.submit(service.client.post, "/sdapi/v1/txt2img", json=body, headers=named)
        wait_until(lambda: busy(service))
        [victim] = service.pids("gateway").values()
        os.kill(victim, signal.SIGKILL)
        assert call.result().status_code >= 500
    wait_until(lambda: service.hashes().get("tiny"))
    with closing(sqlite3.connect(service.database)) as database:
        [[random_seed]] = database.execute("SELECT random_seed FROM answers WHERE name = 'after-its-death'")
    answer = service.client.post("/sdapi/v1/txt2img", json=body, headers=named)
    assert answer.status_code == 200
    seed = Random(int.from_bytes(random_seed)).randrange(RANDOM_SEEDS)
    assert json.loads(answer.json()["info"])["seed"] == seed
    assert base64.b64decode(answer.json()["images"][0]) == service.txt2img(**{**body, "seed": seed})


def test_an_absent_checkpoint_is_answered_at_once(service: Service) -> None:
    service.offer.append({"name": "absent", "filename": "absent.safetensors"})
    service.deploy()
    wait_until(lambda: "absent" in service.hashes())
    started = time.monotonic()
    answer = service.client.post(
        "/sdapi/v1/txt2img",
        json={"prompt": "x", "override_settings": {"sd_model_checkpoint": "absent"}},
    )
    assert time.monotonic() - started < 1
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


@pytest.fixture(scope="module")
def before_other(service: Service, folder: Path) -> dict[str, int]:
    """Adds the checkpoint `other`, which takes one job at a time. The process ids from before."""
    pids = service.pids("gateway", "tiny")
    path = write_checkpoint(folder / "other.safetensors", seed=1)
    service.add("other", path, max_ongoing_jobs=1, max_queued_jobs=1)
    service.deploy()
    wait_until(lambda: service.hashes().get("other"))
    return pids


OTHER = {"override_settings": {"sd_model_checkpoint": "other"}}


def test_adding_a_checkpoint_restarts_nothing(service: Service, before_other: dict[str, int]) -> None:
    job = {"prompt": "x", "seed": 1, "steps": 2, "width": 64, "height": 64}
    assert service.txt2img(**job) != service.txt2img(**job, **OTHER)
    assert service.pids("gateway", "tiny") == before_other


@pytest.mark.usefixtures("before_other")
def test_a_full_replica_turns_jobs_away_and_still_shows_its_metrics(service: Service) -> None:
    """One job runs, one waits, the third is too many."""
    body = LONG | OTHER | {"steps": 60}
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(service.client.post, "/sdapi/v1/txt2img", json=body)]
        wait_until(lambda: service.metric("atelier_rows_running", checkpoint="other") == 1)
        calls += [pool.submit(service.client.post, "/sdapi/v1/txt2img", json=body) for _ in range(2)]
        started = time.monotonic()
        assert service.metric("atelier_rows_running", checkpoint="other") == 1
        assert time.monotonic() - started < 1.5
        answers = [call.result() for call in calls]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    [refusal] = [answer for answer in answers if answer.status_code == 429]
    assert int(refusal.headers["retry-after"]) >= 1


def test_jobs_go_where_their_batch_is(service: Service) -> None:
    """Two kinds of jobs, four of each, on two replicas: each kind has a replica for itself."""

    def batched() -> tuple[float, float]:
        steps = service.metric("atelier_step_seconds_count", operation="evaluate", checkpoint="tiny")
        return service.metric("atelier_evaluations_total", checkpoint="tiny"), steps

    wait_until(lambda: len(service.pids("tiny")) == 3)
    evaluations, steps = batched()
    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            side = 64 + 64 * (number % 2)
            pool.submit(service.txt2img, prompt="x", steps=60, width=side, height=64)
            time.sleep(0.05)
    more_evaluations, more_steps = batched()
    assert more_evaluations - evaluations == 8 * 60
    assert (more_evaluations - evaluations) / (more_steps - steps) > 2.5


def test_wrong_checkpoints_fail_by_name_and_alone(service: Service) -> None:
    pids = service.pids("gateway", "tiny")
    right = list(service.applications)
    wrong: dict[str, tuple[dict[str, object], str]] = {
        "typo": ({"num_gpu": 1}, "num_gpu"),
        "value": ({"dtype": "half"}, "dtype"),
        "missing": ({}, "there is no file x.safetensors"),
    }
    for name, (args, _) in wrong.items():
        service.applications.append(checkpoint_app(name, Path("x.safetensors"), **args))
    service.deploy()
    for name, (_, told) in wrong.items():
        wait_until(lambda: service.status(name)[0] == "DEPLOY_FAILED")  # noqa: B023
        assert told in service.status(name)[1]
    service.applications = right
    service.deploy()
    wait_until(lambda: not any(service.status(name)[0] for name in wrong))
    assert service.pids("gateway", "tiny") == pids


def test_a_wrong_offer_is_refused_while_the_last_one_stays(service: Service) -> None:
    pids, offer, hashes = service.pids("gateway"), service.offer, service.hashes()
    service.offer = [{"nam": "typo"}]
    service.deploy()
    time.sleep(2)
    assert service.hashes() == hashes
    service.offer = offer
    service.deploy()
    assert service.pids("gateway") == pids


def test_a_gateway_without_its_keys_does_not_start(service: Service) -> None:
    """As a second gateway: the first goes on serving."""
    service.applications.append(
        {**service.gateway, "name": "second", "route_prefix": "/second", "args": {"keys_file": "/no"}}
    )
    service.deploy()
    wait_until(lambda: service.status("second")[0] == "DEPLOY_FAILED")
    assert "keys_file: cannot read /no" in service.status("second")[1]
    service.applications.pop()
    service.deploy()
    wait_until(lambda: not service.status("second")[0])


@pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus: apt install prometheus")
def test_prometheus_scrapes_it(service: Service, folder: Path) -> None:
    service.txt2img(prompt="x", steps=2, width=64, height=64)
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(f"""
scrape_configs:
  - job_name: atelier
    scrape_interval: 1s
    authorization: {{credentials: {SECRET}}}
    static_configs: [{{targets: ["127.0.0.1:{service.port}"]}}]
""")

    def seen(query: str) -> list[object]:
        with suppress(httpx2.ConnectError):
            url = f"http://127.0.0.1:{port}/api/v1/query"
            response = httpx2.get(url, params={"query": query})
            if response.is_success:  # it answers 503 until its storage is open
                return list(response.json()["data"]["result"])
        return []

    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: seen('up{job="atelier"} == 1'), seconds=30)
        assert seen('atelier_evaluations_total{checkpoint="tiny"} > 0')
        assert seen('atelier_http_requests_total{route="/sdapi/v1/txt2img",status="200"} > 0')
        assert len(seen("atelier_rows_running")) >= 2
    finally:
        process.terminate()
        process.wait()
