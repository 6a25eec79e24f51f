"""`python -m tools.train_demo COMMAND`: each step of making the demo checkpoints."""

import argparse
from functools import partial
from pathlib import Path

from tools.train_demo import autoencoder, checkpoint, latents
from tools.train_demo.evaluate import evaluate, evaluate_lora
from tools.train_demo.jobs import RECIPES, VAE_MINUTES, WORK, save_lora, train
from tools.train_demo.parallel import launch

MODELS = Path(__file__).resolve().parents[2] / "models"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_demo", description=__doc__)
    parser.add_argument("command", choices=("vae", "train", "export", "evaluate"))
    parser.add_argument("--name", default="demo", choices=RECIPES, help="what to train, export, evaluate")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=2, help="processes on a CPU")
    parser.add_argument("--minutes", type=float, help="training time")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--resume", action="store_true", help="go on from the last saved state")
    return parser.parse_args()


def model_path(name: str) -> Path:
    """Where a checkpoint or a LoRA is exported to."""
    if RECIPES[name].low_rank:
        return MODELS / "lora" / f"{name}.safetensors"
    return MODELS / ("demo.safetensors" if name == "demo" else f"demo-{name}.safetensors")


def export(name: str) -> None:
    """Writes the file of a recipe; a checkpoint is read back and compared."""
    path = model_path(name)
    if RECIPES[name].low_rank:
        save_lora(name, path)
    else:
        checkpoint.export(WORK, name, path)
        checkpoint.check_round_trip(WORK, name, path)
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Runs one command."""
    options = arguments()
    name, device = options.name, options.device
    workers = 1 if device != "cpu" else options.workers
    WORK.mkdir(exist_ok=True)
    match options.command:
        case "vae":
            minutes = options.minutes or VAE_MINUTES
            launch(partial(autoencoder.train, WORK, minutes, options.seed, device), workers)
        case "export":
            export(name)
        case "evaluate" if RECIPES[name].low_rank:
            evaluate_lora(model_path("demo"), model_path(name), RECIPES[name].style, device, WORK)
        case "evaluate":
            evaluate(model_path(name), RECIPES[name].style, device, WORK)
        case _:
            latents.make(WORK, device, options.seed, RECIPES[name].style, workers)
            launch(partial(train, options, name), workers)


if __name__ == "__main__":
    main()
