"""The engine: admits jobs as rows, and each step runs one batched operation for rows that share it.

Read this first. A row is a program (see `programs`) that yields operations; `step` takes the batcher's
choice, runs it in one call, and resumes each row with its own result.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from engine.batcher import Batcher, Waiting
from engine.checkpoint import LoadedCheckpoint
from engine.ops import Operation, Picture, second_try
from engine.prepared import Prepared
from engine.programs import Program, draw
from engine.protocol import (
    AtelierError,
    Enlargement,
    Interrupted,
    Job,
    JobFailed,
    OutOfMemory,
    StepStats,
)
from engine.registry import Registry

logger = logging.getLogger(__name__)

NOT_BEGUN = "the job was interrupted before it began"


@dataclass(slots=True)
class Row:
    """One job in flight. `spent` is seconds by operation, waiting for the call included.

    `total` is evaluations, as many as it will have needed. Any thread may read all this at any time.
    """

    id: int
    job: Job | Enlargement
    program: Program
    added: float
    operation: Operation
    asked: float
    started: float | None = None
    evaluations: int = 0
    total: int = 0
    interrupted: bool = False
    spent: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """A row that left the engine, with its picture or with the error that ended it."""

    row: Row
    outcome: Picture | AtelierError


class Engine:
    """Synchronous and single-threaded: `worker` gives it a thread.

    `max_rows` bounds the model rows of one evaluation; a guided row takes two.
    """

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        *,
        max_rows: int = 16,
        on_step: Callable[[StepStats], None] = lambda stats: None,
        program: Callable[[Job, Prepared], Program] = draw,
    ) -> None:
        self.checkpoint = checkpoint
        self._on_step = on_step
        self._program = program
        self._batcher = Batcher(max_rows)
        self._rows: dict[int, Row] = {}
        self._ids = count()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def running(self) -> int:
        """Rows that have taken part in a step; the others wait for their first. Any thread may ask."""
        return sum(row.started is not None for row in list(self._rows.values()))

    def row(self, row_id: int) -> Row:
        """One that has not left."""
        return self._rows[row_id]

    def add(self, job: Job, prepared: Prepared | None = None, arrived: float | None = None) -> int:
        """Admit a job and return its row; it joins the next step.

        What it needs is prepared here unless given, which stops all rows while something is loaded. Its time
        counts from when it `arrived`, on the monotonic clock: now, unless given.

        Raises InvalidJob before any work, or another of the protocol's errors if the job fails at once.
        """
        prepared = prepared or Prepared.of(job, Registry(self.checkpoint))
        return self.admit(job, self._program(job, prepared), arrived)

    def admit(self, job: Job | Enlargement, program: Program, arrived: float | None = None) -> int:
        """The same for a program that there is already."""
        try:
            operation = next(program)
        except Exception as error:
            raise _own_failure(error, "first step") from None
        now = time.monotonic()
        added = now if arrived is None else arrived
        row = Row(next(self._ids), job, program, added=added, operation=operation, asked=now)
        self._rows[row.id] = row
        self._enqueue(row)
        return row.id

    def abort(self, row_id: int) -> None:
        """Drop a row; no further step includes it. Unknown rows are ignored: they may just be done."""
        if row := self._rows.pop(row_id, None):
            self._batcher.remove(row_id)
            row.program.close()

    @torch.inference_mode()
    def interrupt(self, row_id: int) -> Finished | None:
        """Have a row finish with what there is of its picture, and evaluate no more. No other row notices.

        One that has no estimate of its picture leaves at once. Rows that are to evaluate nothing more in any
        case finish as they would, and unknown ones are ignored.
        """
        row = self._rows.get(row_id)
        if row is None or not row.operation.remaining:
            return None
        row.interrupted = True
        return self._resume(row, Interrupted(NOT_BEGUN))

    @torch.inference_mode()
    def answer(self, operation: Operation) -> object:
        """To an operation of no row, at once. An error in its place if it fails."""
        (result,) = self._run([operation])
        return result

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Run one batched operation. Returns the rows that left: done or failed, each for itself."""
        batch = [self._rows[row_id] for row_id in self._batcher.next(time.monotonic())]
        if not batch:
            return []
        began = time.monotonic()
        for row in batch:
            row.started = began if row.started is None else row.started
        results = self._run([row.operation for row in batch])
        if self.checkpoint.device.type == "cuda":
            torch.cuda.synchronize(self.checkpoint.device)  # else a call is only queued, its time unknown
        ran = time.monotonic()
        operation = batch[0].operation.name
        rows = sum(row.operation.width for row in batch)
        self._batcher.observe(batch[0].operation.key, rows, ran - began)
        for row in batch:
            row.spent[operation] = row.spent.get(operation, 0.0) + ran - row.asked
            row.evaluations += operation == "evaluate"
        resumed = [self._resume(row, result) for row, result in zip(batch, results, strict=True)]
        self._on_step(
            StepStats(
                operation=operation,
                jobs=len(batch),
                rows=rows,
                seconds=time.monotonic() - began,
                model_seconds=ran - began,
                running=self.running,
                waiting=len(self._rows) - self.running,
            )
        )
        return [left for left in resumed if left is not None]

    def _enqueue(self, row: Row) -> None:
        op = row.operation
        row.total = row.evaluations + op.remaining
        self._batcher.put(
            Waiting(
                row=row.id,
                key=op.key,
                width=op.width,
                remaining=op.remaining,
                priority=row.job.priority,
                due=row.added + row.job.seconds_left,
                max_rows=op.max_rows,
            )
        )

    def _resume(self, row: Row, result: object) -> Finished | None:
        """Give a row its result and queue what it asks for next, or let it leave where it ends."""
        try:
            if isinstance(result, AtelierError):
                row.operation = row.program.throw(result)
            else:
                row.operation = row.program.send(result)
        except StopIteration as finished:
            return self._leave(row, finished.value)
        except Exception as error:
            return self._leave(row, _own_failure(error, "program"))
        row.asked = time.monotonic()
        self._enqueue(row)
        return None

    def _leave(self, row: Row, outcome: Picture | AtelierError) -> Finished:
        del self._rows[row.id]
        self._batcher.remove(row.id)
        return Finished(row, outcome)

    def _run(self, batch: Sequence[Operation]) -> Sequence[object]:
        """One result each; an error in the place of the result of an operation that fails even alone.

        A batch that fails is halved until the culprit stands alone, and that has a second try. Out of memory
        also lowers what this key may batch from now on. A broken device is not a row's fault and ends the
        step.
        """
        try:
            results = type(batch[0]).run(batch)
        except Exception as error:
            failure = _own_failure(error, f"{batch[0].name} operation")
        else:
            return [self._or_again(op, result) for op, result in zip(batch, results, strict=True)]
        if len(batch) == 1:
            return [self._or_again(batch[0], failure)]
        if isinstance(failure, OutOfMemory):
            torch.cuda.empty_cache()
            self._batcher.limit(batch[0].key, sum(op.width for op in batch) // 2)
        middle = len(batch) // 2
        return [*self._run(batch[:middle]), *self._run(batch[middle:])]

    def _or_again(self, operation: Operation, result: object) -> object:
        """The result; in the place of an error that of a second try, or the first error if that fails too."""
        again = second_try(operation, result) if isinstance(result, AtelierError) else None
        if again is None:
            return result
        if isinstance(result, OutOfMemory):
            torch.cuda.empty_cache()
        (second,) = self._run([again])
        return result if isinstance(second, AtelierError) else second


def _own_failure(error: Exception, where: str) -> AtelierError:
    """The protocol's error for what went wrong inside a row. Raises what is no row's fault again."""
    match error:
        case AtelierError():
            return error
        case torch.OutOfMemoryError() | MemoryError():
            return OutOfMemory("the picture does not fit in the device's memory")
        case torch.AcceleratorError():
            raise error
        case _:
            logger.error("the %s failed", where, exc_info=error)
            return JobFailed(f"the {where} failed ({type(error).__name__})")
