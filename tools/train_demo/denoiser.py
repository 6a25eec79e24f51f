"""Trains the text encoder and the UNet together on latents of drawn scenes."""

import copy
import math
import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from tqdm import tqdm
from transformers import CLIPTextModel

from tools.train_demo.architecture import build_text_encoder, build_unet
from tools.train_demo.captions import caption, long_caption
from tools.train_demo.conditioning import encode
from tools.train_demo.diffusion import STEPS, training_sigmas
from tools.train_demo.latents import Bucket, Size
from tools.train_demo.parallel import average_parameters
from tools.train_demo.tokens import chunks

LONG_SHARE = 0.04
"""Share of batches whose prompts have two chunks."""

CLIP_SKIP_SHARE = 0.10
FIRST_STEP_SHARE = 0.08
"""Share of samples that are pure noise at the last timestep, as sampling begins."""

OFFSET_SHARE, OFFSET = 0.3, 0.5
"""How often, and how strongly, noise gets a constant per channel. It keeps the model from reading
the background off the mean of the noise, where Stable Diffusion's schedule lets it show."""

PATH_SHARE = 0.6
"""How often x is a point of the way that sampling takes, (1 - σ/σ_max)·x0 + σ·n."""

STRONG = 400
"""The timestep from which on noise (σ > 1.2) hides what a picture shows."""

LEVEL = 0.8
"""Share of the time before the learning rate falls."""

EMA = 0.998


EARLY: dict[Size, float] = {(64, 64): 0.5, (128, 128): 0.4, (256, 256): 0.1}
MIDDLE: dict[Size, float] = {(64, 64): 0.2, (128, 128): 0.6, (256, 256): 0.2}
LATE: dict[Size, float] = {
    (64, 64): 0.05,
    (128, 128): 0.40,
    (192, 128): 0.05,
    (128, 192): 0.05,
    (256, 256): 0.35,
    (512, 512): 0.10,
}
PHASES = ((0.5, EARLY), (0.8, MIDDLE), (1.0, LATE))
"""Until which share of the time each picture size gets which share of the batches. Small pictures
teach the words cheaply; large ones come when shapes are known."""

AREA, LATE_AREA = 16 * 256, 32 * 256
"""Latents in a batch of one worker, in all phases but the last, and in the last."""

LOOSE = 0.3
"""How often, before the last phase, captions are empty, partial or padded out, against later."""

TOGETHER = 8
"""Workers train alone for so many steps, then their weights are averaged."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train, on what."""

    minutes: float
    learning_rate: float
    phases: tuple[tuple[float, dict[Size, float]], ...] = PHASES
    warmup: int = 200


def fine_tuning(plan: Plan) -> Plan:
    """A plan for a model that knows its words already: all sizes from the beginning."""
    return replace(plan, phases=((0.7, MIDDLE), (1.0, LATE)))


@dataclass
class Noised:
    """A batch for the UNet: x (n, 4, h, w), σ and timesteps (n,), the ε that leads to x0."""

    x: torch.Tensor
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    epsilon: torch.Tensor


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Model(nn.Module):
    """What is trained: the text encoder and the UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder: CLIPTextModel = build_text_encoder()
        self.unet: UNet2DConditionModel = build_unet()

    def forward(self, noised: Noised, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """ε predicted for a batch; prompts as (m, chunks, 77), n a multiple of m."""
        skip = torch.rand(len(ids), device=ids.device) < CLIP_SKIP_SHARE
        conditioning = encode(self.text_encoder, ids, weights, skip)
        conditioning = conditioning.repeat_interleave(len(noised.x) // len(ids), 0)
        scale = (noised.sigmas**2 + 1).rsqrt()[:, None, None, None]
        out = self.unet(noised.x * scale, noised.timesteps, conditioning)
        return torch.as_tensor(out.sample)


def add_noise(latents: torch.Tensor) -> Noised:
    """Noises latents (n, 4, h, w) at random timesteps, as training wants it (see the shares)."""
    n, device = len(latents), latents.device
    table = training_sigmas().to(device)
    timesteps = random_timesteps(n).to(device)
    first = torch.rand(n, device=device) < FIRST_STEP_SHARE
    timesteps = torch.where(first, STEPS - 1, timesteps)
    sigmas = table[timesteps]
    noise = torch.randn_like(latents)
    offset = torch.randn(n, 4, 1, 1, device=device) * OFFSET
    offset *= ((torch.rand(n, device=device) < OFFSET_SHARE) & ~first)[:, None, None, None]
    noise = noise + offset
    along = torch.where(torch.rand(n, device=device) < PATH_SHARE, 1.0, torch.rand(n, device=device))
    along = torch.where(first, 1.0, along)
    kept = (1 - along * sigmas / table[-1])[:, None, None, None]
    sigma = sigmas[:, None, None, None]
    x = kept * latents + sigma * noise
    return Noised(x, sigmas, timesteps, (x - latents) / sigma)


def random_timesteps(n: int) -> torch.Tensor:
    """(n,) int64: one half where noise is strong, the other as dense as Karras' sigmas."""
    table = training_sigmas() ** (1 / 7)
    ramp = table[0] + torch.rand(n) * (table[-1] - table[0])
    dense = torch.searchsorted(table, ramp).clamp(0, STEPS - 1)
    return torch.where(torch.rand(n) < 0.5, torch.randint(STRONG, STEPS, (n,)), dense)


