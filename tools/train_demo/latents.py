"""Latents of drawn scenes, made once before the denoiser is trained."""

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from tools.train_demo.architecture import SCALING_FACTOR
from tools.train_demo.autoencoder import load as load_vae
from tools.train_demo.autoencoder import normalise, to_tensor
from tools.train_demo.parallel import launch
from tools.train_demo.pictures import Scene, draw, training_scene

Size = tuple[int, int]

COUNTS: dict[Size, int] = {
    (64, 64): 10_000,
    (128, 128): 12_000,
    (192, 128): 700,
    (128, 192): 700,
    (256, 256): 1_200,
    (512, 512): 200,
}
"""How many pictures of each (width, height) in pixels."""

FINE_TUNING = 3
"""A style that is only fine-tuned on gets so many times fewer."""


@dataclass(frozen=True)
class Bucket:
    """Pictures of one size: latents (n, 4, h/8, w/8) float16 of unit variance, and the scenes."""

    size: Size
    latents: torch.Tensor
    scenes: list[Scene]


def picture_rng(seed: int, size: Size, index: int) -> random.Random:
    """The generator that a picture's scene, and then its jitter, are drawn from."""
    return random.Random(f"{seed} {size} {index}")


@torch.no_grad()
def encode_share(vae: AutoencoderKL, size: Size, indices: range, seed: int, style: str) -> torch.Tensor:
    """Draws and encodes the pictures `indices` of one size: (n, 4, h/8, w/8) float16."""
    parts = []
    per_call = max(1, 16 * 128 * 128 // (size[0] * size[1]))
    for start in tqdm(indices[::per_call], desc=f"latents {size[0]}×{size[1]}", leave=False):
        pictures = []
        for index in range(start, min(start + per_call, indices.stop)):
            rng = picture_rng(seed, size, index)
            pictures.append(draw(training_scene(rng, style), *size, rng))
        batch = normalise(to_tensor(pictures)).to(vae.device)
        mean = vae.encode(batch).latent_dist.mean
        parts.append((mean * SCALING_FACTOR).half().cpu())
    return torch.cat(parts)


def make_share(folder: Path, device: str, seed: int, style: str, workers: int, rank: int) -> None:
    """Encodes one worker's share of every size into a file of its own."""
    vae = load_vae(folder, device)
    shares = []
    for size, count in COUNTS.items():
        count = count if style == "filled" else count // FINE_TUNING
        indices = range(rank * count // workers, (rank + 1) * count // workers)
        shares.append((size, encode_share(vae, size, indices, seed, style)))
    torch.save(shares, _share_path(folder, style, rank))


def make(folder: Path, device: str, seed: int, style: str, workers: int) -> None:
    """Encodes all pictures of a style into `folder`, if that was not done before."""
    path = folder / f"latents-{style}.pt"
    if path.exists():
        return
    launch(partial(make_share, folder, device, seed, style, workers), workers)
    shares = [torch.load(_share_path(folder, style, rank)) for rank in range(workers)]
    joined = [
        (columns[0][0], torch.cat([latents for _, latents in columns]))
        for columns in zip(*shares, strict=True)
    ]
    torch.save(joined, path)
    for rank in range(workers):
        _share_path(folder, style, rank).unlink()


def _share_path(folder: Path, style: str, rank: int) -> Path:
    return folder / f"latents-{style}.{rank}.pt"


def load(folder: Path, seed: int, style: str) -> list[Bucket]:
    """Reads latents; the scenes follow from the seed."""
    buckets = []
    for size, latents in torch.load(folder / f"latents-{style}.pt"):
        rngs = (picture_rng(seed, size, i) for i in range(len(latents)))
        buckets.append(Bucket(size, latents, [training_scene(rng, style) for rng in rngs]))
    return buckets
