"""What a file's header tells of its network."""

import pytest
import torch
from torch import nn

from engine.protocol import UpscalerError
from engine.upscalers.layouts import OTHERS, Compact, Rrdb, Shape, told
from engine.upscalers.networks import build
from tests import upscalers

PUBLISHED: dict[str, tuple[Rrdb | Compact, int, int]] = {
    "RealESRGAN_x4plus": (Rrdb(features=64, growth=32, blocks=23, doublings=2, shuffle=1), 4, 16_697_987),
    "RealESRGAN_x2plus": (Rrdb(features=64, growth=32, blocks=23, doublings=2, shuffle=2), 2, 16_703_171),
    "realesr-animevideov3": (Compact(features=64, layers=16, scale=4), 4, 621_424),
}
"""Published networks with their scales and numbers of parameters."""


def shapes(network: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_told_by_their_shapes(name: str) -> None:
    network, scale, parameters = PUBLISHED[name]
    with torch.device("meta"):
        built = build(network)
    assert told(shapes(built), name).network == network
    assert network.scale == scale
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


@pytest.mark.parametrize(("mark", "name"), OTHERS)
def test_other_networks_are_refused_by_name(mark: str, name: str) -> None:
    """Whatever else they share with ESRGAN's."""
    own = {key: tuple(tensor.shape) for key, tensor in upscalers.rrdb().items()}
    with pytest.raises(UpscalerError, match=f"upscaler 'x' is {name.replace('+', '.')};"):
        told(own | {f"params.{mark.strip('.')}.weight": (1,)}, "x")


RRDB = {key: tuple(tensor.shape) for key, tensor in upscalers.rrdb().items()}
COMPACT = {key: tuple(tensor.shape) for key, tensor in upscalers.compact().items()}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({}, "not a model of ESRGAN's kind"),
        ({"weight": (1, 2)}, "not a model of ESRGAN's kind"),
        ({"body.0.weight": (8, 3, 3, 3), "body.1.weight": (8, 8, 3, 3)}, "not a model of ESRGAN's kind"),
        (RRDB | {"conv_first.weight": (8, 1, 3, 3)}, "has 1 channels where RGB would have 3"),
        (RRDB | {"conv_first.weight": (8, 13, 3, 3)}, "has 13 channels where RGB would have 12"),
        (RRDB | {"conv_last.weight": (1, 8, 3, 3)}, "has 1 channels where RGB would have 3"),
        (RRDB | {"conv_first.weight": (8, 27, 3, 3)}, "takes 3 pixels of a side for one"),
        (RRDB | {f"conv_up{n}.weight": (8, 8, 3, 3) for n in range(3, 6)}, "the scale 32; allowed are 1, 2"),
        (RRDB | {"conv_first.weight": ()}, "no convolution conv_first"),
        (RRDB | {"body.0.rdb1.conv1.weight": (0, 8, 3, 3)}, "no convolution body.0.rdb1.conv1"),
        (RRDB | {"trunk_conv.weight": (8, 8, 3, 3)}, "a layer under two names"),
        (COMPACT | {"body.0.weight": (8, 4, 3, 3)}, "has 4 channels where RGB would have 3"),
        (COMPACT | {"body.6.weight": (13, 8, 3, 3)}, "has 13 channels where RGB would have 12"),
        (COMPACT | {"body.6.weight": (75, 8, 3, 3)}, "the scale 5; allowed are 1, 2"),
        ({key: COMPACT[key] for key in ("body.0.weight", "body.1.weight")}, "no convolution body.2"),
    ],
)
def test_what_is_none_of_them_is_refused_with_the_reason(header: dict[str, Shape], reason: str) -> None:
    with pytest.raises(UpscalerError, match=f"upscaler 'x'.*{reason}"):
        told(header, "x")


def test_half_a_scale_is_refused() -> None:
    without = {key: shape for key, shape in RRDB.items() if not key.startswith("conv_up")}
    with pytest.raises(UpscalerError, match=r"the scale 0\.5"):
        told(without | {"conv_first.weight": (8, 12, 3, 3)}, "x")
