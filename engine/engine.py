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
from engine.ops import Operation, Picture
from engine.programs import Program, txt2img
from engine.protocol import AtelierError, Job, JobFailed, OutOfMemory, StepStats

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Row:
    """One job in flight. `spent` is seconds by operation, waiting for the call included."""

    id: int
    job: Job
    program: Program
    added: float
    operation: Operation
    asked: float
    started: float | None = None
    evaluations: int = 0
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
        program: Callable[[Job, LoadedCheckpoint], Program] = txt2img,
    ) -> None:
        self.checkpoint = checkpoint
        self._max_rows = max_rows
        self._on_step = on_step
        self._program = program
        self._batcher = Batcher(max_rows)
        self._rows: dict[int, Row] = {}
        self._ids = count()
        self._left: list[Finished] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def running(self) -> int:
        """Rows that have taken part in a step; the others wait for their first. Any thread may ask."""
        return sum(row.started is not None for row in list(self._rows.values()))

    def add(self, job: Job) -> int:
        """Admit a job and return its row; it joins the next step. Raises InvalidJob before any work."""
        program = self._program(job, self.checkpoint)
        now = time.monotonic()
        row = Row(next(self._ids), job, program, added=now, operation=next(program), asked=now)
        self._rows[row.id] = row
        self._enqueue(row)
        return row.id

    def abort(self, row_id: int) -> None:
        """Drop a row; no further step includes it. Unknown rows are ignored: they may just be done."""
        if row := self._rows.pop(row_id, None):
            self._batcher.remove(row_id)
            row.program.close()

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Run one batched operation. Returns the rows that left: done or failed, each for itself."""
        batch = [self._rows[row_id] for row_id in self._batcher.next()]
        if not batch:
            return []
        began = time.monotonic()
        for row in batch:
            row.started = began if row.started is None else row.started
        results = self._run([row.operation for row in batch])
        ran = time.monotonic()
        operation = batch[0].operation.name
        rows = sum(row.operation.width for row in batch)
        for row, result in zip(batch, results, strict=True):
            row.spent[operation] = row.spent.get(operation, 0.0) + ran - row.asked
            row.evaluations += operation == "evaluate"
            self._resume(row, result)
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
        left, self._left = self._left, []
        return left

    def _enqueue(self, row: Row) -> None:
        op = row.operation
        if op.max_rows is not None:
            self._batcher.limit(op.key, op.max_rows)
        self._batcher.put(
            Waiting(
                row=row.id,
                key=op.key,
                width=op.width,
                remaining=op.remaining,
                priority=row.job.priority,
            )
        )

    def _resume(self, row: Row, result: object) -> None:
        """Give a row its result and queue what it asks for next; end it where it ends."""
        try:
            if isinstance(result, AtelierError):
                row.operation = row.program.throw(result)
            else:
                row.operation = row.program.send(result)
        except StopIteration as finished:
            self._leave(row, finished.value)
        except AtelierError as error:
            self._leave(row, error)
        else:
            row.asked = time.monotonic()
            self._enqueue(row)

    def _leave(self, row: Row, outcome: Picture | AtelierError) -> None:
        del self._rows[row.id]
        self._left.append(Finished(row, outcome))

    def _run(self, batch: Sequence[Operation]) -> Sequence[object]:
        """One result each; an error in the place of the result of an operation that fails even alone.

        A batch that fails is halved until the culprit stands alone. Out of memory also lowers what this
        key may batch from now on. A broken device is not a row's fault and ends the step.
        """
        try:
            return type(batch[0]).run(self.checkpoint, batch)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if len(batch) == 1:
                return [OutOfMemory(f"the picture does not fit in the device's memory ({_what(error)})")]
            self._batcher.limit(batch[0].key, sum(op.width for op in batch) // 2)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            if len(batch) == 1:
                logger.exception("operation %s failed", batch[0].name)
                return [JobFailed(f"the {batch[0].name} operation failed ({_what(error)})")]
        middle = len(batch) // 2
        return [*self._run(batch[:middle]), *self._run(batch[middle:])]


def _what(error: Exception) -> str:
    return type(error).__name__
