"""Tensors are read whole, as they are stored or as they are wanted, or not at all; none is a mapping."""

import json
import os
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.header import ITEM_BYTES, InvalidFile
from engine.weights import STORED_DTYPES, Digests, TensorFile

LONG_AGO = 10**9
"""Nanoseconds: whatever writes to a file makes it younger."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(path: Path, **tensors: Tensor) -> Path:
    save_file(tensors, path)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return path


def as_bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy())


def test_every_type_that_a_header_may_name_is_read_as_it_is_stored(tmp_path: Path) -> None:
    assert STORED_DTYPES.keys() == ITEM_BYTES.keys()
    random_bytes = torch.randint(0, 2, (48,), dtype=torch.uint8)
    tensors = {name: random_bytes.view(dtype).clone() for name, dtype in STORED_DTYPES.items()}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 3)}
    with write(tmp_path / "x", **tensors).open("rb") as file:
        read = TensorFile(file).read(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype is tensor.dtype
        assert read[name].shape == tensor.shape
        assert as_bytes(read[name]) == as_bytes(tensor)


def test_tensors_may_stand_where_no_type_would_be_aligned(tmp_path: Path) -> None:
    entries = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(entries).encode()
    header = struct.pack("<Q", len(text)) + text
    (tmp_path / "x").write_bytes(header + bytes(3) + struct.pack("<2f", 1.0, -2.0))
    with (tmp_path / "x").open("rb") as file:
        assert TensorFile(file).read(["b"])["b"].tolist() == [1.0, -2.0]


@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.float8_e4m3fn])
def test_views_are_read_to_where_they_are_wanted_and_as_they_are_wanted(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype
) -> None:
    joined, matrix, kernel = random(6, 4).to(stored), random(3, 5).to(stored), random(2, 2, 1, 1).to(stored)
    with write(tmp_path / "x", joined=joined, matrix=matrix, kernel=kernel).open("rb") as opened:
        file = TensorFile(opened)
        outlines = file.outlines()
        expected = [*joined.chunk(3), matrix.T, matrix[:, 1:3], kernel[:, :, 0, 0]]
        views = [
            *outlines["joined"].chunk(3),
            outlines["matrix"].T,
            outlines["matrix"][:, 1:3],
            outlines["kernel"][:, :, 0, 0],
        ]
        targets = [torch.empty(view.shape, dtype=wanted) for view in views]
        addresses = [target.data_ptr() for target in targets]
        file.read_into(zip(views, targets, strict=True))
    assert [target.data_ptr() for target in targets] == addresses
    for target, tensor in zip(targets, expected, strict=True):
        assert torch.equal(target, tensor.to(wanted))


def test_memory_of_any_layout_is_filled(tmp_path: Path) -> None:
    kernel = random(4, 3, 2, 2)
    target = torch.empty_like(kernel, memory_format=torch.channels_last)
    with write(tmp_path / "x", kernel=kernel).open("rb") as opened:
        file = TensorFile(opened)
        file.read_into([(file.outlines()["kernel"], target)])
    assert torch.equal(target, kernel)
    assert target.is_contiguous(memory_format=torch.channels_last)


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    """Else 64 GiB would be: the file has them as a hole."""
    hole = 2**36
    entries = {
        "hole": {"dtype": "U8", "shape": [hole], "data_offsets": [0, hole]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [hole, hole + 4]},
    }
    text = json.dumps(entries).encode()
    with (tmp_path / "x").open("w+b") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.seek(hole, os.SEEK_CUR)
        file.write(struct.pack("<f", 3.0))
        file.seek(0)
        assert TensorFile(file).read(["b"])["b"].tolist() == [3.0]


def test_file_that_is_cut_short_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x", a=random(1000), b=random(1000))
    with path.open("rb") as opened:
        file = TensorFile(opened)
        os.truncate(path, path.stat().st_size - 2000)
        with pytest.raises(InvalidFile, match="cut short"):
            file.read(["a", "b"])


def test_file_that_is_written_to_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x", a=random(1000))
    with path.open("rb") as opened:
        file = TensorFile(opened)
        with path.open("r+b") as other:
            other.seek(-4, os.SEEK_END)
            other.write(bytes(4))
        with pytest.raises(InvalidFile, match="changed"):
            file.read(["a"])
        with pytest.raises(InvalidFile, match="changed"):
            file.sha256()


def test_file_that_is_replaced_by_renaming_while_it_is_open_is_read_as_it_was(tmp_path: Path) -> None:
    path, other = write(tmp_path / "x", a=random(1000)), write(tmp_path / "y", a=random(1000, seed=1))
    with path.open("rb") as opened:
        file = TensorFile(opened)
        other.replace(path)
        assert torch.equal(file.read(["a"])["a"], random(1000))


def test_what_was_read_does_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    path = write(tmp_path / "x", a=random(100_000))
    with path.open("rb") as file:
        read = TensorFile(file).read(["a"])["a"]
    if sys.platform == "linux":
        assert str(path) not in Path("/proc/self/maps").read_text()
    path.write_bytes(b"")
    assert torch.equal(read, random(100_000))


def test_a_digest_is_made_once_for_each_version_of_a_file(tmp_path: Path) -> None:
    digests = Digests()

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return digests.of(TensorFile(file))

    path = write(tmp_path / "x", a=random(10))
    first = digest(path)
    path.write_bytes(write(tmp_path / "y", a=random(10, seed=1)).read_bytes())
    assert digest(path) == digest(tmp_path / "y") != first
    os.utime(path, ns=(LONG_AGO, LONG_AGO))  # as if nothing had been written
    assert digest(path) == first
