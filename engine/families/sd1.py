"""Stable Diffusion 1.x: LDM-layout weights -> diffusers' modules.

Architecture after Rombach et al. 2022 and the published v1-inference configuration.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from engine.protocol import CheckpointError

Weights = Mapping[str, Tensor]

ARCHITECTURE_KEY = "atelier.architecture"
"""Header entry of a file whose sizes are not Stable Diffusion 1.5's: JSON of what differs."""

UNET: Mapping[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE: Mapping[str, Any] = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
TEXT_ENCODER: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}

_TEXT_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")
_TOKEN_EMBEDDING = "embeddings.token_embedding.weight"


def recognises(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file with these tensors is of this family, told from its header alone."""
    return any(f"{prefix}{_TOKEN_EMBEDDING}" in shapes for prefix in _TEXT_PREFIXES)


def refuse_variants(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError for members of the family that are not done yet."""
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight")
    if first is None:
        raise CheckpointError("the file has no UNet: it may be a VAE, a LoRA or an embedding")
    if first[1] != 4:
        raise CheckpointError(
            f"the UNet takes {first[1]} input channels; this version runs those with 4, no inpainting ones"
        )
    if not any(name.startswith("first_stage_model.decoder.") for name in shapes):
        raise CheckpointError("the file has no VAE; this version needs one inside the checkpoint")


def build(weights: Weights, metadata: Mapping[str, str]) -> tuple[nn.Module, nn.Module, nn.Module]:
    """UNet, VAE and text encoder with these weights, sharing their storage."""
    sizes = json.loads(metadata.get(ARCHITECTURE_KEY, "{}"))
    with torch.device("meta"):
        unet = UNet2DConditionModel(**{**UNET, **sizes.get("unet", {})})
        vae = AutoencoderKL(**{**VAE, **sizes.get("vae", {})})
        text_encoder = CLIPTextModel(CLIPTextConfig(**{**TEXT_ENCODER, **sizes.get("text_encoder", {})}))
    unet_weights = convert_ldm_unet_checkpoint(dict(weights), unet.config)
    vae_weights = convert_ldm_vae_checkpoint(dict(weights), vae.config)
    _fill(unet, unet_weights, "UNet")
    _fill(vae, vae_weights, "VAE")
    _fill(text_encoder, _text_weights(weights), "text encoder")
    positions = text_encoder.config.max_position_embeddings
    text_encoder.embeddings.register_buffer("position_ids", torch.arange(positions)[None], persistent=False)
    return unet, vae, text_encoder


def _text_weights(weights: Weights) -> dict[str, Tensor]:
    """The text encoder's tensors. Files of some trainers leave the `text_model.` level out."""
    found = {}
    for name, tensor in weights.items():
        for prefix in _TEXT_PREFIXES:
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = tensor
                break
    found.pop("embeddings.position_ids", None)
    return found


def _fill(module: nn.Module, weights: Mapping[str, Tensor], part: str) -> None:
    """Strict: a tensor too few, too many or of another shape is an error, never a random weight."""
    try:
        module.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).partition("\n")[2].strip()[:300]
        raise CheckpointError(f"the {part} does not fit the architecture: {reason}") from error
