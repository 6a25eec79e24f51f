"""The bridge between asyncio and the engine's thread."""

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image

from engine import preview
from engine.checkpoint import LoadedCheckpoint, load_checkpoint
from engine.companions import Companions
from engine.engine import Engine, Finished
from engine.ops import Operation
from engine.prepared import Prepared
from engine.protocol import (
    CheckpointError,
    Interrupted,
    InvalidJob,
    Job,
    JobAborted,
    JobProgress,
    Refiner,
    StepStats,
    Unavailable,
)
from engine.registry import Registry
from engine.worker import Worker
from tests.drawing import begun_with, enlarged, masked
from tests.jobs import make_job
from tests.pictures import scene
from tests.tiny import write_checkpoint


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


class Steps:
    """Ends each step of an engine when it may: `let` so many pass, and wait until the next one is held."""

    def __init__(self) -> None:
        self._pass = threading.Semaphore(0)
        self._held = threading.Semaphore(0)

    def __call__(self, stats: StepStats) -> None:
        self._held.release()
        assert self._pass.acquire(timeout=20)

    async def let(self, count: int) -> None:
        self._pass.release(count)
        await self.held(count)

    async def held(self, count: int = 1) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self._held.acquire, timeout=20)

    def let_all(self) -> None:
        self._pass.release(10_000)


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest_asyncio.fixture
async def held(checkpoint: LoadedCheckpoint, steps: Steps) -> AsyncIterator[Worker]:
    """Its steps are held."""
    worker = Worker(Engine(checkpoint, on_step=steps))
    worker.start()
    yield worker
    steps.let_all()
    await worker.stop()


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


def progress(job_id: str, done: int, total: int, *, running: bool = True) -> JobProgress:
    return JobProgress(job_id=job_id, done=done, total=total, running=running)


async def test_progress_is_of_all_jobs_in_the_order_in_which_they_came(held: Worker, steps: Steps) -> None:
    assert held.progress() == []
    first = asyncio.create_task(held.run(make_job(id="first", steps=5)))
    await steps.held()
    hires = enlarged(128, 128, steps=3)
    second = asyncio.create_task(held.run(make_job(id="second", hires=hires)))
    await until(lambda: len(held.progress()) == 2)
    assert held.progress() == [progress("first", 0, 5), progress("second", 0, 4 + 3, running=False)]
    await steps.let(4)
    assert [(each.job_id, each.total, each.running) for each in held.progress()] == [
        ("first", 5, True),
        ("second", 4 + 3, True),
    ]
    assert held.progress()[0].done >= 2
    steps.let_all()
    assert (await second).evaluations == 7
    assert (await first).evaluations == 5
    assert held.progress() == []


async def test_interrupted_job_comes_back_with_what_there_is_of_it(held: Worker, steps: Steps) -> None:
    call = asyncio.create_task(held.run(make_job(steps=900, infotext="hello\nSteps: 900")))
    other = asyncio.create_task(held.run(make_job(id="other", steps=8)))
    await steps.held()
    await steps.let(5)
    held.interrupt(["job", "unknown"])
    steps.let_all()
    result = await call
    assert result.interrupted
    assert result.evaluations < 8
    image = Image.open(io.BytesIO(result.image))
    assert image.size == (64, 64)
    assert image.info["parameters"] == result.infotext == "hello\nSteps: 900"
    whole = await other
    assert (whole.interrupted, whole.evaluations) == (False, 8)


async def test_an_interrupted_inpainting_is_pasted_back(held: Worker, steps: Steps) -> None:
    grey = Image.new("L", (64, 64))
    grey.paste(255, (16, 16, 48, 48))
    init = begun_with(scene(64, 64), masked(grey, only_masked=True), denoising_strength=1.0)
    call = asyncio.create_task(held.run(make_job(steps=9, init=init)))
    await steps.held()
    await steps.let(4)
    held.interrupt(["job"])
    steps.let_all()
    result = await call
    assert result.interrupted
    changed = (np.asarray(Image.open(io.BytesIO(result.image))) != np.asarray(scene(64, 64))).any(axis=2)
    assert changed[16:48, 16:48].mean() > 0.5
    changed[16:48, 16:48] = False
    assert not changed.any()


async def test_job_that_is_interrupted_before_it_began_is_aborted(held: Worker, steps: Steps) -> None:
    blocking = asyncio.create_task(held.run(make_job(id="blocking")))
    await steps.held()
    waiting = asyncio.create_task(held.run(make_job(id="waiting")))
    await until(lambda: len(held.progress()) == 2)
    held.interrupt(["waiting"])
    await steps.let(1)
    with pytest.raises(JobAborted, match="interrupted before it began"):
        await waiting
    assert [each.job_id for each in held.progress()] == ["blocking"]
    steps.let_all()
    assert (await blocking).evaluations == 4


