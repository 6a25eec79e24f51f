"""An engine in a thread of its own, awaited from asyncio: the only place where two threads meet."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from engine import codec
from engine.engine import Engine, Finished, Row
from engine.enlargement import Given
from engine.images import Picture
from engine.infotext import completed
from engine.prepared import Prepared, is_quick
from engine.protocol import AtelierError, Enlargement, Job, JobAborted, JobResult, Timings, Unavailable
from engine.registry import Registry

logger = logging.getLogger(__name__)

IDLE_BEAT_SECONDS = 0.5
PREPARING = 16
"""Jobs at a time for which something is read, loaded or waited for."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """A row to be: how to admit it, and how to answer it from the engine's thread."""

    job_id: str
    admit: Callable[[], int]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Finished]"
    row: int | None = None

    def answer(self, settle: Callable[["asyncio.Future[Finished]"], None]) -> None:
        def deliver() -> None:
            if not self.future.done():
                settle(self.future)

        try:
            self.loop.call_soon_threadsafe(deliver)
        except RuntimeError:
            logger.info("job %s finished after its event loop had closed", self.job_id)

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
        self._inbox: queue.SimpleQueue[tuple[str, _Ticket]] = queue.SimpleQueue()
        self._tickets: dict[int, _Ticket] = {}
        self._cpu_threads = cpu_threads
        self._codec = ThreadPoolExecutor(png_threads, thread_name_prefix="png")
        self._preparing = ThreadPoolExecutor(PREPARING, thread_name_prefix="prepare")
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._beat = time.monotonic()
        self._stopping = threading.Event()
        self._warm_up = warm_up
        self._warm: Future[None] = Future()

    def start(self) -> None:
        """Returns when it is warm. Raises what `warm_up` raises."""
        self._thread.start()
        self._warm.result()

    async def run(self, job: Job | Enlargement) -> JobResult:
        """Make one picture. Cancelling the call drops the row at the next step.

        Raises InvalidJob, JobFailed and its kinds; Unavailable if the engine's thread has ended.
        """
        if not self._thread.is_alive():
            raise Unavailable("the replica's engine has stopped", 1.0)
        arrived = time.monotonic()
        if isinstance(job, Enlargement):
            return await self._enlarge(job, arrived)
        return await self._draw(job, arrived)

    async def _draw(self, job: Job, arrived: float) -> JobResult:
        loop = asyncio.get_running_loop()
        prepared = await self._prepared(job)
        picture, row = await self._row(job.id, partial(self._engine.add, job, prepared, arrived))
        began = time.monotonic()
        text = completed(job.infotext, _known_here(prepared))
        file = await loop.run_in_executor(self._codec, _finished, picture, prepared, job, text)
        return _result(job, row, file, time.monotonic() - began, text, prepared)

    async def _enlarge(self, job: Enlargement, arrived: float) -> JobResult:
        """What it takes besides networks may take seconds: the codec's threads are for others' pictures."""
        loop = asyncio.get_running_loop()
        given = await loop.run_in_executor(self._preparing, Given.of, job, self._registry.upscalers)
        ready = time.monotonic()
        made = [
            await self._row(job.id, partial(self._engine.admit, job, program, arrived))
            for program in given.programs()
        ]
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

    async def _row(self, job_id: str, admit: Callable[[], int]) -> tuple[Picture, Row]:
        """The picture of a row that `admit` begins, in the engine's thread."""
        loop = asyncio.get_running_loop()
        ticket = _Ticket(job_id, admit, loop, loop.create_future())
        self._inbox.put(("add", ticket))
        try:
            done = await ticket.future
        except asyncio.CancelledError:
            self._inbox.put(("abort", ticket))
            raise
        if isinstance(done.outcome, AtelierError):
            raise done.outcome
        return done.outcome, done.row

    async def _prepared(self, job: Job) -> Prepared:
        """In a thread of its own where something has to be read or loaded."""
        if is_quick(job):
            return Prepared.of(job, self._registry)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._preparing, Prepared.of, job, self._registry)

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
            self._handle(*self._inbox.get(block=wait, timeout=IDLE_BEAT_SECONDS if wait else None))
            while True:
                self._handle(*self._inbox.get_nowait())
        except queue.Empty:
            return

    def _handle(self, message: str, ticket: _Ticket) -> None:
        if message == "abort":
            if ticket.row is not None:
                self._engine.abort(ticket.row)
                self._tickets.pop(ticket.row, None)
            return
        try:
            ticket.row = ticket.admit()
        except AtelierError as error:
            ticket.fail(error)
        else:
            self._tickets[ticket.row] = ticket

    def _deliver(self, done: Finished) -> None:
        ticket = self._tickets.pop(done.row.id)
        ticket.answer(lambda future: future.set_result(done))

    def _fail_all(self, error: Exception) -> None:
        while True:
            try:
                message, ticket = self._inbox.get_nowait()
            except queue.Empty:
                break
            if message == "add":
                ticket.fail(error)
        for ticket in self._tickets.values():
            ticket.fail(error)
        self._tickets.clear()


def _known_here(prepared: Prepared) -> dict[str, str]:
    """Pairs of the infotext."""
    return {
        "VAE hash": prepared.vae.hash if prepared.vae else "",
        "VAE": prepared.vae.name if prepared.vae else "",
        "Lora hashes": prepared.lora_hashes,
        "TI hashes": prepared.embeddings,
        "Quality": prepared.first[0].checkpoint.quality.shown,
    }


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
        timings=Timings(
            wait=_started(row) - row.added,
            encode=spent.get("encode", 0.0),
            denoise=spent.get("evaluate", 0.0),
            decode=spent.get("decode", 0.0),
            write=write_seconds,
            total=time.monotonic() - row.added,
        ),
    )
