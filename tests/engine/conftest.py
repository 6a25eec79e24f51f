"""A tiny random checkpoint of the SD 1.5 architecture, built in code: it draws noise, in milliseconds."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from engine.checkpoint import LoadedCheckpoint, assemble
from engine.protocol import Job

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


@pytest.fixture(scope="session")
def checkpoint() -> LoadedCheckpoint:
    return assemble(*tiny_modules(), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="session")
def make_job() -> Callable[..., Job]:
    plain = Job(
        id="job",
        checkpoint="tiny",
        prompt="a red circle",
        negative_prompt="blue",
        seed=1,
        width=64,
        height=64,
        steps=4,
        guidance_scale=5.0,
        sampler="Euler",
        schedule="karras",
        eta=1.0,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=math.inf,
        s_noise=1.0,
        eta_noise_seed_delta=0,
        clip_skip=1,
        infotext="a red circle\nSteps: 4",
    )
    return lambda **changes: dataclasses.replace(plain, **changes)
