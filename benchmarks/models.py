"""The checkpoints that servers are compared on, each one file that all of them load."""

import json
import os
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
from engine.families.family import ARCHITECTURE_KEY
from tools.ldm_layout import export_ldm

DEMO = Path(__file__).resolve().parent.parent / "models" / "demo.safetensors"

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
    """`size` is the side in pixels of its pictures here."""

    name: str
    about: str
    path: Path
    size: int


def demo(folder: Path) -> Model:
    return Model("demo", "the demo checkpoint", DEMO, 128)


def stand_in(folder: Path) -> Model:
    """On a CPU each of its calls costs what a GPU's cost: the launches, hardly the arithmetic."""
    path = folder / "stand-in.safetensors"
    torch.manual_seed(0)
    export_ldm(
        path,
        UNet2DConditionModel(**STAND_IN["unet"]),
        AutoencoderKL(**STAND_IN["vae"]),
        CLIPTextModel(CLIPTextConfig(**STAND_IN["text_encoder"])),
        metadata={ARCHITECTURE_KEY: json.dumps(STAND_IN)},
    )
    return Model("stand-in", "a tiny UNet with random weights, on 8×8 latents bound by launches", path, 64)


def full(folder: Path) -> Model:
    """2 GB, written once: below XDG_CACHE_HOME."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "atelier"
    path = cache / "bench-full.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        export_ldm(path, *full_size())
    return Model("full", "Stable Diffusion 1.5's full size with random weights", path, 128)


MODELS: Mapping[str, Callable[[Path], Model]] = {"stand-in": stand_in, "demo": demo, "full": full}
"""By name; each takes a folder for files that need not outlive the run."""
