"""Requests that are sent again, to two gateways that share nothing but a database."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select, update
from starlette.types import Message

from engine.protocol import (
    DeadlineExceeded,
    Enlargement,
    Job,
    JobAborted,
    JobFailed,
    JobResult,
    Overloaded,
    Unavailable,
)
from ingress.app import build_app
from ingress.settings import Key, Limits, Settings
from ingress.store import answers as stored
from ingress.store.database import Database
from tests.ingress.fakes import FakeBackend, result

PATH = "/sdapi/v1/txt2img"
NAME = {"idempotency-key": "6c1e7d0e-2f5c-4c0e-9d3e-6d2f5b1a7c11"}
BODY = {"prompt": "a lighthouse", "batch_size": 2}


class HeldBackend(FakeBackend):
    """Jobs are done while `released` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.started = asyncio.Event()
        self.released = asyncio.Event()
        self.aborted = 0

    async def run(self, job: Job | Enlargement) -> JobResult:
        assert isinstance(job, Job)
        self.jobs.append(job)
        self.started.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        if self.fail:
            raise self.fail
        return replace(result(job), **self.known)


@dataclass
class Gateway:
    client: httpx2.AsyncClient
    backend: HeldBackend
    stop: Callable[[], Any]

    async def post(self, body: Any = BODY, path: str = PATH, **headers: str) -> httpx2.Response:
        return await self.client.post(path, json=body, headers={**NAME, **headers})


@dataclass
class Gateways:
    """Makes gateways over one file; `key` is the caller's."""

    folder: Path
    running: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, key: str = "mia", **settings: Any) -> Gateway:
        keys = tuple(
            Key(id=name, sha256=hashlib.sha256(name.encode()).hexdigest()) for name in ("mia", "tom")
        )
        backend = HeldBackend()
        app = build_app(backend, Settings(keys=keys, database=self.database_url, **settings))
        lifespan = await self.running.enter_async_context(AsyncExitStack())
        await lifespan.enter_async_context(app.router.lifespan_context(app))
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app),
            base_url="http://gateway",
            headers={"x-api-key": key},
        )
        await self.running.enter_async_context(client)
        return Gateway(client, backend, lifespan.aclose)

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.folder}/file.sqlite"


@pytest.fixture
async def gateways(tmp_path: Path) -> AsyncIterator[Gateways]:
    gateways = Gateways(tmp_path)
    async with gateways.running:
        yield gateways


@pytest.fixture
async def here(gateways: Gateways) -> Gateway:
    return await gateways.start()


@pytest.fixture
async def there(gateways: Gateways) -> Gateway:
    return await gateways.start()


@pytest.fixture
async def database(gateways: Gateways) -> AsyncIterator[Database]:
    database = Database(gateways.database_url)
    yield database
    await database.close()


async def kept(database: Database) -> int:
    async with database.begin() as connection:
        return (await connection.execute(select(func.count()).select_from(stored.answers))).scalar_one()


def drawn(backend: FakeBackend) -> list[tuple[str, int, str]]:
    """What the jobs were, with all that is random about them."""
    return [(job.id, job.seed, job.infotext) for job in backend.jobs]


async def test_a_repeat_is_answered_the_same_and_draws_nothing(here: Gateway, there: Gateway) -> None:
    here.backend.released.set()
    first = await here.post()
    assert first.status_code == 200
    assert "idempotent-replayed" not in first.headers
    for gateway in (here, there):
        again = await gateway.post()
        assert again.status_code == 200
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        for header in ("content-type", "content-length", "x-task-id"):
            assert again.headers[header] == first.headers[header]
        assert again.headers.get_list("x-request-id") != first.headers.get_list("x-request-id")
        assert len(again.headers.get_list("x-process-time")) == 1
    assert len(here.backend.jobs) == 2
    assert there.backend.jobs == []


