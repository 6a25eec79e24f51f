"""The families beside SD 1.x against diffusers' own pipelines: same weights, seed, levels -> same latent."""

from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from engine.checkpoint import LoadedCheckpoint, assemble
from engine.families.family import Kind
from engine.ops import Decode
from engine.prepared import Model, Prepared
from engine.programs import Program, txt2img
from engine.protocol import Job, Refiner
from engine.registry import Registry
from engine.tokenizer import load_tokenizer
from tests.jobs import make_job
from tests.tiny import FAMILIES, tiny_modules

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAIN = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def tokenizer(pad: str = "<|endoftext|>") -> Any:
    made = load_tokenizer()
    made.model_max_length = 77
    made.pad_token = pad
    return made


def latent(checkpoint: LoadedCheckpoint, job: Job) -> torch.Tensor:
    """What a job decodes in the end."""
    return latent_of(txt2img(job, Prepared.of(job, Registry(checkpoint))))


@torch.inference_mode()
def latent_of(program: Program) -> torch.Tensor:
    operation = next(program)
    while not isinstance(operation, Decode):
        (result,) = type(operation).run([operation])
        operation = program.send(result)
    return operation.x


def drawn(pipeline: Any, job: Job, **changes: Any) -> Any:
    """What a pipeline makes of the same job: a picture, or with `output_type` its latent (4, h, w)."""
    pipeline.set_progress_bar_config(disable=True)
    asked = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "width": job.width,
        "height": job.height,
        "num_inference_steps": job.steps,
        "guidance_scale": job.guidance_scale,
        "generator": torch.Generator().manual_seed(job.seed),
        "output_type": "np",
    }
    return pipeline(**{**asked, **changes}).images[0]


def difference(ours: torch.Tensor, theirs: Any) -> float:
    """Largest error over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("zero_terminal_snr", "tolerance"), [(False, 1e-5), (True, 3e-5)])
def test_v_predicting_sd2_draws_what_diffusers_draws(zero_terminal_snr: bool, tolerance: float) -> None:
    """At σ_max of zero terminal SNR, 4096, float32 rounds x by up to 1e-3."""
    unet, vae, text_encoder = tiny_modules(family="sd2")
    kind = Kind(family=FAMILIES["sd2"], prediction="v", zero_terminal_snr=zero_terminal_snr)
    checkpoint = assemble(unet, vae, text_encoder, kind=kind, device=torch.device("cpu"), dtype=torch.float32)
    pipeline = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer("!"),
        scheduler=diffusers.EulerDiscreteScheduler(
            **BETAS,
            prediction_type="v_prediction",
            timestep_spacing="linspace",
            rescale_betas_zero_snr=zero_terminal_snr,
        ),
        **PLAIN,
    )
    job = make_job(prompt="a red circle", negative_prompt="blue", schedule="uniform", steps=8)
    theirs = drawn(pipeline, job, output_type="latent")
    assert difference(latent(checkpoint, job), theirs) <= tolerance


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("negative_prompt", ["blue", ""])
def test_sdxl_draws_what_diffusers_draws(negative_prompt: str) -> None:
    unet, vae, *text_encoders = tiny_modules(family="sdxl")
    checkpoint = assemble(
        unet,
        vae,
        *text_encoders,
        kind=Kind(family=FAMILIES["sdxl"]),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoders[0],
        text_encoder_2=text_encoders[1],
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer("!"),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
        add_watermarker=False,
    )
    job = make_job(negative_prompt=negative_prompt, steps=8, width=96)
    theirs = drawn(pipeline, job, negative_prompt=negative_prompt or None, output_type="latent")
    assert difference(latent(checkpoint, job), theirs) <= 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("negative_prompt", ["blue", ""])
def test_sdxl_with_its_refiner_draws_what_diffusers_draws(negative_prompt: str) -> None:
    base, refining = (
        assemble(
            *tiny_modules(family=family),
            kind=Kind(family=FAMILIES[family]),
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        for family in ("sdxl", "refiner")
    )
    refiner = Refiner(checkpoint="refiner", switch_at=0.75, by_timestep=True)
    job = make_job(negative_prompt=negative_prompt, steps=8, width=96, refiner=refiner)
    prepared = Prepared(first=(Model(base), Model(refining)))
    ours = latent_of(txt2img(job, prepared))
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True)
    unet, vae, *text_encoders = tiny_modules(family="sdxl")
    begun = drawn(
        diffusers.StableDiffusionXLPipeline(
            unet=unet,
            vae=vae,
            text_encoder=text_encoders[0],
            text_encoder_2=text_encoders[1],
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer("!"),
            scheduler=scheduler,
            add_watermarker=False,
        ),
        job,
        negative_prompt=negative_prompt or None,
        output_type="latent",
        denoising_end=0.75,
    )
    unet, vae, text_encoder = tiny_modules(family="refiner")
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(
        unet=unet,
        vae=vae,
        text_encoder=None,
        text_encoder_2=text_encoder,
        tokenizer=None,
        tokenizer_2=tokenizer("!"),
        scheduler=scheduler,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt=job.prompt,
        negative_prompt=negative_prompt,
        image=begun[None],
        num_inference_steps=job.steps,
        denoising_start=0.75,
        guidance_scale=job.guidance_scale,
        original_size=(64, 96),
        target_size=(64, 96),
        output_type="latent",
    ).images[0]
    assert difference(ours, theirs) <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_inpainting_checkpoint_draws_what_diffusers_draws_where_all_is_masked() -> None:
    unet, vae, text_encoder = tiny_modules(in_channels=9)
    without_variance(vae)
    kind = Kind(family=FAMILIES["sd1"], inpainting=True)
    checkpoint = assemble(unet, vae, text_encoder, kind=kind, device=torch.device("cpu"), dtype=torch.float32)
    pipeline = diffusers.StableDiffusionInpaintPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer(),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
        **PLAIN,
    )
    job = make_job(steps=8, width=96)
    theirs = drawn(
        pipeline,
        job,
        image=Image.new("RGB", (96, 64), "red"),
        mask_image=Image.new("L", (96, 64), 255),
        strength=1.0,
        output_type="latent",
    )
    assert difference(latent(checkpoint, job), theirs) <= 1e-5


def without_variance(vae: Any) -> None:
    """The pipeline takes a sample of the posterior, we its mean."""
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -30
