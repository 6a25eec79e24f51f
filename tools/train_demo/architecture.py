"""The demo's architecture: Stable Diffusion 1.5 with every width made small."""

import copy
import json
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

SCALING_FACTOR = 0.18215
"""Latents are multiplied by this after encoding, as in Stable Diffusion 1.5."""

MEAN_BIAS = 0.3
"""Initial bias of the text encoder's last norm. Prompt weights are normalised by the mean of the
conditioning, so that mean must stay away from 0."""

INITIAL_LOG_VARIANCE = -6.0
"""Of the autoencoder's posterior; with 0 its noise drowns the latents when training begins."""

UNET: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": [32, 64, 96, 96],
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "down_block_types": [
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
"""What differs from SD 1.5's UNet. `attention_head_dim` counts heads, as in SD 1.5's own file."""

VAE: dict[str, Any] = {
    "sample_size": 256,
    "block_out_channels": [16, 16, 32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "scaling_factor": SCALING_FACTOR,
}

TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 64,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}


def metadata() -> dict[str, str]:
    """The header of an exported file: its architecture and its licence."""
    architecture = {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER}
    return {
        "atelier.architecture": json.dumps(architecture, separators=(",", ":")),
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.license": "Apache-2.0",
        "modelspec.prediction_type": "epsilon",
        "format": "pt",
    }


def build_unet(config: dict[str, Any] = UNET) -> UNet2DConditionModel:
    """A UNet with random weights; latents (n, 4, h, w), conditioning (n, tokens, 64)."""
    unet = UNet2DConditionModel(**copy.deepcopy(config))
    _carry_noise(unet)
    return unet


@torch.no_grad()
def _carry_noise(unet: UNet2DConditionModel) -> None:
    """Starts a UNet with x as its estimate of ε, which is nearly right where noise is strong.

    x and -x go in as the first eight channels, by the outermost skip connection to the last
    block, and out as silu(x) - silu(-x), which is x.
    """
    last = unet.up_blocks[-1].resnets[-1]
    width, x = unet.config.block_out_channels[0], torch.arange(4)
    unet.conv_in.weight[:8] = 0
    unet.conv_in.bias[:8] = 0
    unet.conv_in.weight[x, x, 1, 1] = 1
    unet.conv_in.weight[x + 4, x, 1, 1] = -1
    both = torch.arange(8)
    last.conv2.weight.zero_()
    last.conv_shortcut.weight[:8] = 0
    last.conv_shortcut.bias[:8] = 0
    last.conv_shortcut.weight[both, both + width] = 1
    unet.conv_out.weight *= 0.1
    unet.conv_out.weight[x, x, 1, 1] += 1
    unet.conv_out.weight[x, x + 4, 1, 1] -= 1


def build_vae(config: dict[str, Any] = VAE) -> AutoencoderKL:
    """An autoencoder with random weights; pictures (n, 3, 8h, 8w) in [-1, 1]."""
    vae = AutoencoderKL(in_channels=3, out_channels=3, **copy.deepcopy(config))
    _carry_colours(vae)
    return vae


@torch.no_grad()
def _carry_colours(vae: AutoencoderKL) -> None:
    """Starts an autoencoder as plain averaging down and repeating up, beside what it learns.

    With random weights the colours of flat pictures take thousands of steps to get through.
    """
    vae.quant_conv.bias[vae.config.latent_channels :] = INITIAL_LOG_VARIANCE
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        same = torch.arange(min(module.weight.shape[:2]))
        if name.endswith("conv2"):
            module.weight.zero_()
        elif "downsamplers" in name:
            module.weight *= 0.3
            module.weight[same, same, :2, :2] += 0.25
        elif "upsamplers" in name:
            module.weight *= 0.3
            module.weight[same, same, 1, 1] += 1
        elif name.endswith(("conv_in", "conv_shortcut")):
            middle = module.weight.shape[-1] // 2
            module.weight[same, same, middle, middle] += 1


def build_text_encoder(config: dict[str, Any] = TEXT_ENCODER) -> CLIPTextModel:
    """A text encoder with random weights and a conditioning whose mean is not 0."""
    encoder = CLIPTextModel(CLIPTextConfig(**config))
    with torch.no_grad():
        text_model(encoder).final_layer_norm.bias.fill_(MEAN_BIAS)
    return encoder


def text_model(encoder: CLIPTextModel) -> Any:
    """The transformer of a text encoder; transformers 5.6 dropped the `text_model` wrapper."""
    return getattr(encoder, "text_model", encoder)


def parameters(module: torch.nn.Module) -> int:
    """How many numbers a module is made of."""
    return sum(p.numel() for p in module.parameters())
