"""Whole programs against diffusers' own pipelines: same weights, seed, levels -> same latent and picture."""

import dataclasses
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from engine.checkpoint import LoadedCheckpoint, assemble
from engine.images import Canvas
from engine.ops import Decode
from engine.prepared import Prepared
from engine.programs import draw
from engine.protocol import Job
from engine.registry import Registry
from engine.tokenizer import load_tokenizer
from tests.drawing import begun_with, enlarged
from tests.jobs import make_job
from tests.pictures import scene
from tests.tiny import tiny_modules

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """What diffusers' pipelines are made of, over the tiny checkpoint's modules."""
    unet, vae, text_encoder = tiny_modules()
    tokenizer = load_tokenizer()
    tokenizer.model_max_length = 77
    tokenizer.pad_token = "<|endoftext|>"
    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "scheduler": diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@pytest.fixture(scope="module")
def same_weights(parts: dict[str, Any]) -> LoadedCheckpoint:
    modules = (parts[name] for name in ("unet", "vae", "text_encoder"))
    return assemble(*modules, device=torch.device("cpu"), dtype=torch.float32)


def theirs(pipeline: Any, job: Job, **arguments: Any) -> Any:
    """What a pipeline makes of a job: its latent (4, h, w), or what `output_type` says."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": job.steps, "output_type": "latent", **arguments}
    return pipeline(
        job.prompt,
        negative_prompt=job.negative_prompt,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator().manual_seed(job.seed),
        **settings,
    ).images[0]


@torch.inference_mode()
def ours(checkpoint: LoadedCheckpoint, job: Job) -> tuple[Tensor, Any]:
    """The latent that a job's picture is decoded from, and the picture."""
    program = draw(job, Prepared.of(job, Registry(checkpoint)))
    operation = next(program)
    while True:
        (result,) = operation.run([operation])
        if isinstance(operation, Decode):
            return operation.x, result
        operation = program.send(result)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_txt2img(same_weights: LoadedCheckpoint, parts: dict[str, Any]) -> None:
    job = make_job(steps=8)
    pipeline = diffusers.StableDiffusionPipeline(**parts)
    latent, picture = ours(same_weights, job)
    assert relative(latent, theirs(pipeline, job, width=64, height=64)) <= 1e-5
    their_picture = theirs(pipeline, job, width=64, height=64, output_type="np")
    assert np.abs(picture.astype(float) - their_picture * 255).max() <= 1


@pytest.mark.parametrize("steps", [2, 5, 8])
def test_img2img(same_weights: LoadedCheckpoint, parts: dict[str, Any], steps: int) -> None:
    """They make `steps` steps of 10 at a strength of steps / 10, we at one that is a tenth less."""
    init = begun_with(scene(64, 64), denoising_strength=(steps - 1) / 10 + 0.05)
    job = make_job(steps=10, init=init)
    canvas = Canvas.of(job)
    assert canvas is not None
    with torch.inference_mode():
        given = same_weights.encoder([canvas.pixels])[0]
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**parts)
    latent, _ = ours(same_weights, job)
    assert relative(latent, theirs(pipeline, job, image=given[None], strength=steps / 10)) <= 1e-5


def test_hires_fix(same_weights: LoadedCheckpoint, parts: dict[str, Any]) -> None:
    """Theirs is three calls: a picture, an enlarged latent, and the last half of twice the steps."""
    first = make_job(steps=6)
    hires = enlarged(128, 96, prompt="a green star", negative_prompt="red")
    job = dataclasses.replace(first, hires=hires)
    small = theirs(diffusers.StableDiffusionPipeline(**parts), first, width=64, height=64)
    large = interpolate(small[None], (12, 16), mode="bilinear")
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**parts)
    latent, _ = ours(same_weights, job)
    second = theirs(pipeline, job.second_pass(), image=large, strength=0.5, num_inference_steps=8)
    assert relative(latent, second) <= 1e-5
