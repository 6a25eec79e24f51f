import asyncio
import base64
import io
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image
from pydantic import SecretBytes
from starlette.testclient import TestClient

from ingress.app import build_app
from tests.ingress.fakes import FakeBackend, picture
from tests.ingress.gateways import HeldBackend, serving, settings_in, until
from tests.ingress.receiver import LOOPBACK


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.runner.POLL_SECONDS", 0.05)
    monkeypatch.setattr("ingress.events.POLL_SECONDS", 0.02)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def client(backend: FakeBackend, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(backend, settings_in(tmp_path)) as client:
        yield client


@pytest.fixture
async def idle(tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """Of a gateway that runs no orders: what is posted waits."""
    app = build_app(FakeBackend(), settings_in(tmp_path))
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://idle", headers={"X-API-Key": "a"}
    ) as client:
        yield client
    await app.state.service.database.close()


async def post(client: httpx2.AsyncClient, **body: Any) -> str:
    answer = await client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    id: str = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/jobs/{id}"
    return id


async def ended(client: httpx2.AsyncClient, id: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            job: dict[str, Any] = (await client.get(f"/v1/jobs/{id}")).json()
            if job["state"] not in ("queued", "running"):
                return job
            await asyncio.sleep(0.01)


async def test_posted_through_one_gateway_and_watched_through_the_other(tmp_path: Path) -> None:
    backend, settings = HeldBackend(), settings_in(tmp_path)
    async with serving(backend, settings) as one, serving(backend, settings) as other:
        id = await post(one, prompt="x", batch_size=2, seed=3)
        watching = asyncio.create_task(other.get(f"/v1/jobs/{id}/events"))
        await until(lambda: len(backend.jobs) == 2)
        assert (await other.get(f"/v1/jobs/{id}")).json()["state"] == "running"
        backend.go.set()
        stream = (await watching).text
        assert stream.rpartition("event: ")[2].startswith("done\n")
        job = await ended(other, id)
        images = [(await other.get(link)).content for link in job["result"]["images"]]
        sync = (await one.post("/sdapi/v1/txt2img", json={"prompt": "x", "batch_size": 2, "seed": 3})).json()
    assert images == [base64.b64decode(image) for image in sync["images"]]
    assert job["result"]["parameters"] == sync["parameters"]
    assert set(job) == {
        "id", "kind", "state", "place", "progress", "eta", "created", "started", "finished", "expires",
        "error", "result", "links",
    }  # fmt: skip
    assert (job["kind"], job["progress"], job["place"], job["error"]) == ("txt2img", 1.0, None, None)
    assert job["created"] <= job["started"] <= job["finished"] < job["expires"]


async def test_accepted_means_on_disk(idle: httpx2.AsyncClient, tmp_path: Path) -> None:
    answer = await idle.post("/v1/jobs", json={"prompt": "x"})
    with sqlite3.connect(tmp_path / "atelier.sqlite") as file:
        rows = list(file.execute("SELECT id, key, state FROM orders"))
    file.close()
    job = answer.json()
    assert rows == [(job["id"], "a", "queued")]
    assert (job["state"], job["place"]) == ("queued", 1)
    assert job["links"] == {"self": f"/v1/jobs/{job['id']}", "events": f"/v1/jobs/{job['id']}/events"}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"prompt": "x"}, "txt2img"),
        ({"init_images": [picture()]}, "img2img"),
        ({"init_images": []}, "txt2img"),
        ({"kind": "txt2img", "init_images": [picture()]}, "txt2img"),
        ({"kind": None, "init_images": [picture()]}, "img2img"),
    ],
)
async def test_the_kind_is_what_the_body_says(
    client: httpx2.AsyncClient, backend: FakeBackend, body: dict[str, Any], kind: str
) -> None:
    job = await ended(client, await post(client, **body))
    assert (job["state"], job["kind"]) == ("done", kind)
    assert (backend.jobs[0].init is not None) == (kind == "img2img")


