"""diffusers' pipeline as every baseline calls it, with the weights, dtype and PNG code of the service."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import diffusers
import numpy as np
import torch
from PIL import Image

from benchmarks.served import Served
from engine import checkpoint, codec
from engine.attention import make_stock
from engine.protocol import FileFormat
from engine.tokenizer import load_tokenizer

PATH = "/sdapi/v1/txt2img"
READY = "/health/ready"

TAG = re.compile(r" <lora:([^:>]+):([0-9.]+)>")
"""What a prompt names a LoRA by: its file's name, and its weight."""

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MULTISTEP = {**BETAS, "use_karras_sigmas": True, "final_sigmas_type": "zero"}

SCHEDULERS: Mapping[str, Any] = {
    "Euler": lambda: diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace"),
    "Euler a": lambda: diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="linspace"),
    "Heun": lambda: diffusers.HeunDiscreteScheduler(**BETAS, timestep_spacing="linspace"),
    "DPM++ 2M Karras": lambda: diffusers.DPMSolverMultistepScheduler(**MULTISTEP),
    "DPM++ 2M SDE Karras": lambda: diffusers.DPMSolverMultistepScheduler(
        **MULTISTEP, algorithm_type="sde-dpmsolver++"
    ),
    "DDIM": lambda: diffusers.DDIMScheduler(
        **BETAS, steps_offset=1, clip_sample=False, set_alpha_to_one=False
    ),
}


@dataclass(frozen=True)
class Settings:
    """What requests must agree on to share a pipeline call: `lora` is name and weight, `model` a checkpoint's
    name or empty."""

    model: str
    lora: tuple[str, float] | None
    sampler_name: str
    steps: int
    cfg_scale: float
    width: int
    height: int


def settings_of(body: Mapping[str, Any]) -> Settings:
    tag = TAG.search(body["prompt"])
    return Settings(
        model=body.get("model", ""),
        lora=(tag[1], float(tag[2])) if tag else None,
        **{name: body[name] for name in ("sampler_name", "steps", "cfg_scale", "width", "height")},
    )


class Draws(Protocol):
    def draw(self, settings: Settings, bodies: Sequence[Mapping[str, Any]]) -> list[Image.Image]: ...


class Pipelines:
    """One for each checkpoint, all in memory."""

    def __init__(self, served: Served) -> None:
        self._pipelines = {
            path.stem: Pipeline(path, served.threads, served.loras) for path in served.checkpoints
        }
        self._first = served.checkpoints[0].stem

    def draw(self, settings: Settings, bodies: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
        return self._pipelines[settings.model or self._first].draw(settings, bodies)


class Pipeline:
    """diffusers' StableDiffusionPipeline over a checkpoint file in the original layout. Not for two threads
    at once: a scheduler keeps the state of its call.

    A LoRA is loaded for the call that names it, and goes with the first that does not.
    """

    def __init__(self, path: Path, threads: int, loras: Path | None = None) -> None:
        torch.set_num_threads(threads)
        loaded = checkpoint.load_checkpoint(path, device="cpu", dtype="float32")
        self.modules = unet, vae, text_encoder = loaded.modules
        make_stock(unet)
        self._loras = loras
        self._worn: tuple[str, float] | None = None
        tokenizer = load_tokenizer()
        tokenizer.model_max_length = 77
        tokenizer.pad_token = "<|endoftext|>"
        self._pipeline = diffusers.StableDiffusionPipeline(
            unet=unet,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=SCHEDULERS["Euler"](),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self._pipeline.set_progress_bar_config(disable=True)

    def draw(self, settings: Settings, bodies: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
        """One call of the pipeline for all of them."""
        self._wear(settings.lora)
        self._pipeline.scheduler = SCHEDULERS[settings.sampler_name]()
        images: list[Image.Image] = self._pipeline(
            [TAG.sub("", body["prompt"]) for body in bodies],
            negative_prompt=[body.get("negative_prompt", "") for body in bodies],
            num_inference_steps=settings.steps,
            guidance_scale=settings.cfg_scale,
            width=settings.width,
            height=settings.height,
            generator=[torch.Generator().manual_seed(body["seed"]) for body in bodies],
        ).images
        return images

    def save(self, folder: Path, scheduler: Any) -> None:
        """As a diffusers folder with this scheduler."""
        self._pipeline.scheduler = scheduler
        self._pipeline.save_pretrained(folder)

    def _wear(self, lora: tuple[str, float] | None) -> None:
        if lora == self._worn:
            return
        if self._worn:
            self._pipeline.unload_lora_weights()
        if lora and self._loras:
            name, weight = lora
            self._pipeline.load_lora_weights(
                self._loras, weight_name=f"{name}.safetensors", adapter_name=name
            )
            self._pipeline.set_adapters([name], [weight])
        self._worn = lora


def answer(image: Image.Image) -> dict[str, Any]:
    """The part of txt2img's response that is compared."""
    return {"images": [base64.b64encode(codec.written(np.asarray(image), FileFormat(), {})).decode()]}
