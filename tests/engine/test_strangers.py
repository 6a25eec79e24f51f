"""Many jobs that have nothing in common but the engine."""

import numpy as np
import pytest
import torch

from engine.checkpoint import LoadedCheckpoint, assemble
from engine.engine import Engine
from engine.images import Canvas, Picture
from engine.lora.store import LoraSettings
from engine.protocol import InitImage, Job, StepStats
from tests import loras
from tests.jobs import make_job
from tests.pictures import png, scene
from tests.tiny import tiny_modules

SAMPLERS = (
    "Euler", "Euler a", "Heun", "DPM2 a", "LMS", "DPM++ 2M", "DPM++ 2M SDE", "DPM++ 2S a", "DPM++ SDE",
    "DPM++ 3M SDE", "DDIM", "UniPC", "Restart", "DDIM CFG++",
)  # fmt: skip
PROMPTS = (
    "a red circle",
    "a (cat:1.3) [dog] BREAK bird",
    "a long one, " * 40,
    "a cat :0.7 AND a [dog:bird:0.5]",
    "[a|b] house <lora:ink:0.7>",
    "<lora:wash:0.5:1.1> a boat <lora:ink:-0.4>",
)


@pytest.fixture(scope="module")
def having(tmp_path_factory: pytest.TempPathFactory) -> LoadedCheckpoint:
    """The tiny checkpoint with two LoRAs."""
    unet, vae, text_encoder = tiny_modules()
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("ink", "wash")):
        changes = loras.random_changes(unet, text_encoder, seed=seed, rank=2 + seed)
        loras.write(folder / f"{name}.safetensors", loras.kohya(changes))
    settings = LoraSettings(folder=folder)
    return assemble(unet, vae, text_encoder, device=torch.device("cpu"), dtype=torch.float32, loras=settings)


def strangers() -> list[Job]:
    """24 jobs of two sizes; every third begins with a picture."""
    return [
        make_job(
            id=str(i),
            prompt=PROMPTS[i % len(PROMPTS)],
            seed=100 + i,
            width=64 + 32 * (i % 2),
            steps=3 + i % 5,
            guidance_scale=[1.0, 4.0, 7.5, 12.0][i % 4],
            sampler=SAMPLERS[i % len(SAMPLERS)],
            schedule=["karras", "uniform", "exponential", "beta"][i // 2 % 4],
            clip_skip=1 + i % 2,
            init=_init(0.2 + 0.1 * (i % 7)) if i % 3 == 0 else None,
        )
        for i in range(24)
    ]


def _init(strength: float) -> InitImage:
    return InitImage(
        image=png(scene(80, 64)),
        denoising_strength=strength,
        exact_steps=False,
        resize_mode="crop",
        noise_multiplier=1.0,
        mask=None,
    )


def drawn(checkpoint: LoadedCheckpoint, *jobs: Job) -> tuple[list[Picture], int]:
    """Pictures, and how many calls of the UNet they took."""
    steps: list[StepStats] = []
    engine = Engine(checkpoint, max_rows=64, on_step=steps.append)
    rows = [engine.add(job, Canvas.of(job)) for job in jobs]
    pictures: dict[int, Picture] = {}
    while len(engine):
        for left in engine.step():
            assert isinstance(left.outcome, np.ndarray), left.outcome
            pictures[left.row.id] = left.outcome
    return [pictures[row] for row in rows], sum(step.operation == "evaluate" for step in steps)


def test_24_strangers_run_in_few_calls_and_each_draws_what_it_draws_alone(having: LoadedCheckpoint) -> None:
    jobs = strangers()
    together, calls = drawn(having, *jobs)
    alone = [drawn(having, job) for job in jobs]
    for job, picture, ((single,), _) in zip(jobs, together, alone, strict=True):
        assert np.abs(picture.astype(int) - single.astype(int)).max() <= 1, (job.sampler, job.prompt[:20])
    assert calls <= 2 * max(each for _, each in alone)  # two sizes, each as long as its longest job
