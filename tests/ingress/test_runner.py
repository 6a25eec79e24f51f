import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from engine.protocol import (
    DeadlineExceeded,
    Enlargement,
    InvalidJob,
    Job,
    JobAborted,
    JobFailed,
    JobResult,
    Overloaded,
    Unavailable,
)
from ingress import orders
from ingress.deps import Service
from ingress.runner import Runner
from ingress.store.database import Clock
from tests.ingress.fakes import FakeBackend, Time
from tests.ingress.gateways import (
    HeldBackend,
    accepted,
    found,
    service_of,
    settings_in,
    until,
    until_state,
)

Gateway = Callable[..., Service]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.runner.PAUSES", (0.02, 0.1))
    monkeypatch.setattr("ingress.runner.POLL_SECONDS", 0.02)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """Makes another gateway over the same files, as yet without a runner."""
    async with AsyncExitStack() as stack:

        def make(backend: FakeBackend, now: Any = Clock, **changes: Any) -> Service:
            service = service_of(backend, settings_in(tmp_path, **changes), now)
            stack.push_async_callback(service.database.close)
            return service

        yield make


@pytest.fixture
async def start() -> AsyncIterator[Callable[[Service], "asyncio.Task[None]"]]:
    """Starts a runner. Cancelled is killed: it gives nothing back."""
    tasks: list[asyncio.Task[None]] = []

    def run(service: Service) -> "asyncio.Task[None]":
        tasks.append(asyncio.create_task(Runner(service).run()))
        return tasks[-1]

    yield run
    await killed(*tasks)


