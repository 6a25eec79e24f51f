"""The checkpoints that servers are compared on, each one file that all of them load."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from benchmarks.engine_overhead import full_size
from benchmarks.lora_rows import write_lora
from benchmarks.workloads import LORAS, lora_name
from engine.checkpoint import load_checkpoint
from engine.families.family import ARCHITECTURE_KEY
from tools.ldm_layout import export_ldm

DEMO = Path(__file__).resolve().parent.parent / "models" / "demo.safetensors"

LORA_RANK = 8
LORA_DEVIATION = 0.25
"""So that it shows in a picture, by which outputs are compared."""

STAND_IN: Mapping[str, Mapping[str, Any]] = {
    "unet": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "sample_size": 8,
    },
    "vae": {
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
}


@dataclass(frozen=True)
class Model:
    """`size` is the side in pixels of its pictures here, `brief` what their usual steps are divided by."""

    name: str
    about: str
    path: Path
    size: int
    brief: int = 1


def demo(folder: Path, seed: int = 0) -> Model:
    """Beyond seed 0 a copy."""
    path = folder / f"demo-{seed}.safetensors" if seed else DEMO
    if seed:
        shutil.copyfile(DEMO, path)
    return Model("demo", "the demo checkpoint", path, 128)


def stand_in(folder: Path, seed: int = 0) -> Model:
    """On a CPU each of its calls costs what a GPU's cost: the launches, hardly the arithmetic."""
    path = folder / f"stand-in-{seed}.safetensors"
    torch.manual_seed(seed)
    export_ldm(
        path,
        UNet2DConditionModel(**STAND_IN["unet"]),
        AutoencoderKL(**STAND_IN["vae"]),
        CLIPTextModel(CLIPTextConfig(**STAND_IN["text_encoder"])),
        metadata={ARCHITECTURE_KEY: json.dumps(STAND_IN)},
    )
    return Model("stand-in", "a tiny UNet with random weights, on 8×8 latents bound by launches", path, 64)


def full(folder: Path, seed: int = 0) -> Model:
    """2 GB, written once: below XDG_CACHE_HOME."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "atelier"
    path = cache / (f"bench-full-{seed}.safetensors" if seed else "bench-full.safetensors")
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        export_ldm(path, *full_size())
    return Model("full", "Stable Diffusion 1.5's full size with random weights", path, 128, brief=8)


MODELS: Mapping[str, Callable[..., Model]] = {"stand-in": stand_in, "demo": demo, "full": full}
"""By name; each takes a folder for files that need not outlive the run, and a seed for the weights."""


def write_loras(path: Path, folder: Path) -> None:
    """LORAS random files for the UNet of a checkpoint."""
    (unet, *_) = load_checkpoint(path, device="cpu", dtype="float32").modules
    folder.mkdir()
    for rank in range(LORAS):
        write_lora(folder / f"{lora_name(rank)}.safetensors", unet, LORA_RANK, LORA_DEVIATION)
