"""Interrupted rows finish with what there is of their pictures, and nobody else notices."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from engine.batcher import Batcher
from engine.checkpoint import LoadedCheckpoint, load_checkpoint
from engine.companions import Companions
from engine.engine import Engine, Finished
from engine.graphs import Graphs, Rerunning
from engine.images import Picture
from engine.ops import Decode, Estimate, Evaluate, Operation
from engine.prepared import Prepared
from engine.protocol import Interrupted, Job, Refiner
from engine.quality import quality_of
from engine.registry import Registry
from engine.row_counts import RowCounts
from engine.samplers import SAMPLERS
from tests.drawing import begun_with, drawn, enlarged, masked
from tests.jobs import make_job
from tests.pictures import scene
from tests.tiny import write_checkpoint


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Copies of what the first row of each evaluation was answered."""
    seen: list[Tensor] = []
    run = Evaluate.run

    def watched(batch: Sequence[Evaluate]) -> Sequence[Any]:
        results: Sequence[Any] = run(batch)
        seen.append(results[0].clone())
        return results

    monkeypatch.setattr(Evaluate, "run", staticmethod(watched))
    return seen


def begun(engine: Engine, job: Job, evaluations: int, registry: Registry | None = None) -> int:
    """A row of which so many evaluations are done."""
    row = engine.add(job, Prepared.of(job, registry or Registry(engine.checkpoint)))
    while engine.row(row).evaluations < evaluations:
        engine.step()
    return row


def finished(engine: Engine) -> dict[int, Finished]:
    left: list[Finished] = []
    while len(engine):
        left += engine.step()
    return {done.row.id: done for done in left}


def picture(done: Finished) -> Picture:
    assert isinstance(done.outcome, np.ndarray), done.outcome
    return done.outcome


def interrupted(
    checkpoint: LoadedCheckpoint, job: Job, evaluations: int, registry: Registry | None = None
) -> Finished:
    engine = Engine(checkpoint)
    row = begun(engine, job, evaluations, registry)
    assert engine.interrupt(row) is None
    return finished(engine)[row]


@torch.inference_mode()
def decoded(checkpoint: LoadedCheckpoint, latent: Tensor) -> Picture:
    (made,) = checkpoint.decoder([latent])
    assert isinstance(made, np.ndarray)
    return made


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_picture_is_the_latest_estimate(
    checkpoint: LoadedCheckpoint, answers: list[Tensor], sampler: str
) -> None:
    """Of Restart, and of DPM adaptive, in the middle of what they do again."""
    evaluations = 30 if sampler in ("Restart", "DPM adaptive") else 7
    done = interrupted(checkpoint, make_job(sampler=sampler, steps=24), evaluations)
    assert len(answers) == done.row.evaluations == done.row.total == evaluations
    guided = answers[-1][0] if SAMPLERS[sampler].needs_uncond else answers[-1]
    assert done.row.interrupted
    assert np.array_equal(picture(done), decoded(checkpoint, guided))


def test_a_row_is_interrupted_after_its_refiner_took_over(
    checkpoint: LoadedCheckpoint, answers: list[Tensor], tmp_path: Path
) -> None:
    paths = {"other": write_checkpoint(tmp_path / "other.safetensors", seed=1)}
    companions = Companions(paths, lambda path: load_checkpoint(path, device="cpu"), max_bytes=2**30)
    refiner = Refiner(checkpoint="other", switch_at=0.5, by_timestep=False)
    done = interrupted(
        checkpoint, make_job(steps=8, refiner=refiner), 6, Registry(checkpoint, "demo", companions)
    )
    assert np.array_equal(picture(done), decoded(checkpoint, answers[-1]))


@pytest.mark.parametrize("evaluations", [4, 5])
def test_a_row_that_reuses_features_is_interrupted_at_any_turn(
    checkpoint: LoadedCheckpoint, answers: list[Tensor], evaluations: int
) -> None:
    cached = replace(checkpoint, quality=quality_of("deepcache", 3))
    done = interrupted(cached, make_job(steps=8), evaluations)
    assert np.array_equal(picture(done), decoded(cached, answers[-1]))


def test_a_row_without_any_evaluation_leaves_at_once(checkpoint: LoadedCheckpoint) -> None:
    engine = Engine(checkpoint)
    for steps in (0, 1):
        row = engine.add(make_job())
        for _ in range(steps):
            engine.step()
        left = engine.interrupt(row)
        assert left is not None
        assert isinstance(left.outcome, Interrupted)
        assert "interrupted before it began" in left.outcome.message
        assert len(engine) == 0
        assert engine.step() == []


def test_a_row_that_only_has_to_be_decoded_is_finished_whole(checkpoint: LoadedCheckpoint) -> None:
    (whole,), _ = drawn(checkpoint, make_job())
    done = interrupted(checkpoint, make_job(), 4)
    assert not done.row.interrupted
    assert np.array_equal(picture(done), whole)


def test_unknown_rows_and_those_that_are_interrupted_already_are_ignored(
    checkpoint: LoadedCheckpoint,
) -> None:
    engine = Engine(checkpoint)
    row = begun(engine, make_job(steps=9), 3)
    for each in (row, row, row + 1):
        assert engine.interrupt(each) is None
    done = finished(engine)[row]
    assert done.row.evaluations == 3
    assert engine.interrupt(row) is None


