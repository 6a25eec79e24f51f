"""The bridge between asyncio and the engine's thread."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
import torch
from PIL import Image

from engine.checkpoint import LoadedCheckpoint
from engine.engine import Engine, Finished
from engine.protocol import CheckpointError, InvalidJob, JobAborted, StepStats, Unavailable
from engine.worker import Worker
from tests.jobs import make_job


@pytest_asyncio.fixture
async def worker(checkpoint: LoadedCheckpoint) -> AsyncIterator[Worker]:
    worker = Worker(Engine(checkpoint))
    worker.start()
    yield worker
    await worker.stop()


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_job_comes_back_as_a_png_with_its_timings(worker: Worker) -> None:
    result = await worker.run(make_job(sampler="Heun", steps=4, infotext="hello\nSteps: 4"))
    image = Image.open(io.BytesIO(result.image))
    assert image.size == (64, 64)
    assert image.info["parameters"] == "hello\nSteps: 4"
    assert result.evaluations == 7
    t = result.timings
    parts = t.wait + t.encode + t.denoise + t.decode + t.write
    assert 0 < t.denoise < t.total
    assert parts == pytest.approx(t.total, rel=0.5)


async def test_concurrent_jobs_share_calls(checkpoint: LoadedCheckpoint) -> None:
    steps: list[StepStats] = []
    worker = Worker(Engine(checkpoint, on_step=steps.append))
    worker.start()
    results = await asyncio.gather(*(worker.run(make_job(id=str(i), seed=i, steps=20)) for i in range(6)))
    await worker.stop()
    assert [r.seed for r in results] == list(range(6))
    assert max(s.jobs for s in steps) == 6


async def test_wait_counts_the_step_that_ran_when_the_job_came(checkpoint: LoadedCheckpoint) -> None:
    in_step, go_on = threading.Event(), threading.Event()

    def hold(stats: StepStats) -> None:
        in_step.set()
        go_on.wait(20)

    worker = Worker(Engine(checkpoint, on_step=hold))
    worker.start()
    first = asyncio.create_task(worker.run(make_job(steps=2)))
    await asyncio.to_thread(in_step.wait, 20)
    late = asyncio.create_task(worker.run(make_job(id="late", steps=2)))
    await asyncio.sleep(0.2)
    go_on.set()
    assert (await late).timings.wait >= 0.2
    await first
    await worker.stop()


async def test_cancelled_call_frees_its_row(worker: Worker) -> None:
    call = asyncio.create_task(worker.run(make_job(steps=1000)))
    await until(lambda: worker.load == (1, 0))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: worker.load == (0, 0), 2)


async def test_call_cancelled_before_its_row_exists_leaves_nothing(worker: Worker) -> None:
    call = asyncio.create_task(worker.run(make_job(steps=1000)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0.1)
    await until(lambda: worker.load == (0, 0), 2)


async def test_invalid_job_is_answered_without_disturbing_others(worker: Worker) -> None:
    good = asyncio.create_task(worker.run(make_job()))
    with pytest.raises(InvalidJob, match="no such"):
        await worker.run(make_job(sampler="no such"))
    assert (await good).seed == 1


async def test_stop_answers_what_is_left(checkpoint: LoadedCheckpoint) -> None:
    worker = Worker(Engine(checkpoint))
    worker.start()
    call = asyncio.create_task(worker.run(make_job(steps=1000)))
    await until(lambda: worker.load[0] == 1)
    await worker.stop()
    with pytest.raises(JobAborted):
        await call
    with pytest.raises(Unavailable):
        await worker.run(make_job())


async def test_broken_engine_fails_its_jobs_as_unavailable_and_is_seen(checkpoint: LoadedCheckpoint) -> None:
    class Broken(Engine):
        def step(self) -> list[Finished]:
            if len(self):
                raise SystemError("device lost")
            return []

    worker = Worker(Broken(checkpoint))
    worker.start()
    with pytest.raises(Unavailable) as caught:
        await worker.run(make_job())
    assert "device lost" not in caught.value.message
    await until(lambda: not worker.alive, 5)
    await worker.stop()


async def test_heartbeat_stays_fresh_while_idle_and_ages_while_stuck(checkpoint: LoadedCheckpoint) -> None:
    stuck = threading.Event()

    class Stuck(Engine):
        def step(self) -> list[Finished]:
            if len(self):
                stuck.wait(5)
            return super().step()

    worker = Worker(Stuck(checkpoint))
    worker.start()
    await asyncio.sleep(0.8)
    assert worker.heartbeat_age() < 0.7
    call = asyncio.create_task(worker.run(make_job()))
    await until(lambda: worker.heartbeat_age() > 1)
    stuck.set()
    await call
    await worker.stop()


async def test_only_the_engines_own_thread_computes_with_more_threads(checkpoint: LoadedCheckpoint) -> None:
    """OpenMP has a team for each thread that computes, and they get into each other's way."""
    seen: list[int] = []
    before = torch.get_num_threads()
    engine = Engine(checkpoint, on_step=lambda stats: seen.append(torch.get_num_threads()))
    worker = Worker(engine, cpu_threads=before + 1)
    worker.start()
    await worker.run(make_job())
    await worker.stop()
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


async def test_warming_up_is_done_in_the_engines_thread_before_start_returns(
    checkpoint: LoadedCheckpoint,
) -> None:
    threads: list[str] = []
    worker = Worker(Engine(checkpoint), warm_up=lambda: threads.append(threading.current_thread().name))
    worker.start()
    assert threads == ["engine"]
    await worker.run(make_job())
    await worker.stop()


async def test_what_fails_while_warming_up_fails_the_start(checkpoint: LoadedCheckpoint) -> None:
    def fail() -> None:
        raise CheckpointError("attention: xformers is not installed")

    worker = Worker(Engine(checkpoint), warm_up=fail)
    with pytest.raises(CheckpointError, match="attention"):
        worker.start()
    await until(lambda: not worker.alive)
