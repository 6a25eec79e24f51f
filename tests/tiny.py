"""Tiny random checkpoints of every family, built in code: they draw noise, in milliseconds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from engine.families import sd1, sd2, sdxl, sdxl_refiner
from engine.families.family import ARCHITECTURE_KEY
from tools.ldm_layout import REFINER_TEXT_PREFIX, SD2_TEXT_PREFIX, export_ldm

TINY_UNET: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "sample_size": 16,
}
TINY_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}
TINY_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}


TINY_OPEN_CLIP: dict[str, Any] = {**TINY_TEXT, "hidden_size": 40, "hidden_act": "gelu"}
TINY_SD2_UNET: dict[str, Any] = {
    **TINY_UNET,
    "cross_attention_dim": 40,
    "attention_head_dim": (2, 2, 4, 4),
    "use_linear_projection": True,
}
TINY_SDXL_UNET: dict[str, Any] = {
    **TINY_UNET,
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 2, 4),
    "cross_attention_dim": 72,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
}
TINY_CLIP_G: dict[str, Any] = {**TINY_OPEN_CLIP, "projection_dim": 24, "num_hidden_layers": 4}
TINY_REFINER_UNET: dict[str, Any] = {
    **TINY_UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 2,
    "attention_head_dim": (2, 2, 4, 4),
    "cross_attention_dim": 40,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 5 * 8 + 24,
}

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {"unet": TINY_UNET, "vae": TINY_VAE, "text_encoder": TINY_TEXT},
    "sd2": {"unet": TINY_SD2_UNET, "vae": TINY_VAE, "text_encoder": TINY_OPEN_CLIP},
    "sdxl": {
        "unet": TINY_SDXL_UNET,
        "vae": {**TINY_VAE, "scaling_factor": 0.13025},
        "text_encoder": TINY_TEXT,
        "text_encoder_2": TINY_CLIP_G,
    },
    "refiner": {
        "unet": TINY_REFINER_UNET,
        "vae": {**TINY_VAE, "scaling_factor": 0.13025},
        "text_encoder": TINY_CLIP_G,
    },
}
FAMILIES = {"sd1": sd1.FAMILY, "sd2": sd2.FAMILY, "sdxl": sdxl.FAMILY, "refiner": sdxl_refiner.FAMILY}
OPEN_CLIP = {"sd2": SD2_TEXT_PREFIX, "refiner": REFINER_TEXT_PREFIX}


def tiny_modules(seed: int = 0, family: str = "sd1", *, in_channels: int = 4) -> tuple[torch.nn.Module, ...]:
    """UNet, VAE and text encoders."""
    sizes = SIZES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoders = [_text_encoder(sizes[name]) for name in sizes if name.startswith("text")]
        unet = UNet2DConditionModel(**sizes["unet"], in_channels=in_channels)
        return unet, AutoencoderKL(**sizes["vae"]), *text_encoders


def _text_encoder(sizes: dict[str, Any]) -> torch.nn.Module:
    """With a norm whose output has a mean: emphasis divides by it."""
    pooled = "projection_dim" in sizes
    module: Any = (CLIPTextModelWithProjection if pooled else CLIPTextModel)(CLIPTextConfig(**sizes))
    torch.nn.init.normal_(getattr(module, "text_model", module).final_layer_norm.bias, mean=0.3)
    made: torch.nn.Module = module.eval()
    return made


def write_checkpoint(
    path: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    family: str = "sd1",
    *,
    in_channels: int = 4,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """The same as a file in the layout of published ones."""
    export_ldm(
        path,
        *tiny_modules(seed, family, in_channels=in_channels),
        open_clip=OPEN_CLIP.get(family, ""),
        dtype=dtype,
        metadata={ARCHITECTURE_KEY: json.dumps(SIZES[family]), **(metadata or {})},
    )
    return path


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors, and its header's metadata, to be written again with changes."""
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()
