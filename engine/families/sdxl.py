"""SDXL: two text encoders, the picture's size as conditioning.

Podell et al. 2023 and the published sd_xl_base configuration.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from engine.families.family import CLIP_L, VAE, Family, TextPart, Weights
from engine.families.text import clip_weights, open_clip_weights
from engine.schedules import ALIGN_YOUR_STEPS_SDXL

UNET: Mapping[str, Any] = MappingProxyType(
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
)
CLIP_G: Mapping[str, Any] = MappingProxyType(
    {
        **CLIP_L,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    }
)

_FIRST = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.0.transformer.")
_SECOND = "conditioner.embedders.1.model."


def _first_weights(weights: Weights, layers: int) -> dict[str, Tensor]:
    return clip_weights(weights, _FIRST)


def _second_weights(weights: Weights, layers: int) -> dict[str, Tensor]:
    return open_clip_weights(weights, _SECOND, layers, projection=True)


FAMILY = Family(
    name="SDXL",
    marks=[frozenset({f"{_SECOND}token_embedding.weight"})],
    unet=UNET,
    vae=MappingProxyType({**VAE, "sample_size": 1024, "scaling_factor": 0.13025}),
    texts=(
        TextPart(name="text_encoder", config=CLIP_L, weights=_first_weights, layer=2, norm=False),
        TextPart(
            name="text_encoder_2",
            config=CLIP_G,
            weights=_second_weights,
            pad=0,
            layer=2,
            norm=False,
            pooled=True,
        ),
    ),
    align_your_steps=ALIGN_YOUR_STEPS_SDXL,
    zero_empty_negative=True,
)
