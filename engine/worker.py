"""An engine in a thread of its own, awaited from asyncio: the only place where two threads meet."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from engine import codec
from engine.engine import NOT_BEGUN, Engine, Finished, Row
from engine.enlargement import Given
from engine.images import Picture
from engine.infotext import completed
from engine.ops import Estimate, Evaluate, Operation
from engine.prepared import Prepared, is_quick
from engine.preview import Preview, Previews
from engine.protocol import (
    AtelierError,
    Enlargement,
    Interrupted,
    Job,
    JobAborted,
    JobProgress,
    JobResult,
    Timings,
    Unavailable,
)
from engine.registry import Registry

logger = logging.getLogger(__name__)

IDLE_BEAT_SECONDS = 0.5
PREPARING = 16
"""Jobs at a time for which something is read, loaded or waited for."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """A row to be: its job, and how to answer it from the engine's thread.

    `row` is None before the engine has it, and stays when it has left. `answered` is the engine thread's.
    """

    job: Job | Enlargement
    arrived: float
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Finished]"
    row: Row | None = None
    answered: bool = False

    @property
    def estimate(self) -> Estimate | None:
        operation = self.row.operation if self.row else None
        return operation.estimate if isinstance(operation, Evaluate) else None

    def progress(self, preview: Preview) -> JobProgress:
        row = self.row
        return JobProgress(
            job_id=self.job.id,
            done=row.evaluations if row else 0,
            total=row.total if row else _steps(self.job),
            running=row is not None and row.started is not None,
            preview=preview.jpeg,
            preview_id=preview.id,
        )

    def answer(self, settle: Callable[["asyncio.Future[Finished]"], None]) -> None:
        self.answered = True

        def deliver() -> None:
            if not self.future.done():
                settle(self.future)

        try:
            self.loop.call_soon_threadsafe(deliver)
        except RuntimeError:
            logger.info("job %s finished after its event loop had closed", self.job.id)

    def fail(self, error: Exception) -> None:
        self.answer(lambda future: future.set_exception(error))


class Worker:
    """`await worker.run(job)` from any event loop; start and stop it once.

    `registry` is where jobs' needs are looked up; unless given, it has the engine's checkpoint alone.
    `cpu_threads` is how many the engine computes with on a CPU; else as many as torch takes. `warm_up` is run
    before anything else, in the thread that will compute: compiled code is for that alone.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry | None = None,
        *,
        png_threads: int = 2,
        cpu_threads: int | None = None,
        warm_up: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._registry = registry or Registry(engine.checkpoint)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._calls: dict[_Ticket, None] = {}
        self._rows: dict[int, _Ticket] = {}
        self._cpu_threads = cpu_threads
        self._codec = ThreadPoolExecutor(png_threads, thread_name_prefix="png")
        self._previews = Previews(self._codec, self._ask)
        self._preparing = ThreadPoolExecutor(PREPARING, thread_name_prefix="prepare")
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._beat = time.monotonic()
        self._stopping = threading.Event()
        self._ended = False
        self._warm_up = warm_up
        self._warm: Future[None] = Future()

    def start(self) -> None:
        """Returns when it is warm. Raises what `warm_up` raises."""
        self._thread.start()
        self._warm.result()

    async def run(self, job: Job | Enlargement) -> JobResult:
        """Make one picture. Cancelling the call drops the row at the next step.

        Raises InvalidJob, JobFailed and its kinds; Interrupted; Unavailable if the engine's thread has ended.
        """
        arrived = time.monotonic()
        if isinstance(job, Enlargement):
            return await self._enlarge(job, arrived)
        return await self._draw(job, arrived)

    async def _draw(self, job: Job, arrived: float) -> JobResult:
        with self._called(job, arrived) as ticket:
            prepared = await self._prepared(job, ticket)
            picture, row = await self._made(ticket, partial(self._engine.add, job, prepared, arrived))
            began = time.monotonic()
            text = completed(job.infotext, _known_here(prepared))
            file = await ticket.loop.run_in_executor(self._codec, _finished, picture, prepared, job, text)
            return _result(job, row, file, time.monotonic() - began, text, prepared)

    async def _enlarge(self, job: Enlargement, arrived: float) -> JobResult:
        """What it takes besides networks may take seconds: the codec's threads are for others' pictures."""
        loop = asyncio.get_running_loop()
        given = await loop.run_in_executor(self._preparing, Given.of, job, self._registry.upscalers)
        ready = time.monotonic()
        made = []
        for program in given.programs():
            with self._called(job, arrived) as ticket:
                made.append(await self._made(ticket, partial(self._engine.admit, job, program, arrived)))
        began = time.monotonic()
        pictures = [picture for picture, _ in made]
        file = await loop.run_in_executor(self._preparing, given.finished, pictures)
        done = time.monotonic()
        timings = Timings(
            wait=(_started(made[0][1]) if made else ready) - arrived,
            encode=0.0,
            denoise=0.0,
            decode=0.0,
            write=done - began,
            total=done - arrived,
        )
        return JobResult(job_id=job.id, image=file, timings=timings)

    @contextmanager
    def _called(self, job: Job | Enlargement, arrived: float) -> Iterator[_Ticket]:
        loop = asyncio.get_running_loop()
        ticket = _Ticket(job, arrived, loop, loop.create_future())
        self._calls[ticket] = None
        try:
            if self._ended or not self._thread.is_alive():
                raise Unavailable("the replica's engine has stopped", 1.0)
            yield ticket
        finally:
            del self._calls[ticket]

    async def _made(self, ticket: _Ticket, admit: Callable[[], int]) -> tuple[Picture, Row]:
        """The picture of a row that `admit` begins, in the engine's thread."""
        self._inbox.put(partial(self._add, ticket, admit))
        try:
            done = await ticket.future
        except asyncio.CancelledError:
            self._inbox.put(partial(self._abort, ticket))
            raise
        if isinstance(done.outcome, AtelierError):
            raise done.outcome
        return done.outcome, done.row

    async def _prepared(self, job: Job, ticket: _Ticket) -> Prepared:
        """In a thread of its own where something is to be read or loaded; an interrupt does not wait."""
        if is_quick(job):
            return Prepared.of(job, self._registry)
        preparing = ticket.loop.run_in_executor(self._preparing, Prepared.of, job, self._registry)
        either: set[asyncio.Future[Any]] = {preparing, ticket.future}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if ticket.future.done():
                ticket.future.result()  # an error: there is no row yet
            return await preparing
        finally:
            preparing.cancel()

    def progress(self) -> list[JobProgress]:
        """Of all jobs there are, in the order in which they came. Any thread may ask, as often as it likes.

        Sees to the previews too: who wants them asks from time to time.
        """
        calls = list(self._calls)
        if self.alive:
            estimates = {call.job.id: latest for call in calls if (latest := call.estimate)}
            self._previews.refresh(estimates)
        return [call.progress(self._previews.latest(call.job.id)) for call in calls]

    def interrupt(self, job_ids: Collection[str]) -> None:
        """Have jobs finish before the next step with what there is of their pictures, from any thread.

        `run` answers with that, and raises Interrupted for a job of which there is nothing yet. Unknown ones
        are ignored, and those that are at their last operation finish as they would.
        """
        self._inbox.put(partial(self._interrupt, frozenset(job_ids)))

    def watch(self, job_ids: Collection[str]) -> None:
        """From now on there are previews of these jobs, and of no others. Any thread may say so."""
        self._previews.watch(job_ids)

    def heartbeat_age(self) -> float:
        """Seconds since the engine's thread last came round; being idle counts as coming round."""
        return time.monotonic() - self._beat

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        """Jobs (running, waiting) in the engine now."""
        running = self._engine.running
        return running, len(self._engine) - running

    async def stop(self) -> None:
        """Abort what is left and end the threads."""
        self._stopping.set()
        await asyncio.to_thread(self._thread.join)
        self._codec.shutdown(wait=False)
        self._preparing.shutdown(wait=False)

    def _loop(self) -> None:
        if self._cpu_threads:
            torch.set_num_threads(self._cpu_threads)  # of this thread's own team: OpenMP's, not the process's
        try:
            if self._warm_up:
                self._warm_up()
        except Exception as error:
            self._warm.set_exception(error)
            return
        self._beat = time.monotonic()
        self._warm.set_result(None)
        try:
            while not self._stopping.is_set():
                self._beat = time.monotonic()
                self._take_messages()
                for done in self._engine.step():
                    self._deliver(done)
        except Exception as error:
            logger.exception("the engine's thread ends")
            self._fail_all(Unavailable(f"the replica's engine failed ({type(error).__name__})", 1.0))
        else:
            self._fail_all(JobAborted("the replica is shutting down"))

    def _take_messages(self) -> None:
        """Handle every message there is; wait for one only while the engine has nothing to do."""
        try:
            wait = not len(self._engine)
            self._inbox.get(block=wait, timeout=IDLE_BEAT_SECONDS if wait else None)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    def _add(self, ticket: _Ticket, admit: Callable[[], int]) -> None:
        if ticket.answered:
            return
        try:
            row = admit()
        except AtelierError as error:
            ticket.fail(error)
        else:
            ticket.row = self._engine.row(row)
            self._rows[row] = ticket

    def _abort(self, ticket: _Ticket) -> None:
        if ticket.row is not None:
            self._engine.abort(ticket.row.id)
            self._rows.pop(ticket.row.id, None)

    def _interrupt(self, job_ids: frozenset[str]) -> None:
        for ticket in list(self._calls):
            if ticket.job.id not in job_ids:
                continue
            if ticket.row is None:
                ticket.fail(Interrupted(NOT_BEGUN))
            elif left := self._engine.interrupt(ticket.row.id):
                self._deliver(left)

    def _ask(self, operation: Operation, answered: Callable[[object], None]) -> None:
        """Of the engine's thread, which hands the answer on there."""
        self._inbox.put(lambda: answered(self._engine.answer(operation)))

    def _deliver(self, done: Finished) -> None:
        ticket = self._rows.pop(done.row.id)
        ticket.answer(lambda future: future.set_result(done))

    def _fail_all(self, error: Exception) -> None:
        self._ended = True  # first: who calls `run` from now on is not among the calls, or sees this
        for ticket in list(self._calls):
            ticket.fail(error)
        self._rows.clear()


