"""LoRA files -> low-rank changes of a model's layers. Local safetensors only, checked before they are read.

A layer with weight W becomes W + weight · (alpha / rank) · up · down (Hu et al. 2021); a convolution's `down`
has its kernel and its `up` is 1×1 (LoCon). With a `mid`, `down` and `up` are both 1×1.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, get_args

import torch
from torch import Tensor, nn

from engine.header import FLOATS, Header, InvalidFile
from engine.lora import names
from engine.protocol import LoraError
from engine.weights import TensorFile

UNUSUAL = ("alpha_pattern", "use_rslora", "use_dora")
"""What PEFT's configuration must not say: it would change the scale, or the kind of network."""
SHOWN = 3
"""How many of a file's keys an error names."""

Shape = tuple[int, ...]
Part = Literal["unet", "text_encoder", "text_encoder_2"]
TEXT_PARTS: Sequence[Part] = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that a LoRA may change: where it is, and its weight's shape."""

    part: Part
    path: str
    shape: Shape

    def __str__(self) -> str:
        return f"{self.part}.{self.path}"


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """scale · up(down(x)): `down` is (rank, in[, kh, kw]), `up` is (out, rank[, 1, 1])."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return len(self.down)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Lora:
    """A loaded file. `digest` is of its tensors and tells contents apart; `hash` is what infotexts show."""

    name: str
    hash: str
    digest: str
    bytes: int
    unet: Mapping[str, LowRank]
    text_encoder: Mapping[str, LowRank]
    text_encoder_2: Mapping[str, LowRank] = field(default_factory=dict)


def layers(unet: nn.Module, *text_encoders: nn.Module) -> dict[str, Layer]:
    """Every layer that a LoRA may change, under every name that a file may have for it."""
    found: dict[str, Layer] = {}
    resnets = unet.get_submodule("down_blocks.0.resnets")
    for path, shape in _changeable(unet):
        layer = Layer("unet", path, shape)
        found.update(dict.fromkeys(names.unet_names(path, len(list(resnets.children()))), layer))
    for number, text_encoder in enumerate(text_encoders):
        part = TEXT_PARTS[number]
        for path, shape in _changeable(text_encoder):
            layer = Layer(part, path, shape)
            known_as = names.text_names(path.removeprefix("text_model."), number, len(text_encoders))
            found.update(dict.fromkeys(known_as, layer))
    return found


def _changeable(module: nn.Module) -> list[tuple[str, Shape]]:
    return [
        (path, tuple(layer.weight.shape))
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]


def tensor_file(file: BinaryIO, name: str) -> TensorFile:
    """A file that has just been opened, with its header. Raises LoraError."""
    try:
        return TensorFile(file)
    except InvalidFile as error:
        raise LoraError(f"LoRA {name!r} is no safetensors file: {error}") from None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which of a file's keys change which layer, checked against the model; `numbers` to be loaded."""

    changes: Mapping[Layer, Mapping[str, str]]
    numbers: int


def plan(header: Header, known: Mapping[str, Layer], name: str) -> Plan:
    """What a file would change, from its header alone.

    Raises LoraError: for another kind of network by its name, for a layer of another shape with both
    shapes, for tensors that no layer of this model answers to with some of their keys.
    """
    if kind := names.refused_kind(header.tensors):
        raise LoraError(f"LoRA {name!r} is a {kind}; this version applies plain low-rank changes only")
    changes: dict[Layer, dict[str, str]] = {}
    unknown = []
    for key in header.tensors:
        ending = names.split(key)
        layer = known.get(ending[0]) if ending else None
        if ending is None or layer is None:
            unknown.append(key)
        elif changes.setdefault(layer, {}).setdefault(ending[1], key) != key:
            raise LoraError(f"LoRA {name!r} changes layer {layer} twice")
    for layer, keys in changes.items():
        _check(layer, keys, header, name)
    if unknown:
        shown = ", ".join(unknown[:SHOWN])
        raise LoraError(f"LoRA {name!r} has {len(unknown)} keys of no layer of this checkpoint: {shown}")
    if not changes:
        raise LoraError(f"LoRA {name!r} changes nothing")
    numbers = sum(
        header.tensors[keys["down"]].shape[0] * (layer.shape[0] + math.prod(layer.shape[1:]))
        for layer, keys in changes.items()
    )
    return Plan(changes, numbers)