@pytest.mark.parametrize(
    "body",
    [
        {"steps": 0},
        {"steps": "many"},
        {"model": "majicmix"},
        {"sampler_name": "nope"},
        {"batch_size": 99},
        {"restore_faces": True},
        {"override_settings": {"CLIP_stop_at_last_layers": 13}},
        {"infotext": "x\nSteps: 400, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"},
        {"prompt": "a" * 4001},
        [],
        "text",
    ],
)
async def test_what_the_synchronous_route_refuses_is_refused_at_once(
    client: httpx2.AsyncClient, backend: FakeBackend, body: Any
) -> None:
    sync = await client.post("/sdapi/v1/txt2img", json=body)
    answer = await client.post("/v1/jobs", json=body)
    assert answer.status_code == sync.status_code >= 400
    said = sync.json()
    assert answer.json()["error"]["message"] == (said["errors"] or said["detail"])
    assert (await client.get("/v1/jobs")).json()["jobs"] == []
    assert backend.jobs == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"kind": "video"}, ["kind", "'video'", "txt2img", "img2img"]),
        ({"kind": "img2img"}, ["init_images"]),
        ({"webhook": "https://example.com/"}, ["webhook", "no secret"]),
        ({"force_task_id": "a\0b"}, ["force_task_id", "printable"]),
        ({"init_images": ["nonsense"]}, ["init_images"]),
    ],
)
async def test_what_only_jobs_have_is_checked_too(
    client: httpx2.AsyncClient, body: dict[str, Any], said: list[str]
) -> None:
    answer = await client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    for part in said:
        assert part in answer.text


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://[::1]/", "ftp://example.com", "https://a:22/"])
async def test_a_webhook_to_the_inside_is_refused(tmp_path: Path, url: str) -> None:
    secret = SecretBytes(b"x" * 24)
    async with serving(FakeBackend(), settings_in(tmp_path, webhook_secret=secret)) as client:
        answer = await client.post("/v1/jobs", json={"webhook": url})
        assert answer.status_code == 422
        assert "webhook: " in answer.text
        await post(client, webhook="https://8.8.8.8:8443/")
    networks = settings_in(tmp_path, webhook_secret=secret, webhook_networks=LOOPBACK)
    async with serving(FakeBackend(), networks) as client:
        assert (await client.post("/v1/jobs", json={"webhook": "http://[::1]:1"})).status_code == 422
        await post(client, webhook="http://[::1]:65535/")


async def test_a_failure_is_told_as_an_answer_would_have_said_it(
    client: httpx2.AsyncClient, backend: FakeBackend
) -> None:
    backend.fail = ZeroDivisionError("/home/secret")
    job = await ended(client, await post(client, prompt="x"))
    assert (job["state"], job["result"], job["progress"]) == ("failed", None, 0)
    assert "Internal server error" in str(job["error"])
    assert "secret" not in str(job)
    answer = await client.get(f"/v1/jobs/{job['id']}/results/0")
    assert answer.status_code == 404
    assert "it is failed" in answer.text


async def test_what_was_left_out_is_told(client: httpx2.AsyncClient) -> None:
    job = await ended(client, await post(client, prompt="x", styles=["nope"]))
    assert "nope" in str(job["result"]["warnings"])


async def test_pictures_are_served_as_what_they_are(client: httpx2.AsyncClient) -> None:
    id = await post(client, prompt="x", batch_size=2)
    links = (await ended(client, id))["result"]["images"]
    first, second = [await client.get(link) for link in links]
    assert first.status_code == 200
    assert first.headers["content-type"] == "image/png"
    assert first.headers["x-content-type-options"] == "nosniff"
    assert "private" in first.headers["cache-control"]
    assert Image.open(io.BytesIO(first.content)).size == (8, 8)
    assert first.headers["etag"] != second.headers["etag"]
    for tag in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = await client.get(links[0], headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert (await client.get(links[1], headers={"If-None-Match": first.headers["etag"]})).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "results/2", "results/-1", "results/x", "results/", "results", "results/0/..", "results/0%00",
        "results/..%2F..%2Fkeys", "results/%2e%2e", "results/99999999999999999999", "events/x",
    ],
)  # fmt: skip
async def test_nothing_but_a_jobs_own_pictures_is_served(client: httpx2.AsyncClient, path: str) -> None:
    id = await post(client, prompt="x", batch_size=2)
    await ended(client, id)
    assert (await client.get(f"/v1/jobs/{id}/{path}")).status_code == 404


