"""The UNet's attention: what diffusers' layers compute, without what they do around it in Python.

Their `forward` reads its own signature at every call, and copies a mask for each head.
"""

from functools import partial
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def make_lean(unet: nn.Module) -> None:
    """Have the UNet's plain attention layers attend as `attend` does; others are left as they are."""
    for layer in unet.modules():
        if isinstance(layer, Attention) and _is_plain(layer):
            vars(layer)["forward"] = partial(attend, layer)


def attend(
    layer: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """(n, positions, channels), to themselves or to a context (n, tokens, width) -> (n, positions, channels).

    `attention_mask` (n, 1, tokens) is added to the scores.
    """
    context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    query, key, value = (
        projected.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for projected in (layer.to_q(hidden_states), layer.to_k(context), layer.to_v(context))
    )
    mask = None if attention_mask is None else attention_mask[:, None]
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    joined: Tensor = layer.to_out[0](attended.transpose(1, 2).flatten(2))
    return joined


def _is_plain(layer: Any) -> bool:
    """Whether a layer is projections around attention, and nothing more."""
    parts = (layer.spatial_norm, layer.group_norm, layer.norm_cross, layer.norm_q, layer.norm_k)
    return not any(parts) and not layer.residual_connection and layer.rescale_output_factor == 1