def _check(layer: Layer, keys: Mapping[str, str], header: Header, name: str) -> None:
    missing = [part for part in ("down", "up") if part not in keys]
    if missing:
        raise LoraError(f"LoRA {name!r} has no {' and no '.join(missing)} for layer {layer}")
    for part, key in keys.items():
        dtype = header.tensors[key].dtype
        if part != "alpha" and dtype not in FLOATS:
            raise LoraError(f"LoRA {name!r} is stored as {dtype}, not as one of {FLOATS}")
    shape = {part: header.tensors[key].shape for part, key in keys.items()}
    if not _is_low_rank(shape):
        stored = " and ".join(
            f"{part} {_shown(shape[part])}" for part in ("down", "mid", "up") if part in shape
        )
        raise LoraError(f"LoRA {name!r} is malformed at layer {layer}: {stored}")
    change = (shape["up"][0], shape["down"][1], *shape.get("mid", shape["down"])[2:])
    if _matrix(change) != _matrix(layer.shape):
        raise LoraError(
            f"LoRA {name!r} does not fit this checkpoint: layer {layer} is {_shown(layer.shape)} here "
            f"and {_shown(change)} in the file"
        )


def _is_low_rank(shape: Mapping[str, Shape]) -> bool:
    """Whether the parts of one change can be multiplied, whatever layer they are for."""
    down, up, mid, alpha = shape["down"], shape["up"], shape.get("mid"), shape.get("alpha", ())
    if not all(len(part) in (2, 4) and math.prod(part) for part in (down, up)) or math.prod(alpha) != 1:
        return False
    rank = down[0]
    plain = up[1] == rank and _matrix(up) == up[:2]
    if mid is None:
        return plain
    return plain and _matrix(down) == down[:2] and len(mid) == 4 and mid[:2] == (rank, rank)


def _matrix(shape: Shape) -> Shape:
    """A 1×1 convolution's shape as the linear layer's that it is."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _shown(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def load(file: TensorFile, plan: Plan, name: str, *, device: torch.device, dtype: torch.dtype) -> Lora:
    """Read what the plan is of. Raises LoraError for a file that is damaged or not finite in `dtype`."""
    try:
        tensors = file.read(key for keys in plan.changes.values() for key in keys.values())
        digest = file.sha256(file.header.length)
    except InvalidFile as error:
        raise LoraError(f"LoRA {name!r} is no valid safetensors file: {error}") from None
    trained = _alphas(file.header, name)
    parts: dict[Part, dict[str, LowRank]] = {part: {} for part in get_args(Part)}
    for layer, keys in plan.changes.items():
        stored = {part: tensors[key] for part, key in keys.items()}
        change = _low_rank(layer, stored, trained[layer.part], dtype)
        if not (_finite(change.down) and _finite(change.up) and math.isfinite(change.scale)):
            raise LoraError(f"LoRA {name!r} is not finite at layer {layer} in {str(dtype)[6:]}")
        parts[layer.part][layer.path] = LowRank(change.down.to(device), change.up.to(device), change.scale)
    return Lora(
        name=name,
        hash=_shown_hash(file.header, digest),
        digest=digest,
        bytes=sum(t.nbytes for part in parts.values() for c in part.values() for t in (c.down, c.up)),
        unet=parts["unet"],
        text_encoder=parts["text_encoder"],
        text_encoder_2=parts["text_encoder_2"],
    )


def _low_rank(layer: Layer, stored: Mapping[str, Tensor], alpha: float | None, dtype: torch.dtype) -> LowRank:
    """`alpha` is what holds where the file has none for the layer; None is the rank."""
    down, up = stored["down"], stored["up"]
    rank = len(down)
    if "mid" in stored:  # a 1×1 convolution before a larger one is one convolution
        down = torch.einsum("abhw,bi->aihw", stored["mid"].float(), down.float().reshape(rank, -1))
    kernel = layer.shape[2:]
    down = down.reshape(rank, layer.shape[1], *kernel)
    up = up.reshape(layer.shape[0], rank, *(1 for _ in kernel))
    own = float(stored["alpha"]) if "alpha" in stored else rank if alpha is None else alpha
    return LowRank(down.to(dtype), up.to(dtype), own / rank)


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _shown_hash(header: Header, digest: str) -> str:
    """Twelve digits: of the trainer's own hash where it says one, else of the tensors' SHA-256."""
    trainers = header.metadata.get("sshs_model_hash", "")
    return (trainers if re.fullmatch(r"[0-9a-f]{12,64}", trainers) else digest)[:12]


def _alphas(header: Header, name: str) -> dict[Part, float | None]:
    """diffusers keeps the alpha of a whole part in the header, as JSON of PEFT's configuration."""
    try:
        said = json.loads(header.metadata.get("lora_adapter_metadata", "{}"))
        unusual = [
            key for key in said if key.endswith(("alpha_pattern", "use_rslora", "use_dora")) and said[key]
        ]
        alphas = {part: said.get(f"{part}.lora_alpha", said.get("lora_alpha")) for part in get_args(Part)}
        found = {part: None if alpha is None else float(alpha) for part, alpha in alphas.items()}
    except (ValueError, TypeError, AttributeError):
        raise LoraError(f"LoRA {name!r} has a lora_adapter_metadata that cannot be read") from None
    if unusual:
        raise LoraError(f"LoRA {name!r} uses {unusual[0]}, which this version does not apply")
    return found