@pytest.mark.parametrize("id", ["x", "0" * 32, "..%2F..%2Fkeys", "%00", "a" * 5000])
async def test_what_is_no_job_is_not_found(client: httpx2.AsyncClient, id: str) -> None:
    for path in (f"/v1/jobs/{id}", f"/v1/jobs/{id}/events", f"/v1/jobs/{id}/results/0"):
        assert (await client.get(path)).status_code == 404
    assert (await client.delete(f"/v1/jobs/{id}")).status_code == 404


async def test_a_key_sees_its_own_jobs_alone(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with serving(FakeBackend(), settings, "a") as mine, serving(FakeBackend(), settings, "b") as theirs:
        id = await post(mine, prompt="x")
        await ended(mine, id)
        for path in (f"/v1/jobs/{id}", f"/v1/jobs/{id}/events", f"/v1/jobs/{id}/results/0"):
            assert (await theirs.get(path)).status_code == 404
            assert (await mine.get(path)).status_code == 200
        assert (await theirs.delete(f"/v1/jobs/{id}")).status_code == 404
        assert (await theirs.get("/v1/jobs")).json() == {"jobs": [], "next": None}
        assert (await theirs.get(f"/v1/jobs?after={id}")).status_code == 422
        assert (await ended(mine, id))["state"] == "done"


async def test_a_list_is_read_page_by_page(idle: httpx2.AsyncClient) -> None:
    ids = [await post(idle, prompt="x") for _ in range(5)]
    await idle.delete(f"/v1/jobs/{ids[0]}")
    seen, path = [], "/v1/jobs?limit=2"
    while path:
        page = (await idle.get(path)).json()
        seen.append([job["id"] for job in page["jobs"]])
        path = page["next"]
    assert seen == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]
    aborted = (await idle.get("/v1/jobs?state=aborted")).json()["jobs"]
    assert [(job["id"], job["state"]) for job in aborted] == [(ids[0], "aborted")]
    waiting = (await idle.get("/v1/jobs?state=queued&limit=3")).json()
    rest = (await idle.get(waiting["next"])).json()
    assert [job["id"] for job in rest["jobs"]] == [ids[1]]
    for wrong in ("limit=0", "limit=101", "limit=x", "state=lost", f"after={'0' * 32}"):
        assert (await idle.get(f"/v1/jobs?{wrong}")).status_code == 422


@pytest.mark.parametrize("running", [True, False])
async def test_a_job_is_aborted_through_any_gateway_and_more_than_once(
    tmp_path: Path, idle: httpx2.AsyncClient, running: bool
) -> None:
    backend = HeldBackend()
    async with serving(backend, settings_in(tmp_path, max_running=1)) as client:
        ids = [await post(client, prompt="x", seed=number) for number in range(2)]
        await until(lambda: backend.jobs)
        job = ids[0] if running else ids[1]
        for _ in range(2):
            assert (await idle.delete(f"/v1/jobs/{job}")).status_code == 204
            assert (await idle.get(f"/v1/jobs/{job}")).json()["state"] == "aborted"
        if running:
            await until(lambda: [one.seed for one in backend.aborted] == [0], seconds=1)
        backend.go.set()
        other = await ended(client, ids[1] if running else ids[0])
        assert other["state"] == "done"
        assert (await ended(client, job))["state"] == "aborted"
    assert len(backend.jobs) == (2 if running else 1)


