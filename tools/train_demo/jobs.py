"""What is trained, and what one worker does for it; spawned processes import it from here."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from tools.train_demo import denoiser, latents, lora

WORK = Path(__file__).resolve().parent / "work"


@dataclass(frozen=True)
class Recipe:
    """How one denoiser comes about; `base` names the one that it starts from."""

    style: str
    minutes: float
    learning_rate: float
    base: str | None = None
    low_rank: bool = False


RECIPES = {
    "demo": Recipe("filled", 175, 6e-4),
    "outline": Recipe("outline", 11, 5e-4, base="demo"),
    "striped": Recipe("striped", 8, 2e-3, base="demo", low_rank=True),
    "hollow": Recipe("outline", 8, 2e-3, base="demo", low_rank=True),
}
VAE_MINUTES = 12.0


def train(options: argparse.Namespace, name: str, rank: int) -> None:
    """Trains one recipe's denoiser in one worker."""
    recipe, path = RECIPES[name], WORK / f"{name}.pt"
    torch.manual_seed(options.seed)
    model = denoiser.Model() if recipe.base is None else denoiser.load_average(base_path(recipe))
    model.train().requires_grad_(True)
    if recipe.low_rank:
        lora.attach(model)
    plan = denoiser.Plan(options.minutes or recipe.minutes, recipe.learning_rate)
    if recipe.base is not None:
        plan = denoiser.fine_tuning(plan)
    training = denoiser.new_training(model.to(options.device), plan.learning_rate)
    if options.resume:
        training.load(path)
    seed = options.seed + 1 + rank + 1000 * training.step
    torch.manual_seed(seed)
    buckets = latents.load(WORK, options.seed, recipe.style)
    batches = denoiser.Batches(buckets, plan, seed)
    denoiser.train(training, batches, path, options.device, rank)


def base_path(recipe: Recipe) -> Path:
    """The saved training that a recipe starts from."""
    return WORK / f"{recipe.base}.pt"


def save_lora(name: str, path: Path) -> None:
    """Writes a trained LoRA as a file."""
    model = denoiser.load_average(base_path(RECIPES[name])).train()
    layers = lora.attach(model)
    state = torch.load(WORK / f"{name}.pt", weights_only=True, mmap=True)
    model.load_state_dict(state["average"])
    lora.save(layers, path, name)
