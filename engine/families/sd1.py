"""Stable Diffusion 1.x: CLIP ViT-L's last layers, ε-prediction.

Architecture after Rombach et al. 2022 and the published v1-inference configuration.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from engine.families.family import CLIP_L, VAE, Family, TextPart, Weights
from engine.families.text import clip_weights

UNET: Mapping[str, Any] = MappingProxyType(
    {
        "sample_size": 64,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }
)

_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")
"""Files of some trainers leave the `text_model.` level out."""


def _text_weights(weights: Weights, layers: int) -> dict[str, Tensor]:
    return clip_weights(weights, _PREFIXES)


FAMILY = Family(
    name="Stable Diffusion 1.x",
    marks=[frozenset({f"{prefix}embeddings.token_embedding.weight"}) for prefix in _PREFIXES],
    unet=UNET,
    vae=VAE,
    texts=(TextPart(name="text_encoder", config=CLIP_L, weights=_text_weights),),
)