async def test_too_many_open_jobs_are_turned_away_for_a_while(tmp_path: Path) -> None:
    async with serving(HeldBackend(), settings_in(tmp_path, max_open_per_key=2)) as client:
        ids = [await post(client, prompt="x") for _ in range(2)]
        answer = await client.post("/v1/jobs", json={"prompt": "x"})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "2 of your jobs" in answer.text
        assert (await client.delete(f"/v1/jobs/{ids[0]}")).status_code == 204
        await post(client, prompt="x")


async def test_deleting_a_job_that_is_done_deletes_its_pictures(
    client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    id = await post(client, prompt="x")
    [link] = (await ended(client, id))["result"]["images"]
    assert len(list((tmp_path / "results").iterdir())) == 1
    for _ in range(2):
        assert (await client.delete(f"/v1/jobs/{id}")).status_code == 204
        job = await ended(client, id)
        assert (job["state"], job["result"]) == ("expired", None)
        assert (await client.get(link)).status_code == 410
    assert list((tmp_path / "results").iterdir()) == []


async def test_pictures_that_have_expired_are_gone(tmp_path: Path) -> None:
    async with serving(FakeBackend(), settings_in(tmp_path, keep_seconds=0.5)) as client:
        id = await post(client, prompt="x")
        [link] = (await ended(client, id))["result"]["images"]
        assert (await client.get(link)).status_code == 200
        await asyncio.sleep(0.5)
        assert (await client.get(link)).status_code == 410
        job = await ended(client, id)
        assert (job["state"], job["result"], job["progress"]) == ("expired", None, 1.0)


async def test_who_knows_the_end_is_told_to_stay_away(client: httpx2.AsyncClient) -> None:
    id = await post(client, prompt="x")
    await ended(client, id)
    for last, status in (("", 200), ("running", 200), ("nonsense\x01", 200), ("done", 204)):
        answer = await client.get(f"/v1/jobs/{id}/events", headers={"Last-Event-ID": last})
        assert answer.status_code == status
    assert answer.content == b""
    stream = await client.get(f"/v1/jobs/{id}/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["cache-control"] == "no-cache"


async def test_after_the_service_stopped_what_was_accepted_is_finished(
    idle: httpx2.AsyncClient, tmp_path: Path
) -> None:
    ids = [await post(idle, prompt="x", seed=number) for number in range(3)]
    async with serving(FakeBackend(), settings_in(tmp_path)) as client:
        for number, id in enumerate(ids):
            assert (await ended(client, id))["result"]["parameters"]["seed"] == number


async def test_overrides_that_are_to_stay_do_so_once_the_pictures_are_there(tmp_path: Path) -> None:
    backend = HeldBackend()
    async with serving(backend, settings_in(tmp_path)) as client:

        async def clip_skip() -> int:
            options = (await client.get("/sdapi/v1/options")).json()
            return int(options["CLIP_stop_at_last_layers"])

        staying = {"override_settings_restore_afterwards": False}
        id = await post(client, override_settings={"CLIP_stop_at_last_layers": 4}, **staying)
        await until(lambda: backend.jobs)
        assert await clip_skip() == 1
        backend.go.set()
        assert (await ended(client, id))["state"] == "done"
        assert await clip_skip() == 4
        answer = await client.post("/v1/jobs", json={**staying, "override_settings": {"no_option": 4}})
        assert answer.status_code == 202


async def test_a_post_that_is_sent_again_is_one_job(client: httpx2.AsyncClient) -> None:
    once = {"Idempotency-Key": "once"}
    first, second = [await client.post("/v1/jobs", json={"prompt": "x"}, headers=once) for _ in range(2)]
    assert first.status_code == second.status_code == 202
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["location"] == first.headers["location"]
    assert len((await client.get("/v1/jobs")).json()["jobs"]) == 1


def test_an_app_that_is_started_again_runs_orders_again(tmp_path: Path) -> None:
    app = build_app(FakeBackend(), settings_in(tmp_path))
    for _ in range(2):
        with TestClient(app, headers={"X-API-Key": "a"}) as client:
            job = client.post("/v1/jobs", json={}).json()["id"]
            stream = client.get(f"/v1/jobs/{job}/events").text
            assert "event: done" in stream
