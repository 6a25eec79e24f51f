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
from tools.train_demo.pictures import STYLES, clutter, draw, random_scene

KL_WEIGHT = 1e-6
LEARNING_RATE = 2e-3
POOL = {64: 10_000, 128: 2_500}
"""Pictures drawn in advance, by side length in pixels."""
BATCH = {64: 32, 128: 8}
STEPS_64 = 3
"""Batches of 64 px for every batch of 128 px."""


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


def train(work: Path, minutes: float, seed: int, device: str) -> None:
    """Trains for `minutes`, then fixes the latents' scale and saves `work`/vae.pt."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    vae = build_vae().to(device)
    pools = {side: draw_pool(side, count, rng) for side, count in POOL.items()}
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    start, step, errors, seconds = time.monotonic(), 0, {64: 1.0, 128: 1.0}, minutes * 60
    with tqdm(total=round(seconds), unit="s", desc="vae") as bar:
        while (elapsed := time.monotonic() - start) < seconds:
            side = 128 if step % (STEPS_64 + 1) == STEPS_64 else 64
            index = torch.randint(len(pools[side]), (BATCH[side],))
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * _schedule(elapsed / seconds, step)
            loss, error = loss_of(vae, normalise(pools[side][index]).to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            errors[side] += 0.02 * (error - errors[side])
            step += 1
            bar.update(round(elapsed) - bar.n)
            bar.set_postfix(step=step, l1_64=f"{errors[64]:.4f}", l1_128=f"{errors[128]:.4f}")
            if step % 500 == 0:
                _save(vae, work, step, errors)
    fix_scale(vae, normalise(pools[128][:256]).to(device))
    _save(vae, work, step, errors)


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
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(32)])
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