async def killed(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


Start = Callable[[Service], "asyncio.Task[None]"]


async def test_an_order_is_drawn_and_its_pictures_are_kept(gateway: Gateway, start: Start) -> None:
    service = gateway(FakeBackend())
    start(service)
    id = await accepted(service, prompt="x", batch_size=2, seed=5)
    done = await until_state(service, id, "done")
    told = await orders.status(done, service)
    assert told.result is not None
    assert told.result.images == [f"/v1/jobs/{id}/results/{number}" for number in range(2)]
    assert told.result.parameters["seed"] == 5
    assert '"all_seeds": [5, 6]' in told.result.info
    assert done.claim is not None
    assert (await service.results.read(done.claim, 1) or b"").startswith(b"\x89PNG")


async def test_a_killed_gateways_order_is_finished_by_another_from_the_same_seeds(
    gateway: Gateway, start: Start, time: Time
) -> None:
    first, second = HeldBackend(), FakeBackend()
    dying, other = gateway(first, time.now), gateway(second, time.now)
    id = await accepted(dying, prompt="x", batch_size=2, subseed_strength=0.1)
    runner = start(dying)
    await until(lambda: len(first.jobs) == 2)
    await killed(runner)
    start(other)
    await asyncio.sleep(0.2)
    assert (await found(other, id)).state == "running"
    assert second.jobs == []
    time.seconds += 16
    done = await until_state(other, id, "done")
    assert second.jobs == first.jobs
    assert await other.results.kept() == {done.claim}


async def test_who_lost_an_order_overwrites_nothing(gateway: Gateway, start: Start, time: Time) -> None:
    slow, quick = HeldBackend(), FakeBackend()
    late, other = gateway(slow, time.now, max_running=1), gateway(quick, time.now)
    id = await accepted(late, prompt="x")
    late.orders.renew = _forgetful  # type: ignore[method-assign]
    start(late)
    await until(lambda: slow.jobs)
    time.seconds += 16
    start(other)
    done = await until_state(other, id, "done")
    slow.go.set()
    await until(lambda: not slow.running)
    await asyncio.sleep(0.2)
    assert await found(late, id) == done
    assert await late.results.kept() == {done.claim}


async def _forgetful(claims: Sequence[str]) -> set[str]:
    """A gateway that hangs does not renew, nor does it see that it has lost anything."""
    return set(claims)


async def test_orders_are_each_run_once_by_many_gateways(gateway: Gateway, start: Start) -> None:
    backends = [FakeBackend() for _ in range(3)]
    services = [gateway(backend) for backend in backends]
    ids = [await accepted(services[0], prompt="x", seed=number) for number in range(20)]
    for service in services:
        start(service)
    for id in ids:
        await until_state(services[0], id, "done")
    drawn = [job.seed for backend in backends for job in backend.jobs]
    assert sorted(drawn) == list(range(20))


async def test_an_orderly_stop_hands_orders_back_at_once(gateway: Gateway, start: Start, time: Time) -> None:
    held, other = HeldBackend(), FakeBackend()
    stopping, going = gateway(held, time.now, max_losses=1), gateway(other, time.now, max_losses=1)
    id = await accepted(stopping, prompt="x")
    runner = Runner(stopping)
    running = asyncio.create_task(runner.run())
    await until(lambda: held.jobs)
    await killed(running)
    assert held.aborted == held.jobs
    await runner.release()
    start(going)
    await until_state(going, id, "done")
    assert other.jobs == held.jobs


async def test_an_aborted_order_stops_in_whichever_gateway_it_runs(gateway: Gateway, start: Start) -> None:
    backend = HeldBackend()
    running, asked = gateway(backend), gateway(FakeBackend())
    start(running)
    id = await accepted(running, prompt="x", batch_size=2)
    await until(lambda: len(backend.jobs) == 2)
    await asked.orders.abort(id, "a")
    await until(lambda: len(backend.aborted) == 2, seconds=1)
    assert (await found(asked, id)).state == "aborted"
    backend.go.set()
    again = await accepted(running, prompt="y")
    await until_state(running, again, "done")


async def test_a_gateway_runs_so_many_at_a_time_and_the_keys_in_turn(gateway: Gateway, start: Start) -> None:
    backend = HeldBackend()
    service = gateway(backend, max_running=2)
    for number in range(4):
        await accepted(service, "a", prompt="x", seed=number)
    await accepted(service, "b", prompt="x", seed=9)
    start(service)
    await until(lambda: len(backend.jobs) == 2)
    await asyncio.sleep(0.1)
    assert sorted(job.seed for job in backend.jobs) == [0, 9]
    backend.go.set()
    await until(lambda: len(backend.jobs) == 5)
    assert backend.most == 2


class Flaky(FakeBackend):
    """Fails with each of these once, then works."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)

    async def run(self, job: Job | Enlargement) -> JobResult:
        assert isinstance(job, Job)
        if self.errors:
            self.jobs.append(job)
            raise self.errors.pop(0)
        return await super().run(job)


async def test_an_order_waits_for_its_checkpoint_and_keeps_its_seeds(gateway: Gateway, start: Start) -> None:
    backend = Flaky(Unavailable("restarting", 0.01), Overloaded("full", 0.01), DeadlineExceeded("too late"))
    service = gateway(backend)
    start(service)
    id = await accepted(service, prompt="x")
    done = await until_state(service, id, "done", "failed")
    assert done.state == "done"
    assert len(backend.jobs) == 4
    assert len(set(backend.jobs)) == 1


async def test_after_a_restart_orders_wait_until_checkpoints_are_on_offer(
    gateway: Gateway, start: Start
) -> None:
    backend = FakeBackend()
    offered, backend.offered = backend.offered, ()
    service = gateway(backend)
    id = await accepted(service, prompt="x")
    start(service)
    await asyncio.sleep(0.2)
    assert (await found(service, id)).state in ("queued", "running")
    backend.offered = offered
    await until_state(service, id, "done")


async def test_an_order_that_waited_too_long_fails_with_the_last_reason(
    gateway: Gateway, start: Start
) -> None:
    service = gateway(FakeBackend(Unavailable("restarting", 0.01)), retry_seconds=0.3)
    start(service)
    failed = await until_state(service, await accepted(service, prompt="x"), "failed")
    assert "restarting" in str(failed.error)


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (JobFailed("it failed"), "failed", "it failed"),
        (InvalidJob("no such LoRA"), "failed", "no such LoRA"),
        (JobAborted("interrupted"), "aborted", None),
        (ZeroDivisionError("/home/secret"), "failed", "Internal server error"),
    ],
)
async def test_a_failure_that_is_the_orders_own_is_its_end(
    gateway: Gateway,
    start: Start,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    state: str,
    said: str | None,
) -> None:
    backend = FakeBackend(error)
    service = gateway(backend)
    start(service)
    with caplog.at_level(logging.ERROR):
        ended = await until_state(service, await accepted(service, prompt="x"), "failed", "aborted", "done")
    assert ended.state == state
    assert (said or "None") in str(ended.error)
    assert "secret" not in str(ended.error)
    assert ("secret" in caplog.text) == isinstance(error, ZeroDivisionError)
    assert len(backend.jobs) == 1


async def test_pictures_that_cannot_be_kept_are_drawn_again(
    gateway: Gateway, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "results").write_text("in the way")
    service = gateway(FakeBackend())
    start(service)
    id = await accepted(service, prompt="x")
    await asyncio.sleep(0.1)
    assert (await found(service, id)).state in ("queued", "running")
    (tmp_path / "results").unlink()
    await until_state(service, id, "done")


async def test_a_database_that_is_away_for_a_while_ends_no_runner(
    gateway: Gateway, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = gateway(FakeBackend())
    claim, failures = service.orders.claim, [OperationalError("", {}, Exception("away"))] * 2

    async def claim_or_fail() -> Any:
        if failures:
            raise failures.pop()
        return await claim()

    monkeypatch.setattr(service.orders, "claim", claim_or_fail)
    id = await accepted(service, prompt="x")
    start(service)
    await until_state(service, id, "done")
    assert caplog.text.count("running orders failed and will be tried again") == 2