async def test_a_repeat_waits_for_the_answer_that_is_being_made(here: Gateway, there: Gateway) -> None:
    first = asyncio.create_task(here.post())
    await here.backend.started.wait()
    repeats = [asyncio.create_task(gateway.post()) for gateway in (here, there)]
    await asyncio.sleep(0.2)
    assert not any(each.done() for each in repeats)
    here.backend.released.set()
    answers = await asyncio.gather(first, *repeats)
    assert len({answer.content for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", "true"]
    assert len(here.backend.jobs + there.backend.jobs) == 2


async def test_a_repeat_that_waits_too_long_is_told_to_come_again(gateways: Gateways) -> None:
    here, there = await gateways.start(), await gateways.start(limits=Limits(deadline_seconds=0.2))
    first = asyncio.create_task(here.post())
    await here.backend.started.wait()
    answer = await there.post()
    assert answer.status_code == 409
    assert answer.headers["retry-after"] == "5"
    assert list(answer.json()) == ["error", "detail", "body", "errors"]
    here.backend.released.set()
    assert (await first).status_code == 200


@pytest.mark.parametrize(
    ("body", "path"), [({**BODY, "steps": 3}, PATH), (BODY, f"/v1{PATH}"), (BODY, f"{PATH}?x=1")]
)
async def test_another_request_with_the_key_is_refused(
    here: Gateway, there: Gateway, body: dict[str, Any], path: str
) -> None:
    here.backend.released.set()
    await here.post()
    answer = await there.post(body, path)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("Idempotency-Key: '6c1e7d0e")
    assert answer.headers["x-should-retry"] == "false"
    assert there.backend.jobs == []


@pytest.mark.parametrize("name", [b"", b"x" * 256, "é".encode(), b"\xff", b"a\x01b", b" a"])
async def test_a_key_that_is_none_is_refused_unread(gateways: Gateways, name: bytes) -> None:
    here = await gateways.start()
    headers = [(b"x-api-key", b"mia"), (b"idempotency-key", name), (b"content-length", b"2")]
    assert await status_of(here, headers) == 400


async def test_one_key_is_allowed(here: Gateway) -> None:
    headers = [(b"x-api-key", b"mia"), (b"idempotency-key", b"a"), (b"idempotency-key", b"a")]
    assert await status_of(here, headers) == 400


async def status_of(gateway: Gateway, headers: list[tuple[bytes, bytes]]) -> int:
    """Of a POST with headers that no client library would send; its body must not be read."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("read")

    async def send(message: Message) -> None:
        sent.append(message)

    transport = gateway.client._transport
    assert isinstance(transport, httpx2.ASGITransport)
    scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": headers}
    await transport.app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


@pytest.mark.parametrize("name", ["x" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a b", "~"])
async def test_other_keys_are_taken(here: Gateway, name: str) -> None:
    here.backend.released.set()
    for replayed in (None, "true"):
        answer = await here.post(**{"idempotency-key": name})
        assert answer.headers.get("idempotent-replayed") == replayed


async def test_each_caller_has_its_own_keys(gateways: Gateways) -> None:
    mia, tom = await gateways.start("mia"), await gateways.start("tom")
    for gateway in (mia, tom):
        gateway.backend.released.set()
        assert (await gateway.post({**BODY, "seed": len(gateways.folder.parts)})).status_code == 200
        assert len(gateway.backend.jobs) == 2


@pytest.mark.parametrize(
    "failure",
    [
        Overloaded("full", 1.0),
        Unavailable("none", 1.0),
        DeadlineExceeded("late"),
        JobAborted("aborted"),
        JobFailed("failed"),
        RuntimeError("unforeseen"),
    ],
)
async def test_what_failed_is_not_kept_and_can_be_tried_again(
    here: Gateway, there: Gateway, database: Database, failure: Exception
) -> None:
    here.backend.fail = failure
    here.backend.released.set()
    with suppress(RuntimeError):
        assert (await here.post()).status_code in (409, 429, 500, 503, 504)
    assert await kept(database) == 0
    there.backend.released.set()
    answer = await there.post()
    assert answer.status_code == 200
    assert "idempotent-replayed" not in answer.headers


async def test_a_body_that_was_wrong_can_be_sent_corrected(here: Gateway) -> None:
    here.backend.released.set()
    assert (await here.post({"steps": 0})).status_code == 422
    assert (await here.post({"steps": 1})).status_code == 200


async def test_a_repeat_that_waited_for_a_failure_tries_itself(here: Gateway, there: Gateway) -> None:
    first = asyncio.create_task(here.post())
    await here.backend.started.wait()
    repeat = asyncio.create_task(there.post())
    there.backend.released.set()
    await asyncio.sleep(0.1)
    assert there.backend.jobs == []
    here.backend.fail = JobFailed("failed")
    here.backend.released.set()
    assert (await first).status_code == 500
    assert (await repeat).status_code == 200
    assert len(there.backend.jobs) == 2


async def test_a_client_that_leaves_does_not_end_what_it_began(here: Gateway, there: Gateway) -> None:
    first = asyncio.create_task(here.post())
    await here.backend.started.wait()
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    repeat = asyncio.create_task(there.post())
    await asyncio.sleep(0.1)
    assert here.backend.aborted == 0
    here.backend.released.set()
    answer = await repeat
    assert answer.status_code == 200
    assert answer.headers["idempotent-replayed"] == "true"
    assert there.backend.jobs == []


async def test_a_failure_that_nobody_waits_for_is_logged(
    here: Gateway, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    first = asyncio.create_task(here.post())
    await here.backend.started.wait()
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    here.backend.fail = RuntimeError("unforeseen")
    here.backend.released.set()
    await here.post()
    assert "a request failed whose client had left" in caplog.text
    assert "unforeseen" in caplog.text


async def test_what_a_dead_gateway_began_is_drawn_with_the_same_randomness(
    here: Gateway, there: Gateway, database: Database
) -> None:
    first = asyncio.create_task(here.post())
    await here.backend.started.wait()
    async with database.begin() as connection:  # what it is like when no heartbeat came for a lease
        await connection.execute(update(stored.answers).values(lease=0.0))
    there.backend.released.set()
    answer = await there.post()
    assert answer.status_code == 200
    assert "idempotent-replayed" not in answer.headers
    assert drawn(there.backend) == drawn(here.backend)
    assert len({job.seed for job in there.backend.jobs}) == 2
    here.backend.released.set()
    late = await first
    assert late.json() == answer.json()
    info = json.loads(late.json()["info"])
    assert info["job_timestamp"] == json.loads(answer.json()["info"])["job_timestamp"]
    assert (await here.post()).content == answer.content


async def test_two_requests_differ_in_their_randomness(here: Gateway) -> None:
    here.backend.released.set()
    for name in ("a", "b"):
        await here.post({}, **{"idempotency-key": name})
    assert len({job.seed for job in here.backend.jobs}) == 2


async def test_a_gateway_that_stops_hands_over_at_once(here: Gateway, there: Gateway) -> None:
    first = asyncio.create_task(here.post())
    await here.backend.started.wait()
    first.cancel()
    there.backend.released.set()
    await here.stop()
    assert here.backend.aborted == 2
    answer = await asyncio.wait_for(there.post(), stored.LEASE_SECONDS / 3)
    assert answer.status_code == 200
    assert drawn(there.backend) == drawn(here.backend)


async def test_a_gateway_is_heard_of_while_it_draws(
    gateways: Gateways, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(stored, "TIDYING_SECONDS", 0.04)
    here = await gateways.start(answers_seconds=0.05)
    first = asyncio.create_task(here.post())
    await here.backend.started.wait()

    async def lease() -> float:
        async with database.begin() as connection:
            return float((await connection.execute(select(stored.answers.c.lease))).scalar_one())

    began = await lease()
    await asyncio.sleep(0.2)
    assert await lease() > began
    here.backend.released.set()
    assert (await first).status_code == 200
    await asyncio.sleep(0.2)
    assert await kept(database) == 0  # its time is over


async def test_without_a_key_nothing_is_kept(here: Gateway, database: Database) -> None:
    here.backend.released.set()
    for _ in range(2):
        assert (await here.client.post(PATH, json=BODY)).status_code == 200
    assert (await here.client.get("/sdapi/v1/options", headers=NAME)).status_code == 200
    assert len(here.backend.jobs) == 4
    assert await kept(database) == 0


async def test_every_post_has_it(here: Gateway) -> None:
    path = "/sdapi/v1/options"
    first = await here.post({"n_rows": 3}, path)
    await here.client.post(path, json={"n_rows": 4})
    again = await here.post({"n_rows": 3}, path)
    assert (first.text, again.text) == ("null", "null")
    assert again.headers["idempotent-replayed"] == "true"
    assert (await here.client.get(path)).json()["n_rows"] == 4.0


async def test_a_wrong_api_key_sees_no_answer(here: Gateway) -> None:
    here.backend.released.set()
    await here.post()
    assert (await here.post(**{"x-api-key": "wrong"})).status_code == 401


async def test_a_body_over_the_limit_is_refused(gateways: Gateways) -> None:
    here = await gateways.start(limits=Limits(max_body_bytes=1024))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 512

    for content in (b" " * 1025, chunks()):
        answer = await here.client.post(PATH, content=content, headers=NAME)
        assert answer.status_code == 413
        assert "1024 bytes" in answer.json()["detail"]


async def test_without_its_database_it_is_unavailable(tmp_path: Path) -> None:
    app = build_app(FakeBackend(), Settings(auth="off", database=f"sqlite:///{tmp_path}"))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post(PATH, json={}, headers=NAME)
    await asyncio.sleep(0.05)  # aiosqlite's thread tells this loop that it has ended
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