def _known_here(prepared: Prepared) -> dict[str, str]:
    """Pairs of the infotext."""
    return {
        "VAE hash": prepared.vae.hash if prepared.vae else "",
        "VAE": prepared.vae.name if prepared.vae else "",
        "Lora hashes": prepared.lora_hashes,
        "TI hashes": prepared.embeddings,
        "Quality": prepared.first[0].checkpoint.quality.shown,
    }


def _steps(job: Job | Enlargement) -> int:
    """About as many evaluations as it will need."""
    if isinstance(job, Enlargement):
        return 0
    return job.steps + (job.hires.steps if job.hires else 0)


def _finished(picture: Picture, prepared: Prepared, job: Job, text: str) -> bytes:
    whole = prepared.canvas.finish(picture) if prepared.canvas else picture
    return codec.written(whole, job.file_format, {"parameters": text})


def _started(row: Row) -> float:
    return row.added if row.started is None else row.started


def _result(
    job: Job, row: Row, file: bytes, write_seconds: float, text: str, prepared: Prepared
) -> JobResult:
    spent = row.spent
    return JobResult(
        job_id=job.id,
        image=file,
        seed=job.seed,
        evaluations=row.evaluations,
        infotext=text,
        lora_hashes=prepared.lora_hashes,
        embedding_hashes=prepared.embeddings,
        vae=prepared.vae.name if prepared.vae else "",
        vae_hash=prepared.vae.hash if prepared.vae else "",
        warnings=prepared.warnings,
        inpainting=prepared.first[0].checkpoint.kind.inpainting,
        quality=prepared.first[0].checkpoint.quality.shown,
        interrupted=row.interrupted,
        timings=Timings(
            wait=_started(row) - row.added,
            encode=spent.get("encode", 0.0),
            denoise=spent.get("evaluate", 0.0),
            decode=spent.get("decode", 0.0),
            write=write_seconds,
            total=time.monotonic() - row.added,
        ),
    )
