"""Rows share calls and nothing else."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engine import ops
from engine.batcher import Batcher
from engine.checkpoint import LoadedCheckpoint
from engine.engine import Engine, Finished
from engine.prepared import Prepared
from engine.programs import Program, txt2img
from engine.protocol import (
    InvalidJob,
    Job,
    JobFailed,
    NotFinite,
    OutOfMemory,
    StepStats,
)
from engine.samplers import SAMPLERS
from engine.schedules import SCHEDULES
from tests.jobs import make_job


def run_all(engine: Engine) -> list[Finished]:
    finished: list[Finished] = []
    for _ in range(2000):
        finished += engine.step()
        if not len(engine):
            return finished
    raise AssertionError("the engine does not come to an end")


def alone(checkpoint: LoadedCheckpoint, job: Job) -> ops.Picture:
    engine = Engine(checkpoint)
    engine.add(job)
    (done,) = run_all(engine)
    assert isinstance(done.outcome, np.ndarray)
    return done.outcome


def difference(a: ops.Picture, b: ops.Picture) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def strangers() -> list[Job]:
    """Jobs of every sampler that differ in everything but size."""
    long_prompt = "a large red circle, " * 20
    return [
        make_job(
            id=f"job-{i}",
            prompt=f"((number {i})) [on] a (field:1.{i})" if i % 3 else long_prompt,
            negative_prompt=["", "blue", long_prompt][i % 3],
            seed=100 + i,
            steps=3 + i % 5,
            sampler=sampler,
            schedule=[*SCHEDULES][i % len(SCHEDULES)],
            guidance_scale=[1.0, 4.0, 7.5, 12.0][i % 4],
            clip_skip=1 + i % 2,
            s_churn=0.5 * (i % 2),
            eta=0.0 if sampler == "DDIM" else 1.0,
            eta_noise_seed_delta=31337 * (i % 2),
            noise_source=["cpu", "nvidia"][i % 2],
            subseed=i,
            subseed_strength=0.1 * (i % 3),
        )
        for i, sampler in enumerate(SAMPLERS)
    ]


def test_picture_does_not_depend_on_batch_neighbours(checkpoint: LoadedCheckpoint) -> None:
    jobs = strangers()
    engine = Engine(checkpoint, max_rows=64)
    rows = {engine.add(job): job for job in jobs}
    together = {done.row.id: done.outcome for done in run_all(engine)}
    for row, job in rows.items():
        picture = together[row]
        assert isinstance(picture, np.ndarray)
        assert picture.shape == (64, 64, 3)
        assert difference(picture, alone(checkpoint, job)) <= 1, job.sampler


def test_strangers_share_every_call(checkpoint: LoadedCheckpoint) -> None:
    steps: list[StepStats] = []
    engine = Engine(checkpoint, max_rows=64, on_step=steps.append)
    jobs = strangers()
    for job in jobs:
        engine.add(job)
    done = run_all(engine)
    longest = max(d.row.evaluations for d in done)
    calls = [s for s in steps if s.operation == "evaluate"]
    assert len(calls) == longest  # as many calls as the longest job alone would need
    assert sum(s.jobs for s in calls) == sum(d.row.evaluations for d in done)
    # Two clip skips are two ways of encoding; pictures of one size decode four at a time.
    assert sum(s.operation == "encode" for s in steps) == 2


def test_the_batch_is_bounded_by_max_rows(checkpoint: LoadedCheckpoint) -> None:
    steps: list[StepStats] = []
    engine = Engine(checkpoint, max_rows=6, on_step=steps.append)
    for job in strangers():
        engine.add(job)
    assert len(run_all(engine)) == len(strangers())
    assert max(s.rows for s in steps if s.operation == "evaluate") <= 6


def test_job_admitted_mid_flight_joins_the_next_evaluation(checkpoint: LoadedCheckpoint) -> None:
    steps: list[StepStats] = []
    engine = Engine(checkpoint, on_step=steps.append)
    engine.add(make_job(steps=8))
    for _ in range(4):
        engine.step()
    engine.add(make_job(id="late", seed=2))
    before = len(steps)
    engine.step()
    engine.step()
    engine.step()
    after = [(s.operation, s.jobs) for s in steps[before:]]
    assert ("encode", 1) in after
    assert ("evaluate", 2) in after


def test_picture_of_a_late_joiner_is_the_same_as_alone(checkpoint: LoadedCheckpoint) -> None:
    engine = Engine(checkpoint)
    engine.add(make_job(steps=9))
    for _ in range(4):
        engine.step()
    late = make_job(id="late", seed=7, sampler="DPM++ 2M SDE", steps=6)
    row = engine.add(late)
    pictures = {d.row.id: d.outcome for d in run_all(engine)}
    picture = pictures[row]
    assert isinstance(picture, np.ndarray)
    assert difference(picture, alone(checkpoint, late)) <= 1


def test_aborted_row_leaves_at_the_next_step(checkpoint: LoadedCheckpoint) -> None:
    steps: list[StepStats] = []
    engine = Engine(checkpoint, on_step=steps.append)
    rows = [engine.add(make_job(id=str(i), seed=i, steps=6)) for i in range(3)]
    for _ in range(3):
        engine.step()
    assert steps[-1].jobs == 3
    engine.abort(rows[1])
    engine.step()
    assert steps[-1].jobs == 2
    assert sorted(d.row.id for d in run_all(engine)) == [rows[0], rows[2]]
    engine.abort(rows[1])  # again, when it is long gone


def test_the_batcher_forgets_rows_that_left(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at all that it knows for every call."""
    forgotten: list[int] = []
    remove = Batcher.remove

    def watched(batcher: Batcher, row: int) -> None:
        forgotten.append(row)
        remove(batcher, row)

    monkeypatch.setattr(Batcher, "remove", watched)
    engine = Engine(checkpoint)
    rows = [engine.add(make_job(id=str(seed), seed=seed)) for seed in range(3)]
    engine.abort(rows[0])
    run_all(engine)
    assert sorted(forgotten) == rows


