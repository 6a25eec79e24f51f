"""Trains the autoencoder: pictures of 64 and 128 px, L1 + MSE and a trace of KL."""

import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

from tools.train_demo.architecture import SCALING_FACTOR, build_vae
from tools.train_demo.parallel import average_gradients
from tools.train_demo.pictures import STYLES, clutter, draw, random_scene

KL_WEIGHT = 1e-6
LEARNING_RATE = 2e-3
POOL = {64: 5_000, 128: 1_500}
"""Pictures drawn in advance by each worker, by side length in pixels."""
BATCH = {64: 8, 128: 2}
CROP, CROPS = 32, 16
"""Training begins on this many crops of so many pixels: cheap, and full of edges."""
CROP_SHARE = 0.55
"""Share of the time spent on crops."""


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures of one size -> (n, 3, h, w) uint8."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """(n, 3, h, w) uint8 -> float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def draw_pool(side: int, count: int, rng: random.Random) -> torch.Tensor:
    """(count, 3, side, side) uint8: mostly filled scenes, other styles, and clutter."""
    pictures = []
    for _ in tqdm(range(count), desc=f"drawing {side} px", leave=False):
        kind = rng.random()
        if kind < 0.15:
            pictures.append(clutter(side, side, rng))
        else:
            style = STYLES[0] if kind < 0.65 else rng.choice(STYLES[1:])
            pictures.append(draw(random_scene(rng, style), side, side, rng))
    return to_tensor(pictures)


def loss_of(vae: AutoencoderKL, pictures: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The training loss and the plain L1 error (in units of [-1, 1]) of a batch."""
    posterior = vae.encode(pictures).latent_dist
    restored = vae.decode(posterior.sample()).sample
    error = functional.l1_loss(restored, pictures)
    loss = error + functional.mse_loss(restored, pictures) + KL_WEIGHT * posterior.kl().mean()
    return loss, error.item()


def train(work: Path, minutes: float, seed: int, device: str, rank: int = 0) -> None:
    """Trains for `minutes`, then fixes the latents' scale and saves `work`/vae.pt."""
    torch.manual_seed(seed)
    vae = build_vae().to(device)
    torch.manual_seed(seed + 1 + rank)
    rng = random.Random(f"{seed} {rank}")
    pools = {side: draw_pool(side, count, rng) for side, count in POOL.items()}
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    start, step, errors, progress = time.monotonic(), 0, {64: 1.0, 128: 1.0}, 0.0
    with tqdm(total=round(minutes * 60), unit="s", desc="vae", disable=rank > 0) as bar:
        while progress < 1:
            side = 128 if step % 3 == 2 else 64
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * _schedule(progress, step)
            pictures = _batch(pools[side], side, progress < CROP_SHARE).to(device)
            with torch.autocast(device, torch.bfloat16):
                loss, error = loss_of(vae, pictures)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            elapsed = average_gradients(vae.parameters(), time.monotonic() - start)
            optimizer.step()
            progress = elapsed / (minutes * 60)
            errors[side] += 0.05 * (error - errors[side])
            step += 1
            bar.update(round(elapsed) - bar.n)
            bar.set_postfix(step=step, l1_64=f"{errors[64]:.4f}", l1_128=f"{errors[128]:.4f}")
            if step % 500 == 0 and rank == 0:
                _save(vae, work, step, errors)
    if rank == 0:
        fix_scale(vae, normalise(pools[128][:256]).to(device))
        _save(vae, work, step, errors)


def _batch(pool: torch.Tensor, side: int, crop: bool) -> torch.Tensor:
    """Random pictures of a pool, or random crops of them, in [-1, 1]."""
    index = torch.randint(len(pool), (CROPS if crop else BATCH[side],))
    if not crop:
        return normalise(pool[index])
    corners = torch.randint(side - CROP + 1, (CROPS, 2)).tolist()
    parts = [
        pool[i, :, y : y + CROP, x : x + CROP] for i, (y, x) in zip(index.tolist(), corners, strict=True)
    ]
    return normalise(torch.stack(parts))


def _schedule(progress: float, step: int) -> float:
    """Factor of the learning rate: a short warm-up, then down to 2 % in a straight line."""
    return min(1.0, (step + 1) / 100) * max(0.02, 1 - progress)


def _save(vae: AutoencoderKL, work: Path, step: int, errors: dict[int, float]) -> None:
    torch.save({"vae": vae.state_dict(), "step": step, "l1": dict(errors)}, work / "vae.pt.new")
    (work / "vae.pt.new").replace(work / "vae.pt")


@torch.no_grad()
def fix_scale(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Makes `SCALING_FACTOR` × latents have mean 0 and deviation 1 in each channel.

    The affine map goes into the 1×1 convolutions beside the latents, so nothing else changes.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(pictures, 32)])
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    gain = 1 / (SCALING_FACTOR * deviation)
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] *= gain[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) * gain
    into.bias[channels:] += 2 * gain.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= gain[None, :, None, None]


def load(work: Path, device: str = "cpu") -> AutoencoderKL:
    """The trained autoencoder, ready for use."""
    vae = build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["vae"])
    return vae.to(device).eval().requires_grad_(False)
