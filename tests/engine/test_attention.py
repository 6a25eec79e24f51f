"""The UNet's attention without diffusers' Python around it."""

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine import attention
from engine.attention import attention_layers, make_lean
from engine.families import sd1, sdxl
from engine.kernels import Layer, kernels
from tests.tiny import FAMILIES, tiny_modules


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [False, True])
def test_lean_attention_computes_what_diffusers_computes(family: str, padded: bool) -> None:
    unet = tiny_modules(family=family)[0]
    layers = [module for module in unet.modules() if isinstance(module, Attention)]
    mask = torch.arange(154) < torch.tensor([77, 154])[:, None] if padded else None
    inputs = []
    for layer in layers:
        width, context = layer.to_q.in_features, layer.to_k.in_features
        states = torch.randn(2, 12, width)
        crossed = None if layer.is_cross_attention is False else torch.randn(2, 154, context)
        bias = None if mask is None or crossed is None else (1 - mask.float())[:, None] * -10000.0
        inputs.append((states, crossed, bias))
    before = [layer(*given) for layer, given in zip(layers, inputs, strict=True)]
    make_lean(unet)
    after = [layer(*given) for layer, given in zip(layers, inputs, strict=True)]
    assert layers
    for theirs, ours in zip(before, after, strict=True):
        assert torch.allclose(theirs, ours, atol=1e-6)


def test_layers_that_do_more_are_left_as_they_are() -> None:
    layer = Attention(32, heads=2, norm_num_groups=4, residual_connection=True)
    make_lean(layer)
    assert type(layer) is Attention


def test_layers_sizes_are_those_of_the_pictures_that_the_unet_was_made_for() -> None:
    with torch.device("meta"):
        sd1_unet, sdxl_unet = (UNet2DConditionModel(**family.UNET) for family in (sd1, sdxl))
    assert set(attention_layers(sd1_unet)) == {
        Layer(8, width, queries, crossed)
        for width, queries in ((40, 4096), (80, 1024), (160, 256))
        for crossed in (False, True)
    }
    assert {(layer.width, layer.queries) for layer in attention_layers(sdxl_unet)} == {(64, 4096), (64, 1024)}


@torch.inference_mode()
def test_a_kernel_is_used_by_the_layers_it_was_chosen_for_and_not_with_a_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backend that takes no mask must not be given one, nor be called without it."""
    unet: Any = tiny_modules()[0]
    chosen = {layer.kind: "flash" for layer in attention_layers(unet) if layer.crossed}
    seen: list[int] = []

    def flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append(key.shape[2])
        return scaled_dot_product_attention(query, key, value)

    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 77, 32))
    make_lean(unet)
    before = unet(*inputs, return_dict=False)[0]
    monkeypatch.setattr(attention, "kernels", lambda: {**kernels(), "flash": flash})
    make_lean(unet, chosen)
    assert torch.equal(unet(*inputs, return_dict=False)[0], before)
    assert seen
    assert set(seen) == {77}
    seen.clear()
    unet(*inputs, encoder_attention_mask=torch.ones(2, 77, dtype=torch.bool))
    assert not seen
