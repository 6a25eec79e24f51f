"""Networks of ESRGAN's kind, against the papers' formulas in float64; files of every layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.images import Picture
from engine.protocol import NotFinite, UpscalerError
from engine.upscalers.upscaler import Upscaler, load
from tests import upscalers

CPU = torch.device("cpu")


def picture(width: int = 20, height: int = 12, seed: int = 1) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Upscaler]:
    """The upscaler of these weights, by way of a file."""

    def loaded(weights: dict[str, Tensor], max_bytes: int = 2**20) -> Upscaler:
        path = upscalers.write(tmp_path / "x.safetensors", weights)
        return load(path, device=CPU, dtype=torch.float32, max_bytes=max_bytes)

    return loaded


def enlarged(upscaler: Upscaler, given: Picture) -> Picture:
    large = upscaler(given)
    assert isinstance(large, np.ndarray)
    return large


RRDB = [(0, 1, 1), (1, 1, 2), (2, 1, 4), (3, 1, 8), (2, 2, 2), (2, 4, 1)]
"""Doublings, pixels of a side taken for one, and the scale that they make."""


@pytest.mark.parametrize(("doublings", "shuffle", "scale"), RRDB)
def test_the_large_network_is_the_papers(
    loaded: Callable[..., Upscaler], doublings: int, shuffle: int, scale: int
) -> None:
    weights = upscalers.rrdb(doublings=doublings, shuffle=shuffle, blocks=2)
    check_against_formulas(loaded(weights), weights, scale)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_the_compact_network_is_the_papers(loaded: Callable[..., Upscaler], scale: int) -> None:
    weights = upscalers.compact(scale=scale)
    check_against_formulas(loaded(weights), weights, scale)


def check_against_formulas(upscaler: Upscaler, weights: dict[str, Tensor], scale: int) -> None:
    given = picture()
    ours, expected = enlarged(upscaler, given), upscalers.enlarged_by(weights, given)
    assert upscaler.scale == scale
    assert ours.shape == expected.shape == (12 * scale, 20 * scale, 3)
    assert np.abs(ours - expected.clip(0, 255)).max() < 0.501
    assert expected.std() > 10
    assert ((expected > 0) & (expected < 255)).mean() > 0.5


@pytest.mark.parametrize("wrapper", ["", "params", "params_ema"])
@pytest.mark.parametrize(
    ("layout", "options"),
    [
        *[("first_release", {"doublings": doublings}) for doublings in (0, 1, 2, 3)],
        *[("second_release", {"doublings": doublings, "shuffle": 2}) for doublings in (1, 2)],
    ],
)
def test_a_network_is_the_same_under_all_its_names(
    loaded: Callable[..., Upscaler], layout: str, options: dict[str, Any], wrapper: str
) -> None:
    weights = upscalers.rrdb(blocks=2, **options)
    plain = enlarged(loaded(weights), picture())
    named = getattr(upscalers, layout)(weights)
    assert not named.keys() & {"conv_body.weight", "conv_hr.weight"}
    upscaler = loaded(upscalers.wrapped(named, wrapper) if wrapper else named)
    assert np.array_equal(enlarged(upscaler, picture()), plain)


def test_of_two_sets_of_weights_the_averaged_is_taken(loaded: Callable[..., Upscaler]) -> None:
    average, last = upscalers.compact(seed=1), upscalers.compact(seed=2)
    both = upscalers.wrapped(last, "params") | upscalers.wrapped(average, "params_ema")
    assert np.array_equal(enlarged(loaded(both), picture()), enlarged(loaded(average), picture()))


@pytest.mark.parametrize("shuffle", [2, 4])
def test_sides_that_are_no_multiples_are_filled_up_and_cut(
    loaded: Callable[..., Upscaler], shuffle: int
) -> None:
    weights = upscalers.rrdb(shuffle=shuffle)
    given = picture(19, 13)
    filled = np.pad(given, ((0, -13 % shuffle), (0, -19 % shuffle), (0, 0)), mode="edge")
    expected = upscalers.enlarged_by(weights, filled)[: 13 * (4 // shuffle), : 19 * (4 // shuffle)]
    assert np.abs(enlarged(loaded(weights), given) - expected.clip(0, 255)).max() < 0.501


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_any_precision_are_read(loaded: Callable[..., Upscaler], dtype: torch.dtype) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in upscalers.rrdb().items()}
    exact = {key: tensor.float() for key, tensor in stored.items()}
    assert np.array_equal(enlarged(loaded(stored), picture()), enlarged(loaded(exact), picture()))


def test_what_overflows_is_told_instead_of_a_picture(loaded: Callable[..., Upscaler]) -> None:
    large = {key: tensor * 1e20 for key, tensor in upscalers.compact().items()}
    answer = loaded(large)(picture())
    assert isinstance(answer, NotFinite)
    assert "'x'" in answer.message


def test_weights_are_not_mapped(loaded: Callable[..., Upscaler], tmp_path: Path) -> None:
    """A file that is overwritten in place changes nothing."""
    upscaler = loaded(upscalers.compact())
    before = enlarged(upscaler, picture())
    path = tmp_path / "x.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert np.array_equal(enlarged(upscaler, picture()), before)


def changed(weights: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """With tensors put in or, where None, taken out; `__` in a name stands for a dot."""
    named = {key.replace("__", "."): tensor for key, tensor in changes.items()}
    return {key: tensor for key, tensor in (weights | named).items() if tensor is not None}


SMALL = upscalers.rrdb()


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (changed(SMALL, conv_hr__bias=None), "has no conv_hr.bias"),
        (changed(SMALL, conv_hr__bias=torch.zeros(9)), "malformed: conv_hr.bias is 9, not 8"),
        (changed(SMALL, body__0__rdb2__conv2__weight=torch.zeros(4, 8, 3, 3)), "4×8×3×3, not 4×12×3×3"),
        (changed(SMALL, body__9__rdb1__conv1__weight=torch.zeros(4, 8, 3, 3)), "has no body.1.rdb1"),
        (changed(SMALL, attention=torch.zeros(1)), "1 keys of no layer: attention"),
        (changed(SMALL, conv_hr__bias=torch.full((8,), torch.nan)), "not finite at conv_hr.bias in float32"),
        (changed(SMALL, conv_hr__bias=torch.zeros(8, dtype=torch.int32)), "stored as I32, not as one of"),
        (
            changed(upscalers.compact(), body__1__weight=torch.zeros(7)),
            "malformed: body.1.weight is 7, not 8",
        ),
    ],
)
def test_what_is_malformed_is_refused_with_the_reason(
    loaded: Callable[..., Upscaler], weights: dict[str, Tensor], reason: str
) -> None:
    with pytest.raises(UpscalerError, match=f"upscaler 'x'.*{reason}"):
        loaded(weights)


def test_what_is_larger_than_the_budget_is_refused(loaded: Callable[..., Upscaler]) -> None:
    size = sum(4 * tensor.numel() for tensor in SMALL.values())
    assert loaded(SMALL, max_bytes=size).bytes == size
    with pytest.raises(UpscalerError, match="upscalers may take"):
        loaded(SMALL, max_bytes=size - 1)