def test_same_job_gives_the_same_picture_twice(checkpoint: LoadedCheckpoint) -> None:
    job = make_job(sampler="Euler a")
    assert difference(alone(checkpoint, job), alone(checkpoint, job)) == 0
    other = make_job(sampler="Euler a", seed=2)
    assert difference(alone(checkpoint, job), alone(checkpoint, other)) > 8


def test_guidance_one_takes_one_row(checkpoint: LoadedCheckpoint) -> None:
    steps: list[StepStats] = []
    engine = Engine(checkpoint, on_step=steps.append)
    engine.add(make_job(guidance_scale=1.0))
    run_all(engine)
    assert {s.rows for s in steps if s.operation == "evaluate"} == {1}


def test_sizes_are_floored_to_multiples_of_eight(checkpoint: LoadedCheckpoint) -> None:
    assert alone(checkpoint, make_job(width=85, height=71)).shape == (64, 80, 3)


def altered(
    change: Callable[[Job, ops.Operation, Any], Any],
) -> Callable[[Job, Prepared], Program]:
    """txt2img whose results pass through `change` before the row sees them."""

    def program(job: Job, prepared: Prepared) -> Program:
        inner = txt2img(job, prepared)
        operation = next(inner)
        try:
            while True:
                result = yield operation
                operation = inner.send(change(job, operation, result))
        except StopIteration as finished:
            picture: ops.Picture = finished.value
            return picture

    return program


def test_nan_fails_its_own_row_only(checkpoint: LoadedCheckpoint) -> None:
    def poison(job: Job, operation: ops.Operation, result: Any) -> Any:
        bad = job.seed == 13 and operation.name == "evaluate" and operation.remaining == 3
        return result * math.nan if bad else result

    engine = Engine(checkpoint, program=altered(poison))
    rows = {seed: engine.add(make_job(id=str(seed), seed=seed)) for seed in (12, 13, 14)}
    outcomes = {d.row.id: d.outcome for d in run_all(engine)}
    assert isinstance(outcomes[rows[13]], NotFinite)
    for seed in (12, 14):
        picture = outcomes[rows[seed]]
        assert isinstance(picture, np.ndarray)
        assert difference(picture, alone(checkpoint, make_job(seed=seed))) <= 1


