"""Which network an upscaler's file holds, told by its header's names and shapes. Standard library only.

ESRGAN's network (Wang et al. 2018) goes by three sets of names: that of the first release, whose layers are
numbered, that of the second, and Real-ESRGAN's (Wang et al. 2021), which is the one used here. The compact
network is Real-ESRGAN's too.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from engine.protocol import UpscalerError

Shape = tuple[int, ...]

WRAPPERS = ("params_ema.", "params.")
"""What stands before the names in training's own files; where there are both, the average is taken."""

SCALES = (1, 2, 3, 4, 8)
SHUFFLES = (1, 2, 4)

RENAMED = (
    (r"RRDB_trunk\.(\d+)\.RDB(\d)\.(conv\d)\.(\w+)", r"body.\1.rdb\2.\3.\4"),
    (r"trunk_conv\.(\w+)", r"conv_body.\1"),
    (r"upconv(\d)\.(\w+)", r"conv_up\1.\2"),
    (r"HRconv\.(\w+)", r"conv_hr.\1"),
    (r"model\.1\.sub\.(\d+)\.RDB(\d)\.(conv\d)\.0\.(\w+)", r"body.\1.rdb\2.\3.\4"),
    (r"model\.1\.sub\.\d+\.(\w+)", r"conv_body.\1"),
)
"""Names of the first two releases, but for the numbered layers around the blocks."""
NUMBERED = re.compile(r"model\.(\d{1,3})\.(\w+)")

OTHERS = (
    ("layers.0.residual_group.overlap_attn.", "HAT"),
    ("layers.0.swin1.", "DRCT"),
    ("before_RG.", "DAT"),
    ("layers.0.residual_group.", "SwinIR"),
    ("m_head.", "SCUNet"),
    ("block_1.c1_r.", "SPAN"),
    ("feats.1.lk.", "PLKSR"),
    ("residual_layer.0.residual_layer.", "OmniSR"),
    ("unet1.conv1.", "Real-CUGAN"),
    ("f_HR_conv1.", "SPSR"),
    (".conv1x1.", "ESRGAN+"),
    ("stylegan_decoder.", "GFPGAN"),
    ("quantize.embedding.", "CodeFormer"),
)
"""Networks that are not run here, by what only their names contain; the more particular ones first."""


@dataclass(frozen=True, slots=True)
class Rrdb:
    """Residual blocks in residual blocks, then `doublings` of the size.

    `shuffle` × `shuffle` pixels are one pixel of more channels to it.
    """

    features: int
    growth: int
    blocks: int
    doublings: int
    shuffle: int

    @property
    def scale(self) -> int:
        return (1 << self.doublings) // self.shuffle


@dataclass(frozen=True, slots=True)
class Compact:
    """One convolution behind another, `layers` of them between the first and the last."""

    features: int
    layers: int
    scale: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The network, and the file's key for each of its parameters. There may be keys of no parameter."""

    network: Rrdb | Compact
    keys: Mapping[str, str]


def told(shapes: Mapping[str, Shape], name: str) -> Layout:
    """Raises UpscalerError: for another network by its name, for what else is none of these."""
    for mark, other in OTHERS:
        if any(mark in key for key in shapes):
            raise UpscalerError(
                f"upscaler {name!r} is {other}; this version runs networks of ESRGAN's kind only"
            )
    unwrapped = _unwrapped(shapes)
    keys = _renamed(unwrapped)
    if len(keys) < len(unwrapped):
        raise UpscalerError(f"upscaler {name!r} has a layer under two names")
    own = {parameter: shapes[key] for parameter, key in keys.items()}
    if "conv_first.weight" in own and "body.0.rdb1.conv1.weight" in own:
        return Layout(_rrdb(own, name), keys)
    if len(own.get("body.0.weight", ())) == 4 and len(own.get("body.1.weight", ())) == 1:
        return Layout(_compact(own, name), keys)
    raise UpscalerError(f"upscaler {name!r} is not a model of ESRGAN's kind")


def _unwrapped(keys: Iterable[str]) -> dict[str, str]:
    """The keys by what they are without a wrapper."""
    for wrapper in WRAPPERS:
        if wrapped := {key.removeprefix(wrapper): key for key in keys if key.startswith(wrapper)}:
            return wrapped
    return {key: key for key in keys}


def _renamed(keys: Mapping[str, str]) -> dict[str, str]:
    """The same by Real-ESRGAN's names."""
    last = max((int(match[1]) for key in keys if (match := NUMBERED.fullmatch(key))), default=0)
    return {_current_name(key, last): stored for key, stored in keys.items()}


def _current_name(key: str, last: int) -> str:
    if match := NUMBERED.fullmatch(key):
        return f"{_numbered(int(match[1]), last)}.{match[2]}"
    for pattern, name in RENAMED:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return key


def _numbered(number: int, last: int) -> str:
    """A convolution around the blocks by its number among all layers.

    Each doubling takes three numbers: itself, its convolution and its activation.
    """
    if number in (0, last - 2, last):
        return {0: "conv_first", last - 2: "conv_hr", last: "conv_last"}[number]
    return f"conv_up{number // 3}" if number % 3 == 0 else f"model.{number}"


def _rrdb(shapes: Mapping[str, Shape], name: str) -> Rrdb:
    features, channels = _convolution(shapes, "conv_first", name)
    network = Rrdb(
        features=features,
        growth=_convolution(shapes, "body.0.rdb1.conv1", name)[0],
        blocks=_count(shapes, r"body\.(\d+)\..*"),
        doublings=_count(shapes, r"(conv_up\d)\.weight"),
        shuffle=max(1, math.isqrt(channels // 3)),
    )
    _check_colours(channels, 3 * network.shuffle**2, name)
    _check_colours(_convolution(shapes, "conv_last", name)[0], 3, name)
    if network.shuffle not in SHUFFLES:
        raise UpscalerError(f"upscaler {name!r} takes {network.shuffle} pixels of a side for one")
    _check_scale((1 << network.doublings) / network.shuffle, name)
    return network


def _compact(shapes: Mapping[str, Shape], name: str) -> Compact:
    features, channels = _convolution(shapes, "body.0", name)
    layers = _count(shapes, r"body\.(\d+)\.weight") // 2 - 1
    out, _ = _convolution(shapes, f"body.{2 * layers + 2}", name)
    network = Compact(features, layers, scale=max(1, math.isqrt(out // 3)))
    _check_colours(channels, 3, name)
    _check_colours(out, 3 * network.scale**2, name)
    _check_scale(network.scale, name)
    return network


def _check_colours(channels: int, expected: int, name: str) -> None:
    if channels != expected:
        raise UpscalerError(f"upscaler {name!r} has {channels} channels where RGB would have {expected}")


def _check_scale(scale: float, name: str) -> None:
    if scale not in SCALES:
        allowed = ", ".join(map(str, SCALES))
        raise UpscalerError(f"upscaler {name!r} has the scale {scale:g}; allowed are {allowed}")


def _count(shapes: Iterable[str], pattern: str) -> int:
    """How many different places the names have by a pattern's group."""
    return len({match[1] for key in shapes if (match := re.fullmatch(pattern, key))})


def _convolution(shapes: Mapping[str, Shape], layer: str, name: str) -> tuple[int, int]:
    """Channels out and in."""
    shape = shapes.get(f"{layer}.weight", ())
    if len(shape) != 4 or not all(shape):
        raise UpscalerError(f"upscaler {name!r} has no convolution {layer}")
    return shape[0], shape[1]
