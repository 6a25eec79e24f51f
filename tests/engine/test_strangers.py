"""Many jobs that have nothing in common but the engine."""

import numpy as np
import pytest
import torch

from engine.checkpoint import LoadedCheckpoint, assemble
from engine.lora.store import LoraSettings
from engine.protocol import InitImage, Job
from tests import loras
from tests.drawing import begun_with, drawn, evaluations
from tests.jobs import make_job
from tests.pictures import scene
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
            init=_begun(0.2 + 0.1 * (i % 7)) if i % 3 == 0 else None,
        )
        for i in range(24)
    ]


def _begun(strength: float) -> InitImage:
    return begun_with(scene(80, 64), denoising_strength=strength, resize_mode="crop")


def test_24_strangers_run_in_few_calls_and_each_draws_what_it_draws_alone(having: LoadedCheckpoint) -> None:
    jobs = strangers()
    together, steps = drawn(having, *jobs)
    alone = [drawn(having, job) for job in jobs]
    for job, picture, ((single,), _) in zip(jobs, together, alone, strict=True):
        assert np.abs(picture.astype(int) - single.astype(int)).max() <= 1, (job.sampler, job.prompt[:20])
    assert evaluations(steps) <= 2 * max(
        evaluations(each) for _, each in alone
    )  # two sizes, each as long as its longest job