def test_operation_that_raises_fails_its_own_row_only(checkpoint: LoadedCheckpoint) -> None:
    def misshape(job: Job, operation: ops.Operation, result: Any) -> Any:
        bad = job.seed == 13 and operation.name == "encode"
        return [replace(c, context=c.context[:, :5]) for c in result] if bad else result

    engine = Engine(checkpoint, program=altered(misshape))
    rows = {seed: engine.add(make_job(id=str(seed), seed=seed)) for seed in (12, 13, 14, 15)}
    outcomes = {d.row.id: d.outcome for d in run_all(engine)}
    error = outcomes[rows[13]]
    assert isinstance(error, JobFailed)
    assert error.message == "the evaluate operation failed (RuntimeError)"
    assert sum(isinstance(o, np.ndarray) for o in outcomes.values()) == 3


def test_error_inside_a_program_fails_its_own_row_only(checkpoint: LoadedCheckpoint) -> None:
    def spoil(job: Job, operation: ops.Operation, result: Any) -> Any:
        return "no tensor" if job.seed == 13 and operation.name == "evaluate" else result

    engine = Engine(checkpoint, program=altered(spoil))
    bad, good = (engine.add(make_job(id=str(seed), seed=seed)) for seed in (13, 14))
    outcomes = {d.row.id: d.outcome for d in run_all(engine)}
    error = outcomes[bad]
    assert isinstance(error, JobFailed)
    assert "no tensor" not in error.message
    assert isinstance(outcomes[good], np.ndarray)


def test_error_in_a_programs_first_step_is_the_jobs(checkpoint: LoadedCheckpoint) -> None:
    def broken(job: Job, prepared: Prepared) -> Program:
        raise ZeroDivisionError
        yield

    engine = Engine(checkpoint, program=broken)
    with pytest.raises(JobFailed, match="ZeroDivisionError"):
        engine.add(make_job())
    assert len(engine) == 0


def test_out_of_memory_halves_the_batch_and_goes_on(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = ops.Evaluate.run

    def small(batch: Sequence[ops.Evaluate]) -> Sequence[object]:
        if sum(op.width for op in batch) > 4:
            raise torch.OutOfMemoryError("pretend")
        return evaluate(batch)

    monkeypatch.setattr(ops.Evaluate, "run", staticmethod(small))
    steps: list[StepStats] = []
    engine = Engine(checkpoint, max_rows=16, on_step=steps.append)
    for seed in range(6):
        engine.add(make_job(id=str(seed), seed=seed))
    assert all(isinstance(d.outcome, np.ndarray) for d in run_all(engine))
    rows = [s.rows for s in steps if s.operation == "evaluate"]
    assert max(rows) == 12
    assert max(rows[3:]) <= 4  # learnt


def test_out_of_memory_alone_fails_the_job_only(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = ops.Evaluate.run

    def picky(batch: Sequence[ops.Evaluate]) -> Sequence[object]:
        if any(op.guidance_scale == 13.0 for op in batch):
            raise torch.OutOfMemoryError("pretend")
        return evaluate(batch)

    monkeypatch.setattr(ops.Evaluate, "run", staticmethod(picky))
    engine = Engine(checkpoint)
    bad = engine.add(make_job(id="bad", guidance_scale=13.0))
    good = engine.add(make_job(id="good"))
    outcomes = {d.row.id: d.outcome for d in run_all(engine)}
    assert isinstance(outcomes[bad], OutOfMemory)
    assert isinstance(outcomes[good], np.ndarray)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "PLMS Karras"},
        {"schedule": "linear"},
        {"steps": 51, "sampler": "LCM"},
        {"noise_source": "gpu"},
        {"eta": 1.5},
        {"steps": 0},
        {"steps": 1001, "sampler": "DDIM"},
        {"prompt": "a <hypernet:x:1>"},
        {"prompt": "a <lora:x:1:1:8>"},
    ],
)
def test_impossible_job_is_refused_before_any_work(
    checkpoint: LoadedCheckpoint, changes: dict[str, Any]
) -> None:
    engine = Engine(checkpoint)
    with pytest.raises(InvalidJob):
        engine.add(make_job(**changes))
    assert len(engine) == 0
