"""SDXL's refiner: the second text encoder alone, and an aesthetic score in the place of the target size.

Podell et al. 2023 and the published sd_xl_refiner configuration.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from engine.families import sdxl
from engine.families.family import Family, TextPart, Weights
from engine.families.text import open_clip_weights

UNET: Mapping[str, Any] = MappingProxyType(
    {
        **sdxl.UNET,
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    }
)

_PREFIX = "conditioner.embedders.0.model."


def _text_weights(weights: Weights, layers: int) -> dict[str, Tensor]:
    return open_clip_weights(weights, _PREFIX, layers, projection=True)


FAMILY = Family(
    name="SDXL refiner",
    marks=[frozenset({f"{_PREFIX}token_embedding.weight"})],
    unet=UNET,
    vae=sdxl.FAMILY.vae,
    texts=(
        TextPart(
            name="text_encoder",
            config=sdxl.CLIP_G,
            weights=_text_weights,
            pad=0,
            layer=2,
            norm=False,
            pooled=True,
        ),
    ),
    align_your_steps=sdxl.FAMILY.align_your_steps,
    aesthetic_scores=(6.0, 2.5),
)
