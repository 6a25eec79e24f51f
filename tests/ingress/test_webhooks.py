import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretBytes
from sqlalchemy import select

from engine.protocol import JobFailed
from ingress import orders
from ingress.deps import Service
from ingress.errors import InvalidRequest, described
from ingress.outbound import Outbound
from ingress.store.deliveries import deliveries
from ingress.webhooks import MAX_AGE, PAUSES, Courier, checked_webhook, pause, signed
from tests.ingress.fakes import FakeBackend, Time
from tests.ingress.gateways import accepted, found, service_of, settings_in, until
from tests.ingress.receiver import LOOPBACK, receiver

SECRET = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def service(tmp_path: Path, time: Time) -> AsyncIterator[Service]:
    settings = settings_in(tmp_path, webhook_secret=SecretBytes(SECRET), webhook_networks=LOOPBACK)
    service = service_of(FakeBackend(), settings, time.now)
    yield service
    await service.database.close()


@pytest.fixture
async def courier(service: Service, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr("ingress.webhooks.POLL_SECONDS", 0.01)
    running = asyncio.create_task(Courier(service, Outbound(LOOPBACK)).run())
    yield
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def ended(service: Service, port: int) -> str:
    """An order that has failed, to be told to that port."""
    id = await accepted(service, webhook=f"http://127.0.0.1:{port}/hook", prompt="x")
    claimed = await service.orders.claim()
    assert claimed is not None
    await service.orders.finish(claimed.claim, "failed", error=described(JobFailed("why")))
    return id


async def waiting(service: Service) -> list[Any]:
    async with service.database.begin() as connection:
        return list((await connection.execute(select(deliveries))).all())


async def until_told(service: Service) -> None:
    async def nothing_waits() -> bool:
        return not await waiting(service)

    await until(nothing_waits)


def test_the_signature_is_the_specifications() -> None:
    """Its own example."""
    headers = signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', SECRET)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.usefixtures("courier")
async def test_the_end_of_an_order_is_told_as_it_can_be_looked_at(service: Service) -> None:
    async with receiver() as (port, seen):
        id = await ended(service, port)
        await until_told(service)
    [request] = seen
    head, _, body = request.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
    told = await orders.status(await found(service, id), service)
    assert json.loads(body) == told.model_dump()
    assert told.state == "failed"
    assert headers["content-type"] == "application/json"
    signature = signed(headers["webhook-id"], int(headers["webhook-timestamp"]), body, SECRET)
    sent = head.decode().split("webhook-signature: ")[1].split("\r\n")[0]
    assert sent == signature["webhook-signature"]
    assert abs(int(headers["webhook-timestamp"]) - service.now().timestamp()) < 10


@pytest.mark.usefixtures("courier")
async def test_it_is_told_again_until_it_is_taken_under_one_id(service: Service, time: Time) -> None:
    async with receiver(b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n") as (port, seen):
        await ended(service, port)
        await until(lambda: len(seen) == 1)
        await asyncio.sleep(0.1)
        assert len(seen) == 1
        for tries in range(2, 5):
            time.seconds += PAUSES[0] * 2**tries
            await until(lambda tries=tries: len(seen) == tries)  # type: ignore[misc]
            await asyncio.sleep(0.1)
            assert len(seen) == tries
    ids = {request.split(b"webhook-id: ")[1].split(b"\r\n")[0] for request in seen}
    bodies = {request.partition(b"\r\n\r\n")[2] for request in seen}
    assert len(ids) == len(bodies) == 1
    assert len(await waiting(service)) == 1


@pytest.mark.usefixtures("courier")
@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
)
async def test_who_takes_it_or_wants_no_more_is_left_alone(service: Service, answer: bytes) -> None:
    async with receiver(answer) as (port, seen):
        await ended(service, port)
        await until_told(service)
    assert len(seen) == 1


@pytest.mark.usefixtures("courier")
async def test_a_redirect_is_no_delivery(service: Service) -> None:
    async with receiver(b"HTTP/1.1 302 x\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n") as (port, seen):
        await ended(service, port)
        await until(lambda: seen)
        await asyncio.sleep(0.1)
    assert len(seen) == len(await waiting(service)) == 1


@pytest.mark.usefixtures("courier")
async def test_it_is_given_up_after_a_day(
    service: Service, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiver(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n") as (port, seen):
        id = await ended(service, port)
        await until(lambda: seen)
        await asyncio.sleep(0.1)
        time.seconds += MAX_AGE + 1
        with caplog.at_level(logging.WARNING):
            await until_told(service)
    assert f"the webhook of job {id} is given up: it answers 503" in caplog.text


async def test_an_internal_address_behind_a_name_is_never_posted_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_in(tmp_path / "other", webhook_secret=SecretBytes(SECRET))
    service = service_of(FakeBackend(), settings)
    async with receiver() as (port, seen):
        webhook = checked_webhook(f"http://localhost:{port}/", settings)
        await service.orders.abort(await accepted(service, webhook=webhook, prompt="x"), "a")
        running = asyncio.create_task(Courier(service, Outbound(())).run())
        with caplog.at_level(logging.INFO):
            await until(lambda: "is not a public address" in caplog.text)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert seen == []
    assert len(await waiting(service)) == 1
    await service.database.close()


def test_pauses_double_up_to_an_hour_and_differ() -> None:
    for tries, seconds in ((1, 5), (2, 10), (5, 80), (11, 3600), (10_000, 3600)):
        pauses = [pause(tries) for _ in range(50)]
        assert min(pauses) >= seconds
        assert max(pauses) <= 1.5 * seconds
        assert len(set(pauses)) > 40
    assert sum(PAUSES[0] * 2**tries for tries in range(10)) > 3600


def test_a_webhook_needs_a_secret_to_sign_it_with(tmp_path: Path) -> None:
    without = settings_in(tmp_path)
    with pytest.raises(InvalidRequest, match=r"^webhook: not possible here, as no secret"):
        checked_webhook("https://example.com/", without)
    assert checked_webhook(None, without) is None
    assert checked_webhook("", without) is None
