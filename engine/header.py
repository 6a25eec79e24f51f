"""A safetensors file's header, checked before any tensor is read. Standard library only.

The format: eight bytes of length, little-endian, then JSON of each tensor's type, shape and place, then the
tensors one behind another.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engine.protocol import CheckpointError

MAX_HEADER_BYTES = 16 * 2**20

ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
        **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
        **dict.fromkeys(("U32", "I32", "F32"), 4),
        **dict.fromkeys(("U64", "I64", "F64"), 8),
    }
)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: metadata, and its tensors' shapes by name."""

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


def read_header(path: Path) -> Header:
    """Raises CheckpointError, without the path, unless tensors of known types fill the file exactly."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise _invalid(path, f"its header would be {length} bytes; 2 to {MAX_HEADER_BYTES} are allowed")
        text = file.read(length)
    try:
        entries = json.loads(text)
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        shapes = {name: _shape(entry) for name, entry in entries.items()}
        places = {name: _place(entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _invalid(path, "its header cannot be read") from None
    _check_places(path, places, 8 + length)
    for name, entry in entries.items():
        begin, end = places[name]
        if end - begin != math.prod(shapes[name]) * _item_bytes(path, entry["dtype"]):
            raise _invalid(path, f"{name[:100]} has not as many bytes as its shape says")
    return Header(metadata, shapes)


def _shape(entry: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tuple(entry["shape"])
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(shape)
    return shape


def _place(entry: Mapping[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    if not (type(begin) is type(end) is int and 0 <= begin <= end):
        raise ValueError((begin, end))
    return begin, end


def _check_places(path: Path, places: Mapping[str, tuple[int, int]], start: int) -> None:
    """The tensors leave no gap, share no byte and end where the file ends."""
    size = path.stat().st_size - start
    borders = [(0, 0), *sorted(places.values()), (size, size)]
    if any(end != begin for (_, end), (begin, _) in pairwise(borders)):
        raise _invalid(path, f"its tensors do not fill its {size} bytes one behind another")


def _item_bytes(path: Path, dtype: object) -> int:
    if dtype not in ITEM_BYTES:
        raise _invalid(path, f"it holds tensors of the unknown type {str(dtype)[:20]!r}")
    return ITEM_BYTES[str(dtype)]


def _invalid(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path.name} is not a valid safetensors file: {reason}")
