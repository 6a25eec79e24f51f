"""A row that needs more precision or less memory gets it alone; its neighbours never notice."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from engine import ops
from engine.checkpoint import LoadedCheckpoint, assemble
from engine.engine import Engine, Finished
from engine.precision import in_float32
from engine.protocol import Job, NotFinite, OutOfMemory
from tests.drawing import begun_with, drawn
from tests.jobs import make_job
from tests.pictures import scene
from tests.tiny import tiny_modules

Calls = list[tuple[bool, int]]
"""Of each evaluation: whether it was in float32, and of how many rows."""


@pytest.fixture(scope="module")
def half() -> LoadedCheckpoint:
    """In float16, with cross-attention so strong that heavy emphasis overflows it, and nothing else does."""
    unet, *others = tiny_modules()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_v" in name:
                parameter.mul_(40)
    return assemble(unet, *others, device=torch.device("cpu"), dtype=torch.float16)


def overflowing(**changes: Any) -> Job:
    return make_job(id="over", prompt="(a circle:1000)", emphasis="No norm", steps=3, **changes)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made: Calls = []
    run = ops.Evaluate.run

    def watched(batch: Sequence[ops.Evaluate]) -> Sequence[object]:
        made.append((batch[0].precise, len(batch)))
        return run(batch)

    monkeypatch.setattr(ops.Evaluate, "run", staticmethod(watched))
    return made


def test_row_that_overflows_is_evaluated_again_alone_in_float32(half: LoadedCheckpoint, calls: Calls) -> None:
    (picture, _), _ = drawn(half, overflowing(), make_job(id="other", steps=3))
    assert calls == 3 * [(False, 2), (True, 1)]
    unet, *others = tiny_modules()
    full = assemble(unet, *others, device=torch.device("cpu"), dtype=torch.float32)
    unet.load_state_dict(half.denoiser.unet.state_dict())
    (expected,), _ = drawn(full, overflowing())
    assert (
        np.abs(picture.astype(int) - expected.astype(int)).mean() < 6
    )  # their prompts were encoded in two precisions


def test_neighbours_of_a_row_that_overflows_are_what_they_are_without_it(half: LoadedCheckpoint) -> None:
    others = [make_job(id=str(seed), seed=seed, steps=3) for seed in (1, 2)]
    beside_it, _ = drawn(half, overflowing(), *others)
    beside_another, _ = drawn(half, make_job(id="calm", seed=9, steps=3), *others)
    for picture, expected in zip(beside_it[1:], beside_another[1:], strict=True):
        assert np.array_equal(picture, expected)


def test_row_that_is_not_finite_in_float32_either_fails_and_was_tried_twice(
    calls: Calls,
) -> None:
    unet, *others = tiny_modules()
    torch.nn.init.constant_(unet.get_parameter("conv_out.bias"), torch.nan)
    engine = Engine(assemble(unet, *others, device=torch.device("cpu"), dtype=torch.float16))
    engine.add(make_job())
    (done,) = run(engine)
    assert isinstance(done.outcome, NotFinite)
    assert calls == [(False, 1), (True, 1)]


def test_weights_are_where_they_were_after_a_call_in_float32(half: LoadedCheckpoint) -> None:
    unet = half.denoiser.unet
    before = [parameter.data_ptr() for parameter in unet.parameters()]
    with torch.inference_mode(), in_float32(unet, wanted=True):
        assert half.denoiser.dtype is torch.float32
    assert half.denoiser.dtype is torch.float16
    assert [parameter.data_ptr() for parameter in unet.parameters()] == before


@pytest.mark.parametrize("operation", [ops.Decode, ops.EncodeImage])
def test_picture_that_does_not_fit_in_memory_alone_is_done_in_tiles(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch, operation: Any
) -> None:
    job = make_job(init=begun_with(scene(64, 64)), steps=2)
    (expected,), _ = drawn(checkpoint, job)
    tried = failing_unless(operation, lambda op: op.tiled, monkeypatch)
    (picture,), _ = drawn(checkpoint, job)
    assert tried == [False, True]
    assert np.array_equal(picture, expected)  # smaller than a tile


def test_picture_that_does_not_fit_even_in_tiles_fails_alone(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_unless(ops.Decode, lambda op: op.x.shape[1] == 8, monkeypatch)
    engine = Engine(checkpoint)
    large, small = (engine.add(make_job(width=side, height=side)) for side in (72, 64))
    outcomes = {done.row.id: done.outcome for done in run(engine)}
    assert isinstance(outcomes[large], OutOfMemory)
    assert isinstance(outcomes[small], np.ndarray)


def failing_unless(
    operation: Any, fits: Callable[[Any], bool], monkeypatch: pytest.MonkeyPatch
) -> list[bool]:
    """The device pretends to be out of memory. Whether each try was in tiles."""
    tried: list[bool] = []
    original = operation.run

    def limited(batch: Sequence[Any]) -> Sequence[object]:
        tried.append(batch[0].tiled)
        if not all(map(fits, batch)):
            raise torch.OutOfMemoryError("pretend")
        answer: Sequence[object] = original(batch)
        return answer

    monkeypatch.setattr(operation, "run", staticmethod(limited))
    return tried


def run(engine: Engine) -> list[Finished]:
    finished: list[Finished] = []
    while len(engine):
        finished += engine.step()
    return finished
