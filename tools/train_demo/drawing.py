"""Draws pictures with a checkpoint as the engine does: DPM++ 2M, Karras sigmas, guidance."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from tools.train_demo.architecture import SCALING_FACTOR
from tools.train_demo.checkpoint import Checkpoint
from tools.train_demo.conditioning import encode_prompts
from tools.train_demo.diffusion import sample_dpmpp_2m, timestep_of
from tools.train_demo.tokens import Segment

STEPS, GUIDANCE = 20, 5.0


def segments(text: str) -> list[Segment]:
    """A prompt without weights."""
    return [(text.replace(",", " , "), 1.0)]


def initial_noise(seeds: Sequence[int], width: int, height: int) -> torch.Tensor:
    """(n, 4, height/8, width/8) float32, each row from its own seed on the CPU."""
    shape = (4, height // 8, width // 8)
    generators = (torch.Generator("cpu").manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


@torch.no_grad()
def draw_prompts(
    model: Checkpoint,
    prompts: Sequence[Sequence[Segment]],
    seeds: Sequence[int],
    size: tuple[int, int],
    negative: str = "",
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """One picture of (width, height) pixels for each prompt and seed, all in one batch."""
    n, device = len(prompts), model.unet.device
    both = encode_prompts(model.text_encoder, [*prompts, *[segments(negative)] * n])
    noise = initial_noise(seeds, *size).to(device)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        scaled = torch.cat([x, x]) / (sigma**2 + 1) ** 0.5
        timestep = timestep_of(torch.tensor(sigma)).to(device).expand(2 * n)
        epsilon = torch.as_tensor(model.unet(scaled, timestep, both).sample)
        cond, uncond = epsilon.chunk(2)
        return x - sigma * (uncond + guidance * (cond - uncond))

    latents = sample_dpmpp_2m(denoise, noise, STEPS)
    pictures = torch.cat([model.vae.decode(row / SCALING_FACTOR).sample for row in torch.split(latents, 1)])
    return to_images(pictures)


def to_images(pictures: torch.Tensor) -> list[Image.Image]:
    """(n, 3, h, w) in [-1, 1] -> pictures."""
    levels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte()
    arrays = levels.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size side by side in rows."""
    width, height = pictures[0].width + 4, pictures[0].height + 4
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (200, 200, 200))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width + 2, i // columns * height + 2))
    return sheet
