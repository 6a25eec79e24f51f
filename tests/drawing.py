"""Jobs drawn by a bare engine, and what they begin with."""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from engine.checkpoint import LoadedCheckpoint
from engine.engine import Engine
from engine.images import Picture
from engine.prepared import Prepared
from engine.protocol import Hires, InitImage, Job, Mask, StepStats
from engine.registry import Registry
from tests.pictures import png


def drawn(
    checkpoint: LoadedCheckpoint, *jobs: Job, registry: Registry | None = None
) -> tuple[list[Picture], list[StepStats]]:
    """The finished pictures of jobs that run together, and the steps that were made."""
    registry = registry or Registry(checkpoint)
    steps: list[StepStats] = []
    engine = Engine(checkpoint, max_rows=64, on_step=steps.append)
    prepared = [Prepared.of(job, registry) for job in jobs]
    rows = [engine.add(job, each) for job, each in zip(jobs, prepared, strict=True)]
    done: dict[int, Picture] = {}
    while len(engine):
        for left in engine.step():
            assert isinstance(left.outcome, np.ndarray), left.outcome
            done[left.row.id] = left.outcome
    pairs = zip(rows, prepared, strict=True)
    return [p.canvas.finish(done[row]) if p.canvas else done[row] for row, p in pairs], steps


def evaluations(steps: list[StepStats]) -> int:
    """How many calls of the UNet there were."""
    return sum(step.operation == "evaluate" for step in steps)


def begun_with(picture: Image.Image, mask: Mask | None = None, **changes: Any) -> InitImage:
    """A picture to begin with, half of it to be made anew."""
    plain = InitImage(
        image=png(picture),
        denoising_strength=0.5,
        exact_steps=False,
        resize_mode="stretch",
        noise_multiplier=1.0,
        mask=mask,
    )
    return dataclasses.replace(plain, **changes)


def masked(grey: Image.Image, **changes: Any) -> Mask:
    """A mask without blur over the whole picture, which stays what the masked part begins from."""
    plain = Mask(
        image=png(grey),
        blur_x=0,
        blur_y=0,
        invert=False,
        content="original",
        only_masked=False,
        padding=0,
        soft=False,
    )
    return dataclasses.replace(plain, **changes)


def enlarged(width: int, height: int, **changes: Any) -> Hires:
    """A second pass of four steps to this size."""
    plain = Hires(
        checkpoint="demo",
        upscaler="Latent",
        upscaled_width=width,
        upscaled_height=height,
        width=width,
        height=height,
        steps=4,
        denoising_strength=0.5,
        sampler="Euler",
        schedule="karras",
        eta=1.0,
        prompt="a red circle",
        negative_prompt="blue",
    )
    return dataclasses.replace(plain, **changes)
