"""The class fp8: what its layers compute, and that all else works on them as on others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.checkpoint import (
    LoadedCheckpoint,
    assemble,
    in_quality,
    load_checkpoint,
    make_strict,
    swap_checkpoint,
)
from engine.fp8 import FLOAT8, Float8Conv2d, Float8Linear, Float8Weight, check_capability, quantised
from engine.images import Picture
from engine.lora.store import LoraSettings
from engine.ops import Evaluate
from engine.protocol import CheckpointError
from engine.quality import quality_of
from tests import loras
from tests.drawing import drawn
from tests.jobs import make_job
from tests.tiny import tiny_modules, write_checkpoint

CPU = torch.device("cpu")
FP8 = quality_of("fp8")


def assembled(*modules: nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> LoadedCheckpoint:
    exact = assemble(*(modules or tiny_modules()), device=CPU, dtype=dtype, **options)
    return in_quality(exact, FP8)


@pytest.fixture(scope="module")
def fp8() -> LoadedCheckpoint:
    return assembled()


def distance(picture: Picture, other: Picture) -> float:
    return float(np.abs(picture.astype(float) - other).mean())


def relative(values: Tensor, exact: Tensor) -> float:
    return float((values.double() - exact).norm() / exact.norm())


def dequantised(weight: Float8Weight) -> Tensor:
    numbers = weight.numbers.double() * weight.scales.T
    return numbers.reshape(weight.shape[0], *weight.shape[2:], weight.shape[1]).movedim(-1, 1)


LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (Float8Linear(nn.Linear(32, 48)), torch.randn(3, 10, 32)),
    "no bias": lambda: (Float8Linear(nn.Linear(32, 48, bias=False)), torch.randn(3, 10, 32)),
    "3×3": lambda: (Float8Conv2d(nn.Conv2d(16, 32, 3, padding=1)), torch.randn(3, 16, 7, 9)),
    "1×1": lambda: (Float8Conv2d(nn.Conv2d(16, 32, 1)), torch.randn(3, 16, 7, 9)),
    "halving": lambda: (Float8Conv2d(nn.Conv2d(16, 32, 3, stride=2, padding=1)), torch.randn(3, 16, 7, 9)),
    "circular": lambda: (
        Float8Conv2d(nn.Conv2d(16, 32, 3, padding=1, padding_mode="circular")),
        torch.randn(3, 16, 7, 9),
    ),
}


def layer_and_input(name: str) -> tuple[Any, Tensor]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        layer, x = LAYERS[name]()
    return layer.requires_grad_(False), x


@pytest.mark.parametrize("name", LAYERS)
def test_layer_multiplies_quantised_numbers_by_their_scales(name: str) -> None:
    """Against the same numbers, dequantised, in float64: what differs is bfloat16's rounding alone."""
    layer, x = layer_and_input(name)
    numbers, scales = quantised(x, dim=-1 if isinstance(layer, nn.Linear) else (1, 2, 3))
    inputs, weight = numbers.double() * scales, dequantised(layer.weight)
    bias = None if layer.bias is None else layer.bias.double()
    if isinstance(layer, nn.Linear):
        exact = nn.functional.linear(inputs, weight, bias)
    else:
        exact = layer._conv_forward(inputs, weight, bias)
    output = layer(x)
    assert output.shape == exact.shape
    assert relative(output, exact) < 2**-8


@pytest.mark.parametrize("name", LAYERS)
def test_rows_result_does_not_depend_on_how_large_its_neighbours_are(name: str) -> None:
    """With one scale for all, the first row would be rounded to 0."""
    layer, x = layer_and_input(name)
    small = torch.cat([x[:1], 1e6 * x[1:]])
    assert torch.equal(layer(small)[0], layer(x)[0])


def test_row_that_is_not_finite_leaves_the_others_as_they_are() -> None:
    for name in LAYERS:
        layer, x = layer_and_input(name)
        broken = x.clone()
        broken[1, 0] = torch.inf
        assert torch.equal(layer(broken)[[0, 2]], layer(x)[[0, 2]])
        assert not torch.isfinite(layer(broken)[1]).all()


def test_weights_are_quantised_by_output_channel() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = torch.randn(32, 16, 3, 3)
    weight *= torch.logspace(-4, 4, 32)[:, None, None, None]
    weight[3] = 0
    stored = Float8Weight(weight)
    assert stored.numbers.dtype is FLOAT8
    steps = (dequantised(stored) - weight).abs().amax((1, 2, 3)) / weight.abs().amax((1, 2, 3)).clamp(
        min=1e-9
    )
    assert float(steps.max()) <= 2**-4
    assert not dequantised(stored)[3].any()


