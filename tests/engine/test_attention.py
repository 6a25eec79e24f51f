"""The UNet's attention without diffusers' Python around it."""

import pytest
import torch
from diffusers.models.attention_processor import Attention

from engine.attention import make_lean
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
    assert "forward" not in vars(layer)