@pytest.fixture
def loading(checkpoint: LoadedCheckpoint, tmp_path: Path) -> Iterator[tuple[Registry, threading.Event]]:
    """Where `other` is loaded only when the event is set."""
    go_on = threading.Event()

    def load(path: Path) -> LoadedCheckpoint:
        go_on.wait(20)
        return load_checkpoint(path, device="cpu")

    paths = {"other": write_checkpoint(tmp_path / "other.safetensors")}
    yield Registry(checkpoint, "demo", Companions(paths, load, max_bytes=2**30)), go_on
    go_on.set()


REFINED = Refiner(checkpoint="other", switch_at=0.5, by_timestep=False)


async def test_job_that_is_interrupted_while_it_is_prepared_does_not_wait_for_that(
    checkpoint: LoadedCheckpoint, loading: tuple[Registry, threading.Event]
) -> None:
    registry, go_on = loading
    worker = Worker(Engine(checkpoint), registry)
    worker.start()
    call = asyncio.create_task(worker.run(make_job(refiner=REFINED)))
    await until(lambda: worker.progress() == [progress("job", 0, 4, running=False)])
    worker.interrupt(["job"])
    with pytest.raises(Interrupted):
        await asyncio.wait_for(call, 5)
    assert worker.progress() == []
    go_on.set()
    assert (await worker.run(make_job(id="next", refiner=REFINED))).evaluations == 4
    await worker.stop()


async def test_job_that_is_interrupted_when_it_is_just_prepared_does_not_become_a_row(
    checkpoint: LoadedCheckpoint,
) -> None:
    class Interrupting(Worker):
        async def _prepared(self, job: Job, ticket: Any) -> Prepared:
            handled = threading.Event()
            self.interrupt(["job"])
            self._inbox.put(handled.set)
            assert handled.wait(5)
            return await super()._prepared(job, ticket)

    made: list[StepStats] = []
    worker = Interrupting(Engine(checkpoint, on_step=made.append))
    worker.start()
    with pytest.raises(Interrupted):
        await worker.run(make_job())
    await worker.stop()
    assert made == []


async def test_stop_answers_what_is_being_prepared(
    checkpoint: LoadedCheckpoint, loading: tuple[Registry, threading.Event]
) -> None:
    worker = Worker(Engine(checkpoint), loading[0])
    worker.start()
    call = asyncio.create_task(worker.run(make_job(refiner=REFINED)))
    await until(lambda: len(worker.progress()) == 1)
    await worker.stop()
    with pytest.raises(JobAborted):
        await asyncio.wait_for(call, 5)


async def test_nobody_who_asks_or_says_anything_waits_for_a_step(held: Worker, steps: Steps) -> None:
    call = asyncio.create_task(held.run(make_job()))
    await steps.held()
    began = time.monotonic()
    for _ in range(20):
        held.watch(["job"])
        held.interrupt(["another"])
        assert held.progress() == [progress("job", 0, 4)]
    assert time.monotonic() - began < 1
    steps.let_all()
    await call


class Alone(Engine):
    """Knows what it answered that no row had asked."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.answered: list[Operation] = []

    def answer(self, operation: Operation) -> object:
        self.answered.append(operation)
        return super().answer(operation)


async def test_there_are_previews_of_watched_jobs_alone(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "SECONDS", 0.0)
    engine = Alone(checkpoint)
    worker = Worker(engine)
    worker.start()

    def shown(job_id: str) -> JobProgress:
        return next(each for each in worker.progress() if each.job_id == job_id)

    jobs = [make_job(id=name, seed=i, width=96, steps=900) for i, name in enumerate(("one", "two"))]
    calls = [asyncio.create_task(worker.run(job)) for job in jobs]
    await until(lambda: len(worker.progress()) == 2 and shown("one").done > 0)
    assert engine.answered == []
    worker.watch(["one"])
    await until(lambda: shown("one").preview_id > 0)
    before = shown("one")
    await until(lambda: shown("one").preview_id > before.preview_id)
    assert Image.open(io.BytesIO(before.preview)).size == (12, 8)
    assert (shown("two").preview, shown("two").preview_id) == (b"", 0)
    worker.watch(["two"])
    await until(lambda: shown("two").preview_id > before.preview_id)
    assert shown("one").preview == b""
    assert len(engine.answered) == 1
    worker.interrupt(["one", "two"])
    assert all(result.interrupted for result in await asyncio.gather(*calls))
    await worker.stop()