def loss_of(predicted: torch.Tensor, noised: Noised) -> torch.Tensor:
    """Squared error of ε weighted by σ², within limits: nearly the squared error of x0."""
    weight = (noised.sigmas**2).clamp(0.05, 50)
    error = (predicted.float() - noised.epsilon).square().mean((1, 2, 3))
    return (weight * error).mean()


@dataclass
class Training:
    """The state of one training, saved to go on from."""

    model: Model
    average: Model
    optimizer: torch.optim.AdamW
    step: int = 0
    elapsed: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Writes the state beside `path`, then puts it in its place."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "losses": self.losses,
        }
        new = path.with_suffix(".new")
        torch.save(state, new)
        new.replace(path)

    def load(self, path: Path) -> None:
        """Takes up a saved state."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.losses = [(int(step), float(loss)) for step, loss in state["losses"]]


def new_training(model: Model, learning_rate: float) -> Training:
    """A model as it is, its running average, and an optimizer of what is not frozen."""
    average = copy.deepcopy(model).eval().requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    return Training(model, average, optimizer)


@torch.no_grad()
def update_average(training: Training) -> None:
    """Moves the running average; it follows faster while training is young."""
    keep = min(EMA, (training.step + 1) / (training.step + 10)) ** TOGETHER
    theirs, ours = training.average.parameters(), training.model.parameters()
    torch._foreach_lerp_(list(theirs), list(ours), 1 - keep)


def draws_per_caption(size: Size) -> int:
    """How many rows of noise share one caption: encoding text costs more than a small picture."""
    return {64: 4, 128: 2}.get(min(size), 1)


class Batches:
    """Draws batches: a size, its latents, and fresh captions of their scenes."""

    def __init__(self, buckets: list[Bucket], plan: Plan, seed: int) -> None:
        self.buckets = {bucket.size: bucket for bucket in buckets}
        self.plan = plan
        self.rng = random.Random(seed)

    def draw(self, progress: float) -> Batch:
        """Latents (n, 4, h, w), ids and weights (m, chunks, 77); n is a multiple of m."""
        shares = next(s for until, s in self.plan.phases if progress <= until or until == 1)
        size = self.rng.choices(list(shares), list(shares.values()))[0]
        bucket, repeats = self.buckets[size], draws_per_caption(size)
        _, _, height, width = bucket.latents.shape
        area = LATE_AREA if shares is LATE else AREA
        count = max(2, area // (height * width * repeats))
        picks = self.rng.choices(range(len(bucket.scenes)), k=count)
        is_long = self.rng.random() < LONG_SHARE
        loose = 1.0 if shares is LATE else LOOSE
        describe = long_caption if is_long else caption
        prompts = [describe(bucket.scenes[i], self.rng, loose) for i in picks]
        pairs = [chunks(prompt, 2 if is_long else 1) for prompt in prompts]
        ids, weights = (torch.stack(column) for column in zip(*pairs, strict=True))
        return bucket.latents[picks].float().repeat_interleave(repeats, 0), ids, weights


def rate_at(plan: Plan, step: int, progress: float) -> float:
    """Learning rate: a warm-up, a level stretch, then half a cosine down to 2 %."""
    down = max(0.0, min(1.0, progress) - LEVEL) / (1 - LEVEL)
    fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * down))
    return plan.learning_rate * min(1.0, (step + 1) / plan.warmup) * fall


def backward(training: Training, batch: Batch, device: str) -> float:
    """Gradients of one batch; returns the loss."""
    latents, ids, weights = (part.to(device) for part in batch)
    noised = add_noise(latents)
    with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
        predicted = training.model(noised, ids, weights)
    loss = loss_of(predicted, noised)
    training.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def train(training: Training, batches: Batches, path: Path, device: str, rank: int = 0) -> None:
    """Trains until the plan's minutes are over, counting those before a resume; saves often."""
    plan, seconds = batches.plan, batches.plan.minutes * 60
    before, start, saved = training.elapsed, time.monotonic(), time.monotonic()
    smooth: float | None = None
    parameters = list(training.model.parameters())
    bar = tqdm(total=round(seconds), initial=round(before), unit="s", desc=path.stem)
    while training.elapsed < seconds:
        progress = training.elapsed / seconds
        for group in training.optimizer.param_groups:
            group["lr"] = rate_at(plan, training.step, progress)
        loss = backward(training, batches.draw(progress), device)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        training.optimizer.step()
        training.step += 1
        smooth = loss if smooth is None else smooth + 0.01 * (loss - smooth)
        if training.step % TOGETHER:
            continue
        training.elapsed = average_parameters(parameters, before + time.monotonic() - start)
        if rank:
            continue
        update_average(training)
        bar.update(round(training.elapsed) - bar.n)
        bar.set_postfix(step=training.step, loss=f"{smooth:.4f}", refresh=False)
        if training.step % (16 * TOGETHER) == 0:
            training.losses.append((training.step, smooth))
        if time.monotonic() - saved > 120:
            training.save(path)
            saved = time.monotonic()
    if rank == 0:
        training.save(path)


def load_average(path: Path, device: str = "cpu") -> Model:
    """The running average of a saved training, ready for use."""
    model = Model()
    state: dict[str, Any] = torch.load(path, weights_only=True, mmap=True)
    model.load_state_dict(state["average"])
    return model.to(device).eval().requires_grad_(False)