def test_neighbours_of_an_interrupted_row_are_bit_equal_to_those_of_one_that_was_aborted(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What calls took is not learnt, so that which rows share one does not depend on the clock."""
    monkeypatch.setattr(Batcher, "observe", lambda *call: None)
    jobs = [make_job(id=name, seed=i, sampler=name, steps=8) for i, name in enumerate(SAMPLERS)]
    middle = len(jobs) // 2

    def others(*, abort: bool) -> list[bytes]:
        engine = Engine(checkpoint, max_rows=64)
        rows = [engine.add(job) for job in jobs]
        while engine.row(rows[middle]).evaluations < 4:
            engine.step()
        if abort:
            engine.abort(rows[middle])
        else:
            engine.interrupt(rows[middle])
        done = finished(engine)
        assert (rows[middle] in done) != abort
        return [picture(done[row]).tobytes() for row in rows if row != rows[middle]]

    assert others(abort=False) == others(abort=True)


def stages(engine: Engine, job: Job) -> list[Operation]:
    """All operations of a job, each as it waits for its call."""
    row = engine.add(job, Prepared.of(job, Registry(engine.checkpoint)))
    asked = []
    while len(engine):
        asked.append(engine.row(row).operation)
        engine.step()
    return asked


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_a_hires_fix_is_interrupted_at_any_moment(
    checkpoint: LoadedCheckpoint, answers: list[Tensor], upscaler: str
) -> None:
    """In the first pass and before the second has an estimate the picture is the small one."""
    job = make_job(hires=enlarged(128, 128, upscaler=upscaler))
    asked = stages(Engine(checkpoint), job)
    estimates = answers.copy()
    (small,), _ = drawn(checkpoint, replace(job, hires=None))
    (large,), _ = drawn(checkpoint, job)
    evaluations = [isinstance(operation, Evaluate) for operation in asked]
    for steps in range(len(asked)):
        engine = Engine(checkpoint)
        row = engine.add(job, Prepared.of(job, Registry(checkpoint)))
        for _ in range(steps):
            engine.step()
        done = engine.interrupt(row) or finished(engine)[row]
        match sum(evaluations[:steps]):
            case 0:
                assert isinstance(done.outcome, Interrupted)
            case 4:
                assert np.array_equal(picture(done), small)
            case 8:
                assert np.array_equal(picture(done), large)
            case count:
                assert np.array_equal(picture(done), decoded(checkpoint, estimates[count - 1]))
        assert done.row.interrupted == (steps < len(asked) - 1)


def test_what_is_to_be_evaluated_in_all_is_known_at_any_moment(checkpoint: LoadedCheckpoint) -> None:
    """Also while a hires fix decodes its small picture."""
    job = make_job(sampler="Heun", hires=enlarged(128, 128, upscaler="Lanczos", steps=3))
    engine = Engine(checkpoint)
    row = engine.row(engine.add(job, Prepared.of(job, Registry(checkpoint))))
    totals = set()
    while len(engine):
        totals.add(row.total)
        engine.step()
    assert totals == {row.evaluations} == {7 + 3}


def test_an_interrupted_inpainting_keeps_what_is_outside_of_its_mask(
    checkpoint: LoadedCheckpoint, answers: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Decode.run
    latents: list[Tensor] = []

    def watched(batch: Sequence[Decode]) -> Sequence[object]:
        latents.extend(operation.x for operation in batch)
        return decode(batch)

    monkeypatch.setattr(Decode, "run", staticmethod(watched))
    grey = Image.new("L", (64, 64))
    grey.paste(255, (16, 16, 48, 48))
    for sampler in ("Euler", "DDIM CFG++"):
        job = make_job(steps=8, sampler=sampler, init=begun_with(scene(64, 64), masked(grey)))
        interrupted(checkpoint, job, 3)
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[2:6, 2:6] = True
        with torch.inference_mode():
            (given,) = checkpoint.encoder([np.asarray(scene(64, 64))])
        answer = answers[-1][0] if sampler == "DDIM CFG++" else answers[-1]
        assert torch.equal(latents[-1], torch.where(inside, answer, given))
        assert not torch.equal(answer, latents[-1])


def test_an_estimate_is_never_overwritten(checkpoint: LoadedCheckpoint) -> None:
    """Neither by a UNet that answers in the same memory every time, nor by what samplers do with it."""
    denoiser = checkpoint.denoiser.plain()
    counts = RowCounts({64: (2, 4, 8, 16, 32, 64)})
    denoiser.call = Graphs(denoiser.call, Rerunning(), counts)
    engine = Engine(replace(checkpoint, denoiser=denoiser), max_rows=64)
    for i, sampler in enumerate(SAMPLERS):
        engine.add(make_job(seed=i, sampler=sampler, guidance_scale=[1.0, 5.0][i % 2], steps=6))
    kept: dict[Estimate, Tensor] = {}
    while len(engine):
        engine.step()
        for row in engine._rows.values():
            if isinstance(row.operation, Evaluate) and row.operation.estimate:
                kept.setdefault(row.operation.estimate, row.operation.estimate.latent.clone())
    assert len(kept) > 4 * len(SAMPLERS)
    assert all(torch.equal(estimate.latent, copied) for estimate, copied in kept.items())
