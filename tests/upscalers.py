"""Random upscalers in the layouts of published files, and what they make of a picture, from the papers."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import conv2d

from engine.images import Picture

Weights = Mapping[str, Tensor]


def rrdb(
    seed: int = 0,
    *,
    features: int = 8,
    growth: int = 4,
    blocks: int = 1,
    doublings: int = 2,
    shuffle: int = 1,
) -> dict[str, Tensor]:
    """ESRGAN's network under Real-ESRGAN's names. Its pictures are about as bright as what it is given."""
    sizes = {"conv_first": (features, 3 * shuffle**2)}
    for block in range(blocks):
        for dense in (1, 2, 3):
            for number in range(5):
                out = features if number == 4 else growth
                sizes[f"body.{block}.rdb{dense}.conv{number + 1}"] = (out, features + number * growth)
    sizes["conv_body"] = (features, features)
    sizes |= {f"conv_up{number + 1}": (features, features) for number in range(doublings)}
    sizes |= {"conv_hr": (features, features), "conv_last": (3, features)}
    return _convolutions(sizes, seed)


def compact(seed: int = 0, *, features: int = 8, layers: int = 2, scale: int = 2) -> dict[str, Tensor]:
    sizes = {f"body.{2 * number}": (features, features if number else 3) for number in range(layers + 1)}
    sizes[f"body.{2 * layers + 2}"] = (3 * scale**2, features)
    weights = _convolutions(sizes, seed)
    slopes = torch.Generator().manual_seed(seed)
    for number in range(layers + 1):
        weights[f"body.{2 * number + 1}.weight"] = torch.rand(features, generator=slopes)
    return weights


def _convolutions(sizes: Mapping[str, tuple[int, int]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (out, into) in sizes.items():
        weights[f"{name}.weight"] = torch.randn(out, into, 3, 3, generator=generator) / (9 * into) ** 0.5
        weights[f"{name}.bias"] = torch.randn(out, generator=generator) / 10
    if "conv_last.bias" in weights:
        weights["conv_last.weight"] /= 2
        weights["conv_last.bias"] += 0.5
    return weights


def second_release(weights: Weights) -> dict[str, Tensor]:
    def name(key: str) -> str:
        key = re.sub(r"^body\.(\d+)\.rdb", r"RRDB_trunk.\1.RDB", key).replace("conv_body", "trunk_conv")
        return key.replace("conv_up", "upconv").replace("conv_hr", "HRconv")

    return {name(key): tensor for key, tensor in weights.items()}


def first_release(weights: Weights) -> dict[str, Tensor]:
    """Layers by number: a doubling, its convolution and its activation count one each."""
    blocks = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("body."))
    doublings = sum(key.startswith("conv_up") for key in weights) // 2
    numbers = {"conv_first": "0", "conv_body": f"1.sub.{blocks}", "conv_hr": f"{3 * doublings + 2}"}
    numbers |= {f"conv_up{n}": f"{3 * n}" for n in range(1, doublings + 1)}
    numbers["conv_last"] = f"{3 * doublings + 4}"

    def name(key: str) -> str:
        layer, _, kind = key.rpartition(".")
        inside = re.sub(r"^body\.(\d+)\.rdb(\d)\.(conv\d)$", r"1.sub.\1.RDB\2.\3.0", layer)
        return f"model.{numbers.get(layer, inside)}.{kind}"

    return {name(key): tensor for key, tensor in weights.items()}


def wrapped(weights: Weights, wrapper: str) -> dict[str, Tensor]:
    return {f"{wrapper}.{key}": tensor for key, tensor in weights.items()}


def write(path: Path, weights: Weights) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    return path


def enlarged_by(weights: Weights, picture: Picture) -> npt.NDArray[np.float64]:
    """By the formulas, in float64: (scale·h, scale·w, 3) of 0 … 255, not rounded and not clipped."""
    weights = {key: tensor.double() for key, tensor in weights.items()}
    x = torch.tensor(picture, dtype=torch.float64).permute(2, 0, 1)[None] / 255
    large = (_by_rrdb if "conv_first.weight" in weights else _by_compact)(weights, x)
    values: npt.NDArray[np.float64] = (large[0].permute(1, 2, 0) * 255).numpy()
    return values


def _by_rrdb(weights: Weights, x: Tensor) -> Tensor:
    shuffle = round((weights["conv_first.weight"].shape[1] / 3) ** 0.5)
    base = _convolved(weights, "conv_first", _channels_of_pixels(x, shuffle))
    y, block = base, 0
    while f"body.{block}.rdb1.conv1.weight" in weights:
        inside = y
        for dense in (1, 2, 3):
            seen = [inside]
            for number in (1, 2, 3, 4):
                convolved = _convolved(weights, f"body.{block}.rdb{dense}.conv{number}", torch.cat(seen, 1))
                seen.append(_leaky(convolved))
            last = _convolved(weights, f"body.{block}.rdb{dense}.conv5", torch.cat(seen, 1))
            inside = inside + 0.2 * last
        y, block = y + 0.2 * inside, block + 1
    y, doubling = base + _convolved(weights, "conv_body", y), 1
    while f"conv_up{doubling}.weight" in weights:
        y = _leaky(_convolved(weights, f"conv_up{doubling}", _repeated(y, 2)))
        doubling += 1
    return _convolved(weights, "conv_last", _leaky(_convolved(weights, "conv_hr", y)))


def _by_compact(weights: Weights, x: Tensor) -> Tensor:
    y, number = x, 0
    while f"body.{number + 1}.weight" in weights:
        y = _convolved(weights, f"body.{number}", y)
        y = torch.where(y < 0, y * weights[f"body.{number + 1}.weight"][:, None, None], y)
        number += 2
    y = _convolved(weights, f"body.{number}", y)
    scale = round((y.shape[1] / 3) ** 0.5)
    return _pixels_of_channels(y, scale) + _repeated(x, scale)


def _convolved(weights: Weights, layer: str, x: Tensor) -> Tensor:
    return conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1)


def _leaky(x: Tensor) -> Tensor:
    return torch.where(x < 0, 0.2 * x, x)


def _repeated(x: Tensor, times: int) -> Tensor:
    return x.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)


def _channels_of_pixels(x: Tensor, side: int) -> Tensor:
    """Of every channel, `side` × `side` pixels as that many channels, row by row."""
    parts = [x[:, :, row::side, column::side] for row in range(side) for column in range(side)]
    return torch.stack(parts, dim=2).flatten(1, 2)


def _pixels_of_channels(x: Tensor, side: int) -> Tensor:
    n, channels, height, width = x.shape
    large = x.new_zeros(n, channels // side**2, side * height, side * width)
    for row in range(side):
        for column in range(side):
            large[:, :, row::side, column::side] = x[:, row * side + column :: side**2]
    return large
