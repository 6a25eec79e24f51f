"""The hires fix as a program: two passes, and what lies between."""

import dataclasses
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint import LoadedCheckpoint
from engine.engine import Engine
from engine.ops import Encode, Evaluate, Operation
from engine.prepared import Prepared
from engine.programs import draw
from engine.protocol import IMAGE_UPSCALERS, LATENT_UPSCALERS, InvalidJob, Job
from engine.registry import Registry
from tests.drawing import drawn, enlarged, evaluations
from tests.jobs import make_job


def hires_job(second: dict[str, Any] | None = None, **changes: Any) -> Job:
    """64 × 64 to 128 × 128, with `second` changed in the second pass and keywords in the job."""
    return make_job(hires=dataclasses.replace(enlarged(128, 128), **(second or {})), **changes)


@pytest.mark.parametrize("upscaler", [*LATENT_UPSCALERS, *IMAGE_UPSCALERS])
def test_every_upscaler_leads_to_the_size_asked_for(checkpoint: LoadedCheckpoint, upscaler: str) -> None:
    (picture,), steps = drawn(checkpoint, hires_job({"upscaler": upscaler}))
    assert picture.shape == (128, 128, 3)
    assert evaluations(steps) == 4 + 4


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_second_pass_makes_exactly_its_steps(
    checkpoint: LoadedCheckpoint, strength: float, steps: int
) -> None:
    _, made = drawn(checkpoint, hires_job({"denoising_strength": strength, "steps": steps}))
    assert evaluations(made) == 4 + steps


def test_no_strength_only_enlarges(checkpoint: LoadedCheckpoint) -> None:
    (picture,), steps = drawn(checkpoint, hires_job({"denoising_strength": 0.0, "upscaler": "Nearest"}))
    assert evaluations(steps) == 4
    assert picture.shape == (128, 128, 3)


def test_the_enlarged_picture_is_cut_centred(checkpoint: LoadedCheckpoint) -> None:
    second = {"upscaled_width": 192, "upscaled_height": 96, "width": 96, "height": 96}
    (picture,), _ = drawn(checkpoint, hires_job(second))
    assert picture.shape == (96, 96, 3)


@pytest.mark.parametrize(
    "change", [{"upscaler": "no such"}, {"sampler": "no such"}, {"schedule": "no such"}], ids=str
)
def test_an_impossible_second_pass_is_refused_before_the_first(
    checkpoint: LoadedCheckpoint, change: dict[str, str]
) -> None:
    engine = Engine(checkpoint)
    with pytest.raises(InvalidJob, match="no such"):
        engine.add(hires_job(change))
    assert len(engine) == 0


@torch.inference_mode()
def asked(checkpoint: LoadedCheckpoint, job: Job) -> list[Operation]:
    """All operations of a job's program."""
    program = draw(job, Prepared.of(job, Registry(checkpoint)))
    operations = [next(program)]
    with suppress(StopIteration):
        while True:
            (result,) = operations[-1].run(operations[-1:])
            operations.append(program.send(result))
    return operations


def test_the_second_pass_has_a_prompt_of_its_own(checkpoint: LoadedCheckpoint) -> None:
    operations = asked(checkpoint, hires_job({"prompt": "a green star", "negative_prompt": "red"}))
    first, second = (operation for operation in operations if isinstance(operation, Encode))
    assert [prompt[0][0] for prompt in first.prompts] == ["a red circle", "blue"]
    assert [prompt[0][0] for prompt in second.prompts] == ["a green star", "red"]


def test_prompt_schedules_go_on_in_the_second_pass(checkpoint: LoadedCheckpoint) -> None:
    operations = asked(checkpoint, hires_job({"prompt": "[a:b:1.5]"}))
    _, second = (operation for operation in operations if isinstance(operation, Encode))
    assert [prompt[0][0] for prompt in second.prompts[:2]] == ["a", "b"]


def test_what_remains_counts_both_passes(checkpoint: LoadedCheckpoint) -> None:
    operations = asked(checkpoint, hires_job(steps=3))
    assert [each.remaining for each in operations if isinstance(each, Evaluate)] == [7, 6, 5, 4, 3, 2, 1]


def test_strangers_share_the_calls_of_both_passes(checkpoint: LoadedCheckpoint) -> None:
    jobs = [
        hires_job(seed=1),
        hires_job({"upscaler": "Lanczos"}, seed=2),
        make_job(width=128, height=128, steps=9),
        make_job(steps=4, sampler="Heun"),
    ]
    together, steps = drawn(checkpoint, *jobs)
    alone = [drawn(checkpoint, job) for job in jobs]
    for picture, ((single,), _) in zip(together, alone, strict=True):
        assert np.abs(picture.astype(int) - single.astype(int)).max() <= 1
    assert evaluations(steps) < 0.7 * sum(evaluations(made) for _, made in alone)
