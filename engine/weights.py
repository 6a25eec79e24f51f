"""A safetensors file's tensors -> memory of their own. Files are read, never mapped.

Touching a mapping of a file that was cut short ends the process (SIGBUS), and one that is overwritten in
place changes weights that are in use. What was read is nobody else's.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import BinaryIO, Protocol, TypeGuard

import torch
from torch import Tensor, UntypedStorage

from engine.header import InvalidFile, read_header

STORED_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "U16": torch.uint16,
        "U32": torch.uint32,
        "U64": torch.uint64,
        "I8": torch.int8,
        "I16": torch.int16,
        "I32": torch.int32,
        "I64": torch.int64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F32": torch.float32,
        "F64": torch.float64,
    }
)
"""Of the types that `header` knows."""
HASHED_AT_ONCE = 2**20
"""Bytes: they stay in the processor's cache."""

Version = tuple[int, int, int, int]
"""What changes when a file does: device, inode, size, mtime in nanoseconds."""


class Target(Protocol):
    """Where values are read to: a tensor, or what keeps them in a form of its own."""

    @property
    def device(self) -> torch.device: ...
    def copy_(self, values: Tensor, /) -> object: ...


class TensorFile:
    """An open file, the same from its header to its last byte, or an error. Raises InvalidFile, OSError.

    Any thread may read; none moves the file's position.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.version = _version(file)
        self.header = read_header(file)
        self._begins: dict[UntypedStorage, int] = {}

    def outlines(self) -> dict[str, Tensor]:
        """All tensors, as stored but without values (on torch's meta device), the header checked.

        What is made of one by views can be read: it says where in the file its values are.
        """
        self.header.check(self.version[2])
        found = {}
        for name, stored in self.header.tensors.items():
            outline = torch.empty(stored.shape, dtype=STORED_DTYPES[stored.dtype], device="meta")
            self._begins[outline.untyped_storage()] = self.header.length + stored.begin
            found[name] = outline
        return found

    @torch.inference_mode()
    def read_into(self, wanted: Iterable[tuple[Tensor, Target]]) -> None:
        """Fill tensors: pairs of an outline's view and the target for its values, of any type and device.

        In the order of the file. Takes one tensor's memory besides, and none for what is on the CPU and
        stored as it is wanted, which is read to where it shall be.
        """
        for begin, outline, target in sorted(
            ((self._begin(outline), outline, target) for outline, target in wanted), key=lambda each: each[0]
        ):
            if _as_stored(target, outline):
                self._read(begin, target)
            else:
                staged = torch.empty(_extent(outline), dtype=outline.dtype)
                self._read(begin, staged)
                target.copy_(staged.as_strided(outline.shape, outline.stride()).to(target.device))
        self._check_unchanged()

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors as stored, on the CPU."""
        outlines = self.outlines()
        tensors = {name: torch.empty_like(outlines[name], device="cpu") for name in names}
        self.read_into((outlines[name], tensor) for name, tensor in tensors.items())
        return tensors

    def sha256(self, begin: int = 0) -> str:
        """Of the bytes from `begin` on."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(HASHED_AT_ONCE))
        while count := os.preadv(self._file.fileno(), [buffer], begin):
            digest.update(buffer[:count])
            begin += count
        self._check_unchanged()
        return digest.hexdigest()

    def _begin(self, outline: Tensor) -> int:
        return self._begins[outline.untyped_storage()] + int(outline.storage_offset()) * outline.itemsize

    def _read(self, begin: int, target: Tensor) -> None:
        rest = target.view(-1).view(torch.uint8).numpy().data
        while rest:
            count = os.preadv(self._file.fileno(), [rest], begin)
            if not count:
                raise InvalidFile("it was cut short while it was read")
            rest, begin = rest[count:], begin + count

    def _check_unchanged(self) -> None:
        if _version(self._file) != self.version:
            raise InvalidFile("it was changed while it was read")


class Digests:
    """Files' SHA-256, remembered by the version of the file. Any thread may ask."""

    def __init__(self) -> None:
        self._known: dict[Version, str] = {}

    def of(self, file: TensorFile) -> str:
        """Takes 0.7 s for each GB the first time."""
        if file.version not in self._known:
            self._known[file.version] = file.sha256()
        return self._known[file.version]


def _as_stored(target: Target, outline: Tensor) -> TypeGuard[Tensor]:
    """Whether the file's bytes, as they are, are the target's."""
    return (
        isinstance(target, Tensor)
        and target.device.type == "cpu"
        and target.dtype is outline.dtype
        and target.is_contiguous()
        and outline.is_contiguous()
    )


def _version(file: BinaryIO) -> Version:
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _extent(outline: Tensor) -> int:
    """Elements from a view's first to its last."""
    steps = zip(outline.shape, outline.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps) if outline.numel() else 0
