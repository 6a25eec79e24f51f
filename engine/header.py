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
from types import MappingProxyType
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 16 * 2**20
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types that weights are stored as, 8-bit ones aside."""

ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
        **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
        **dict.fromkeys(("U32", "I32", "F32"), 4),
        **dict.fromkeys(("U64", "I64", "F64"), 8),
    }
)


class InvalidFile(ValueError):
    """What is wrong with a file, for whoever asked for it to word. It names neither the file nor its path."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its type's name there, and its bytes, from `begin` to `end` behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: metadata, and its tensors by name. Its own bytes are the first `length`."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, Stored]
    length: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.tensors.items()}

    def check(self, size: int) -> None:
        """Raises InvalidFile unless tensors of known types fill a file of `size` bytes exactly."""
        size -= self.length
        places = sorted((stored.begin, stored.end) for stored in self.tensors.values())
        if any(end != begin for (_, end), (begin, _) in pairwise([(0, 0), *places, (size, size)])):
            raise InvalidFile(f"its tensors do not fill its {size} bytes one behind another")
        for name, stored in self.tensors.items():
            if stored.dtype not in ITEM_BYTES:
                raise InvalidFile(f"it holds tensors of the unknown type {stored.dtype[:20]!r}")
            if stored.end - stored.begin != math.prod(stored.shape) * ITEM_BYTES[stored.dtype]:
                raise InvalidFile(f"{name[:100]} has not as many bytes as its shape says")


def read_header(file: BinaryIO) -> Header:
    """The header of a file that has just been opened, as it says. Raises InvalidFile if it cannot be read."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise InvalidFile(f"its header would be {length} bytes; 2 to {MAX_HEADER_BYTES} are allowed")
    try:
        entries = json.loads(file.read(length))
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        tensors = {name: _stored(entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InvalidFile("its header cannot be read") from None
    return Header(metadata, tensors, 8 + length)


def _stored(entry: Mapping[str, Any]) -> Stored:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or begin > end:
        raise ValueError(entry)
    return Stored(str(entry["dtype"]), shape, begin, end)
