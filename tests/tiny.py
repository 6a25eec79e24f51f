"""A tiny random checkpoint of the SD 1.5 architecture, built in code: it draws noise, in milliseconds."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from engine.families.sd1 import ARCHITECTURE_KEY
from tools.ldm_layout import export_ldm

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


def tiny_modules(seed: int = 0) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(CLIPTextConfig(**TINY_TEXT))
        torch.nn.init.normal_(text_encoder.final_layer_norm.bias, mean=0.3)
        return UNet2DConditionModel(**TINY_UNET), AutoencoderKL(**TINY_VAE), text_encoder


def write_checkpoint(path: Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> Path:
    """The same as a file in the layout of published ones."""
    sizes = {"unet": TINY_UNET, "vae": TINY_VAE, "text_encoder": TINY_TEXT}
    export_ldm(path, *tiny_modules(seed), dtype=dtype, metadata={ARCHITECTURE_KEY: json.dumps(sizes)})
    return path
