"""The whole path against diffusers' own pipeline: same weights, seed, levels -> same picture."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from engine.checkpoint import assemble
from engine.engine import Engine
from engine.tokenizer import load_tokenizer
from tests.jobs import make_job
from tests.tiny import tiny_modules

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.filterwarnings("ignore")
def test_picture_is_the_one_diffusers_pipeline_draws() -> None:
    unet, vae, text_encoder = tiny_modules()
    checkpoint = assemble(unet, vae, text_encoder, device=torch.device("cpu"), dtype=torch.float32)
    job = make_job(prompt="a red circle", negative_prompt="blue", sampler="Euler", steps=8)
    engine = Engine(checkpoint)
    engine.add(job)
    ours: list[Any] = []
    while len(engine):
        ours += [done.outcome for done in engine.step()]

    tokenizer = load_tokenizer()
    tokenizer.model_max_length = 77
    tokenizer.pad_token = "<|endoftext|>"
    pipeline = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        job.prompt,
        negative_prompt=job.negative_prompt,
        width=job.width,
        height=job.height,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator().manual_seed(job.seed),
        output_type="np",
    ).images[0]
    assert np.abs(ours[0].astype(float) - theirs * 255).max() <= 1.5
