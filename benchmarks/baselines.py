"""Two other ways to serve the same weights, as fair as we can make them: `python -m benchmarks.baselines`.

`lock`: diffusers' own pipeline, one request at a time. `window`: requests of equal settings that arrive
within a window share one pipeline call. Both speak the part of txt2img that the benchmark uses, load the
checkpoint by the same code, run in the same dtype, and encode PNGs off the event loop.
"""

import argparse
import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from engine import checkpoint, codec
from engine.tokenizer import load_tokenizer

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
    """What requests must agree on to share a pipeline call."""

    sampler_name: str
    steps: int
    cfg_scale: float
    width: int
    height: int


class Pipeline:
    """diffusers' StableDiffusionPipeline over a checkpoint file in the original layout."""

    def __init__(self, path: Path) -> None:
        loaded = checkpoint.load_checkpoint(path, device="cpu", dtype="float32")
        unet, vae, text_encoder = loaded.modules
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
        self._pipeline.scheduler = SCHEDULERS[settings.sampler_name]()
        images: list[Image.Image] = self._pipeline(
            [body["prompt"] for body in bodies],
            negative_prompt=[body.get("negative_prompt", "") for body in bodies],
            num_inference_steps=settings.steps,
            guidance_scale=settings.cfg_scale,
            width=settings.width,
            height=settings.height,
            generator=[torch.Generator().manual_seed(body["seed"]) for body in bodies],
        ).images
        return images


Waiting = tuple[Mapping[str, Any], "asyncio.Future[Image.Image]"]


class Batcher:
    """Requests of equal settings that come within `window` seconds share a call of at most `most`.

    With `most` 1 and no window this is a lock.
    """

    def __init__(self, pipeline: Pipeline, *, window: float, most: int) -> None:
        self._pipeline = pipeline
        self._window, self._most = window, most
        self._waiting: dict[Settings, list[Waiting]] = {}
        self._arrived = asyncio.Event()

    async def draw(self, body: Mapping[str, Any]) -> Image.Image:
        future: asyncio.Future[Image.Image] = asyncio.get_running_loop().create_future()
        settings = Settings(**{name: body[name] for name in Settings.__dataclass_fields__})
        self._waiting.setdefault(settings, []).append((body, future))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Serve the settings that came first, for ever."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(self._window)
            settings, waiting = next(iter(self._waiting.items()))
            batch, rest = waiting[: self._most], waiting[self._most :]
            del self._waiting[settings]
            if rest:
                self._waiting[settings] = rest
            if not self._waiting:
                self._arrived.clear()
            images = await asyncio.to_thread(self._pipeline.draw, settings, [body for body, _ in batch])
            for (_, future), image in zip(batch, images, strict=True):
                if not future.done():
                    future.set_result(image)


def build(batcher: Batcher) -> FastAPI:
    app = FastAPI()
    tasks = set()

    @app.on_event("startup")
    async def start() -> None:
        tasks.add(asyncio.create_task(batcher.run()))

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/sdapi/v1/txt2img")
    async def txt2img(body: dict[str, Any]) -> dict[str, Any]:
        image = await batcher.draw(body)
        png = await asyncio.to_thread(codec.png, np.asarray(image), "")
        return {"images": [base64.b64encode(png).decode()]}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["lock", "window"])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--window", type=float, default=0.05, help="seconds")
    parser.add_argument("--most", type=int, default=8)
    args = parser.parse_args()
    pipeline = Pipeline(args.checkpoint)
    alone = args.kind == "lock"
    batcher = Batcher(pipeline, window=0 if alone else args.window, most=1 if alone else args.most)
    uvicorn.run(build(batcher), host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
