"""Stable Diffusion 2.x: OpenCLIP ViT-H's last layer but one; ε- and v-prediction in the same layout.

Architecture after the published v2-inference configurations. The files of the 768-pixel models (v) and of
the 512-pixel ones (ε) have the same tensors: what they predict is told by metadata or by evaluating.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from engine.families.family import CLIP_L, VAE, Family, TextPart, Weights
from engine.families.text import open_clip_weights

UNET: Mapping[str, Any] = MappingProxyType(
    {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    }
)
CLIP_H: Mapping[str, Any] = MappingProxyType(
    {
        **CLIP_L,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    }
)
"""Without the 24th layer, which nothing uses, and which some files lack."""

_PREFIX = "cond_stage_model.model."


def _text_weights(weights: Weights, layers: int) -> dict[str, Tensor]:
    return open_clip_weights(weights, _PREFIX, layers, projection=False)


FAMILY = Family(
    name="Stable Diffusion 2.x",
    marks=[frozenset({f"{_PREFIX}token_embedding.weight"})],
    unet=UNET,
    vae=VAE,
    texts=(TextPart(name="text_encoder", config=CLIP_H, weights=_text_weights, pad=0, layer=1),),
    prediction=None,
)
