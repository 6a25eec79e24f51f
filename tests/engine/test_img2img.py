"""img2img and inpainting as programs: which steps are made, and what stays."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from engine.checkpoint import LoadedCheckpoint
from engine.ops import Decode
from engine.prepared import Prepared
from engine.programs import draw
from engine.protocol import SAMPLERS, Job, Mask
from engine.registry import Registry
from tests.drawing import begun_with, drawn, evaluations, masked
from tests.jobs import make_job
from tests.pictures import scene

SIZE = 64


def job_from(picture: Image.Image, mask: Mask | None = None, strength: float = 0.5, **changes: Any) -> Job:
    """`init` changes what the picture is begun with, other keywords the job."""
    init = begun_with(picture, mask, denoising_strength=strength, **changes.pop("init", {}))
    return make_job(width=SIZE, height=SIZE, init=init, **changes)


def middle(**changes: Any) -> Mask:
    """The middle quarter."""
    grey = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(grey).rectangle((16, 16, 47, 47), fill=255)
    return masked(grey, **changes)


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "Euler a"])
@pytest.mark.parametrize(("strength", "count"), [(0, 1), (0.5, 11), (0.75, 16), (1, 20)])
def test_the_contracts_number_of_steps_is_made(
    checkpoint: LoadedCheckpoint, sampler: str, strength: float, count: int
) -> None:
    _, steps = drawn(checkpoint, job_from(scene(SIZE, SIZE), strength=strength, steps=20, sampler=sampler))
    assert evaluations(steps) == count


@torch.inference_mode()
def latent_of(checkpoint: LoadedCheckpoint, job: Job) -> torch.Tensor:
    """The latent that a job's picture is decoded from."""
    program = draw(job, Prepared.of(job, Registry(checkpoint)))
    operation = next(program)
    while not isinstance(operation, Decode):
        (result,) = operation.run([operation])
        operation = program.send(result)
    return operation.x


@torch.inference_mode()
def given_latent(checkpoint: LoadedCheckpoint) -> torch.Tensor:
    return checkpoint.encoder([np.asarray(scene(SIZE, SIZE))])[0]


def test_more_strength_leaves_less_of_the_picture(checkpoint: LoadedCheckpoint) -> None:
    given = given_latent(checkpoint)
    jobs = [job_from(scene(SIZE, SIZE), strength=strength, steps=10) for strength in (0.1, 0.4, 0.7, 1.0)]
    distances = [(latent_of(checkpoint, job) - given).norm().item() for job in jobs]
    assert distances == sorted(distances)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_latent_outside_the_mask_is_the_given_one(checkpoint: LoadedCheckpoint, sampler: str) -> None:
    latent = latent_of(checkpoint, job_from(scene(SIZE, SIZE), middle(), sampler=sampler))
    same = (latent == given_latent(checkpoint)).all(dim=0)
    inside = torch.zeros_like(same)
    inside[2:6, 2:6] = True
    assert same[~inside].all()
    assert not same[inside].any()


@pytest.mark.parametrize("content", ["fill", "original", "latent noise", "latent nothing"])
@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("blur", [0, 2])
def test_the_picture_outside_the_mask_comes_back_unchanged(
    checkpoint: LoadedCheckpoint, content: str, only_masked: bool, blur: int
) -> None:
    mask = middle(content=content, only_masked=only_masked, blur_x=blur, blur_y=blur, padding=8)
    (picture,), _ = drawn(checkpoint, job_from(scene(SIZE, SIZE), mask))
    changed = (picture != np.asarray(scene(SIZE, SIZE))).any(axis=2)
    reach = int(2.5 * blur + 0.5)
    inside = np.zeros_like(changed)
    inside[16 - reach : 48 + reach, 16 - reach : 48 + reach] = True
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.5


def test_every_masked_content_begins_differently(checkpoint: LoadedCheckpoint) -> None:
    contents = ("fill", "original", "latent noise", "latent nothing")
    jobs = [job_from(scene(SIZE, SIZE), middle(content=content)) for content in contents]
    pictures, _ = drawn(checkpoint, *jobs)
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_the_noise_multiplier_scales_the_noise(checkpoint: LoadedCheckpoint) -> None:
    jobs = [job_from(scene(SIZE, SIZE), init={"noise_multiplier": factor}) for factor in (1.0, 0.5)]
    plain, less = drawn(checkpoint, *jobs)[0]
    assert (plain != less).any()


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill", "latent"])
def test_any_picture_is_brought_to_the_size_asked_for(checkpoint: LoadedCheckpoint, mode: str) -> None:
    (picture,), _ = drawn(
        checkpoint, job_from(scene(SIZE, SIZE).resize((90, 50)), init={"resize_mode": mode})
    )
    assert picture.shape == (SIZE, SIZE, 3)


def test_pictures_of_every_kind_share_calls_and_are_the_same_alone(checkpoint: LoadedCheckpoint) -> None:
    jobs = [
        make_job(steps=12, sampler="Heun"),
        job_from(scene(SIZE, SIZE), strength=0.2, steps=20),
        job_from(scene(SIZE, SIZE), strength=0.8, steps=10, sampler="DPM++ 2M", seed=3),
        job_from(scene(SIZE, SIZE), middle(), sampler="Euler a", guidance_scale=1.0),
        job_from(
            scene(SIZE, SIZE),
            middle(content="latent noise", only_masked=True),
            sampler="DPM++ 2M SDE",
            steps=8,
        ),
    ]
    together, steps = drawn(checkpoint, *jobs)
    assert evaluations(steps) == 23
    for picture, job in zip(together, jobs, strict=True):
        (alone,), _ = drawn(checkpoint, job)
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1