def test_layers_of_the_blocks_are_quantised_and_no_others(fp8: LoadedCheckpoint) -> None:
    left = [
        path
        for path, layer in fp8.denoiser.unet.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not isinstance(layer, Float8Linear | Float8Conv2d)
    ]
    assert {path for path in left if "time_emb" not in path} == {"conv_in", "conv_out"}


def test_pictures_are_near_the_exact_ones_and_say_their_class(
    fp8: LoadedCheckpoint, checkpoint: LoadedCheckpoint
) -> None:
    (exact,), _ = drawn(checkpoint, make_job())
    (picture,), _ = drawn(fp8, make_job())
    assert 0 < distance(picture, exact) < 6
    assert (fp8.quality.shown, checkpoint.quality.shown) == ("fp8", "")
    assert fp8.bytes < checkpoint.bytes


def test_picture_does_not_depend_on_batch_neighbours(fp8: LoadedCheckpoint) -> None:
    """But by what a call's shape does to last bits, which is then rounded to 8 bits."""
    (alone,), _ = drawn(fp8, make_job())
    (beside, *_), steps = drawn(
        fp8, make_job(), *(make_job(seed=seed, guidance_scale=10.0 * seed) for seed in range(2, 6))
    )
    assert max(step.jobs for step in steps) == 5
    assert distance(beside, alone) < 1


def test_strict_pictures_are_bit_equal_in_any_company() -> None:
    strict = assembled()
    make_strict(strict)
    (alone,), _ = drawn(strict, make_job())
    (_, beside), _ = drawn(strict, make_job(seed=7), make_job())
    assert np.array_equal(beside, alone)


@pytest.mark.parametrize("tiling", [False, True])
def test_loras_change_quantised_layers_as_they_change_others(tmp_path: Path, tiling: bool) -> None:
    changes = loras.random_changes(*tiny_modules()[::2], seed=1, strength=1.0)
    loras.write(tmp_path / "ink.safetensors", loras.kohya(changes))
    settings = LoraSettings(folder=tmp_path, strict=True)
    exact = assemble(*tiny_modules(), device=CPU, dtype=torch.float32, loras=settings)
    plain = make_job(tiling=tiling)
    inked = make_job(prompt="a red circle<lora:ink:1>", tiling=tiling)
    (without, expected), _ = drawn(exact, plain, inked)
    (bare, picture), _ = drawn(assembled(loras=settings), plain, inked)
    assert distance(picture, expected) < distance(expected, without) / 2
    assert distance(bare, without) < 6


def test_row_that_overflows_float16_between_the_layers_is_evaluated_again_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unet, *others = tiny_modules()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_v" in name:
                parameter.mul_(40)
    precise = []
    run = Evaluate.run

    def watched(batch: Any) -> Any:
        precise.append(batch[0].precise)
        return run(batch)

    monkeypatch.setattr(Evaluate, "run", staticmethod(watched))
    half = assembled(unet, *others, dtype=torch.float16)
    drawn(half, make_job(prompt="(a circle:1000)", emphasis="No norm", steps=2))
    assert precise == 2 * [False, True]
    assert half.denoiser.dtype is torch.float16


def test_swapped_checkpoint_draws_what_a_fresh_one_draws_at_the_same_addresses(tmp_path: Path) -> None:
    paths = [write_checkpoint(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1)]
    first, second = (load_checkpoint(path, device="cpu", quality=FP8) for path in paths)
    (expected,), _ = drawn(second, make_job())

    def addresses(checkpoint: LoadedCheckpoint) -> list[int]:
        stored = checkpoint.denoiser.unet.state_dict().values()
        return [(t.numbers if isinstance(t, Float8Weight) else t).data_ptr() for t in stored]

    before = addresses(first)
    swapped = swap_checkpoint(first, paths[1])
    assert addresses(swapped) == before
    assert (swapped.bytes, swapped.quality) == (second.bytes, FP8)
    assert np.array_equal(drawn(swapped, make_job())[0][0], expected)


def test_file_of_8_bit_floats_is_quantised_from_its_values(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.safetensors", dtype=FLOAT8)
    picture = drawn(load_checkpoint(path, device="cpu", quality=FP8), make_job())[0][0]
    assert distance(picture, drawn(load_checkpoint(path, device="cpu"), make_job())[0][0]) < 6


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6)])
def test_gpus_that_cannot_are_refused(capability: tuple[int, int]) -> None:
    with pytest.raises(CheckpointError, match=r"quality fp8 needs .* 8\.9 or later; this one has \d\.\d"):
        check_capability(capability)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
def test_gpus_that_can_are_taken(capability: tuple[int, int]) -> None:
    check_capability(capability)


def test_unknown_class_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(CheckpointError, match="quality 'int8' is not one of exact, fp8, deepcache"):
        quality_of("int8")
