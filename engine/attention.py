"""The UNet's attention: what diffusers' layers compute, without what they do around it in Python.

Their `forward` reads its own signature at every call, and copies a mask for each head.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from engine.kernels import TORCH, Kernel, Kind, Layer, kernels

NO_CHOICE: Mapping[Kind, str] = MappingProxyType({})


def make_lean(unet: nn.Module, choice: Mapping[Kind, str] = NO_CHOICE) -> None:
    """Have the UNet's plain attention layers attend as `Lean` does; others are left as they are.

    `choice` names their kernels by kind of layer, torch's own where it says nothing.
    """
    known = kernels()
    for layer in _plain(unet):
        layer.__class__ = Lean
        layer.kernel = known[choice.get(_kind(layer), TORCH)]


def make_stock(unet: nn.Module) -> None:
    """Undo `make_lean`."""
    for layer in _plain(unet):
        layer.__class__ = Attention


def attention_layers(unet: nn.Module) -> Iterator[Layer]:
    """The layers that a kernel can be chosen for, at the picture size that the UNet was made for."""
    config = cast(Any, unet).config
    for layer in _plain(unet):
        width, crossed = _kind(layer)
        halved = config.block_out_channels.index(width * layer.heads)
        yield Layer(layer.heads, width, (config.sample_size >> halved) ** 2, crossed)


class Lean(Attention):  # type: ignore[misc]
    """What a plain layer is made: a class, as compiled code for one layer serves the others of its class."""

    kernel: Kernel

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(n, positions, channels), to themselves or to a context (n, tokens, width) -> as hidden_states.

        `attention_mask` (n, 1, tokens) is added to the scores, by the backend that torch chooses for that.
        """
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(hidden_states), self.to_k(context), self.to_v(context))
        )
        if attention_mask is None:
            attended = self.kernel(query, key, value)
        else:
            attended = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask[:, None])
        joined: Tensor = self.to_out[0](attended.transpose(1, 2).flatten(2))
        return joined


def _plain(unet: nn.Module) -> Iterator[Any]:
    """Layers that are projections around attention, and nothing more."""
    for layer in unet.modules():
        if isinstance(layer, Attention) and _is_plain(layer):
            yield layer


def _is_plain(layer: Any) -> bool:
    parts = (layer.spatial_norm, layer.group_norm, layer.norm_cross, layer.norm_q, layer.norm_k)
    return not any(parts) and not layer.residual_connection and layer.rescale_output_factor == 1


def _kind(layer: Any) -> Kind:
    """diffusers marks a layer as crossed where it has a context's width, be it the layer's own."""
    return layer.to_q.out_features // layer.heads, bool(layer.is_cross_attention)
