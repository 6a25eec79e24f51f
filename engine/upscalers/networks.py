"""The networks of ESRGAN's kind: (n, 3, h, w) of 0 … 1 to (n, 3, scale·h, scale·w).

Wang et al. 2018, "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks"; Wang et al. 2021,
"Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data". Layers are named as in the
latter's published files.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, pad, pixel_shuffle, pixel_unshuffle

from engine.upscalers.layouts import Compact, Rrdb

SLOPE = 0.2
"""Of the leaky ReLUs below 0."""
RESIDUAL = 0.2
"""What of a block's result is added to what went in."""


def build(network: Rrdb | Compact) -> nn.Module:
    return RrdbNet(network) if isinstance(network, Rrdb) else CompactNet(network)


class DenseBlock(nn.Module):
    """Each convolution sees what went in and the results of those before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _convolution(features, growth)
        self.conv2 = _convolution(features + growth, growth)
        self.conv3 = _convolution(features + 2 * growth, growth)
        self.conv4 = _convolution(features + 3 * growth, growth)
        self.conv5 = _convolution(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, leaky_relu(convolution(seen), SLOPE)], dim=1)
        change: Tensor = self.conv5(seen)
        return x + RESIDUAL * change


class Block(nn.Module):
    """Three dense blocks, and a way around them."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(features, growth)
        self.rdb2 = DenseBlock(features, growth)
        self.rdb3 = DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return x + RESIDUAL * change


class RrdbNet(nn.Module):
    def __init__(self, network: Rrdb) -> None:
        super().__init__()
        features = network.features
        self._network = network
        self.conv_first = _convolution(3 * network.shuffle**2, features)
        self.body = nn.Sequential(*(Block(features, network.growth) for _ in range(network.blocks)))
        self.conv_body = _convolution(features, features)
        for number in range(1, network.doublings + 1):
            self.add_module(f"conv_up{number}", _convolution(features, features))
        self.conv_hr = _convolution(features, features)
        self.conv_last = _convolution(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self._network.scale * side for side in x.shape[2:])
        x = self.conv_first(pixel_unshuffle(_filled_up(x, self._network.shuffle), self._network.shuffle))
        x = x + self.conv_body(self.body(x))
        for number in range(1, self._network.doublings + 1):
            convolution = self.get_submodule(f"conv_up{number}")
            x = leaky_relu(convolution(interpolate(x, scale_factor=2, mode="nearest")), SLOPE)
        large: Tensor = self.conv_last(leaky_relu(self.conv_hr(x), SLOPE))
        return large[:, :, :height, :width]


class CompactNet(nn.Module):
    """Convolutions at the small size; the last one's channels become pixels, added to the picture's own."""

    def __init__(self, network: Compact) -> None:
        super().__init__()
        self._scale = network.scale
        layers: list[nn.Module] = [_convolution(3, network.features), nn.PReLU(network.features)]
        for _ in range(network.layers):
            layers += [_convolution(network.features, network.features), nn.PReLU(network.features)]
        self.body = nn.Sequential(*layers, _convolution(network.features, 3 * network.scale**2))

    def forward(self, x: Tensor) -> Tensor:
        details = pixel_shuffle(self.body(x), self._scale)
        return details + interpolate(x, scale_factor=self._scale, mode="nearest")


def _convolution(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel_size=3, padding=1)


def _filled_up(x: Tensor, multiple: int) -> Tensor:
    """To sides that are multiples, by repeating the last row and column."""
    height, width = x.shape[2:]
    return pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
