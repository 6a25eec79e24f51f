"""Calls replayed on static buffers compute what the UNet computes, whatever they are filled up to."""

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch._dynamo.utils import counters

from engine.attention import make_lean
from engine.checkpoint import LoadedCheckpoint, load_checkpoint, swap_checkpoint
from engine.compiled import Compiled
from engine.conditioning import Cond
from engine.graphs import Graphs, Recorder, Recording, Rerunning
from engine.lora.store import LoraSettings
from engine.ops import Evaluate
from engine.row_counts import RowCounts
from engine.samplers.combination import Combination
from engine.unet import Inputs, evaluate
from tests.drawing import drawn, evaluations
from tests.jobs import make_job
from tests.loras import kohya, random_changes, write
from tests.tiny import tiny_modules, write_checkpoint

COUNTS = RowCounts({64: (2, 4, 8)})


class Watching:
    """Reruns, and knows what was recorded and how often each recording was replayed."""

    def __init__(self) -> None:
        self.replays: list[int] = []

    def record(self, call: Callable[[], Tensor]) -> Recording:
        recording, place = Rerunning().record(call), len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            self.replays[place] += 1
            recording.replay()

        return Recording(replay, recording.output)


class Full:
    """A device with room for so many recordings."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._outputs: list[weakref.ref[Tensor]] = []

    def record(self, call: Callable[[], Tensor]) -> Recording:
        if sum(output() is not None for output in self._outputs) == self._room:
            raise torch.OutOfMemoryError
        recording = Rerunning().record(call)
        self._outputs.append(weakref.ref(recording.output))
        return recording


def unet(family: str = "sd1") -> nn.Module:
    return tiny_modules(family=family)[0].eval()


def small_unet(seed: int) -> nn.Module:
    """Of one block, as tracing takes its time."""
    torch.manual_seed(seed)
    made = UNet2DConditionModel(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    make_lean(made)
    plain: nn.Module = made.eval()
    return plain


def inputs(rows: int, seed: int = 0, *, tokens: int = 77, masked: bool = False, sdxl: bool = False) -> Inputs:
    made = torch.Generator().manual_seed(seed)
    return Inputs(
        x=torch.randn(rows, 4, 8, 8, generator=made),
        timesteps=torch.rand(rows, generator=made) * 1000,
        context=torch.randn(rows, tokens, 72 if sdxl else 32, generator=made),
        mask=torch.rand(rows, tokens, generator=made) < 0.5 if masked else None,
        text_embeds=torch.randn(rows, 24, generator=made) if sdxl else None,
        time_ids=torch.full((rows, 6), 64.0) if sdxl else None,
    )


def graphs(module: nn.Module, recorder: Recorder, **options: int) -> Graphs:
    return Graphs(partial(evaluate, module), recorder, COUNTS, **options)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", [{}, {"masked": True}, {"tokens": 154}, {"sdxl": True}])
def test_replayed_calls_answer_what_the_unet_answers(kind: dict[str, bool]) -> None:
    """New values each time, in every number of rows."""
    module = unet("sdxl" if kind.get("sdxl") else "sd1")
    recorder = Watching()
    replaying = graphs(module, recorder)
    for seed, rows in enumerate((1, 2, 3, 4, 7, 8, 5, 2, 1)):
        given = inputs(rows, seed, **kind)
        assert close(replaying(given), evaluate(module, given))
    assert len(recorder.replays) == 3
    assert sum(recorder.replays) == 9 - 3


@torch.inference_mode()
def test_a_full_count_is_bit_equal_to_the_plain_call() -> None:
    module = unet()
    replaying = graphs(module, Rerunning())
    for seed in range(3):
        given = inputs(4, seed)
        assert torch.equal(replaying(given), evaluate(module, given))


@torch.inference_mode()
def test_rows_do_not_depend_on_what_fills_the_call_up() -> None:
    """A first row that is not finite fills the others' places."""
    module = unet()
    replaying = graphs(module, Rerunning())
    given = inputs(3)
    given.x[0] = torch.nan
    for _ in range(3):
        output = replaying(given)
        assert output[0].isnan().all()
        assert close(output[1:], evaluate(module, inputs(3))[1:])


@torch.inference_mode()
def test_shapes_have_recordings_of_their_own_and_values_have_not() -> None:
    recorder = Watching()
    replaying = graphs(unet(), recorder)
    for kind in ({}, {"masked": True}, {"tokens": 154}):
        for seed in range(3):
            replaying(inputs(2, seed, **kind))
    assert recorder.replays == [2, 2, 2]


@torch.inference_mode()
def test_calls_of_more_rows_than_any_count_are_made_in_the_plain_way() -> None:
    module, recorder = unet(), Watching()
    replaying = graphs(module, recorder)
    for _ in range(3):
        assert torch.equal(replaying(inputs(9)), evaluate(module, inputs(9)))
    assert not recorder.replays


@torch.inference_mode()
def test_the_shape_used_least_lately_is_forgotten() -> None:
    recorder = Watching()
    replaying = graphs(unet(), recorder, most=2)
    for rows in (2, 2, 4, 4, 2, 8, 8):
        replaying(inputs(rows))
    assert len(replaying) == 2
    for rows in (2, 8, 4, 4):
        replaying(inputs(rows))
    assert recorder.replays == [3, 1, 2, 1]


@torch.inference_mode()
def test_without_memory_for_a_recording_calls_go_the_plain_way_and_fewer_are_kept() -> None:
    module = unet()
    replaying = graphs(module, Full(2))
    for rows in (2, 2, 4, 4, 8, 8, 8, 8, 4, 2):
        assert close(replaying(inputs(rows)), evaluate(module, inputs(rows)))
    assert len(replaying) == 1


LORA = "<lora:small:1>"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "a.safetensors", dtype=torch.float32)


def replaying_checkpoint(file: Path, recorder: Recorder, **options: Any) -> LoadedCheckpoint:
    loaded = load_checkpoint(file, device="cpu", **options)
    loaded.denoiser.row_counts = RowCounts({64: (4, 8)})
    loaded.denoiser.call = Graphs(loaded.denoiser.call, recorder, loaded.denoiser.row_counts)
    return loaded


def test_pictures_are_those_of_plain_calls_and_hardly_a_call_is_plain(file: Path) -> None:
    recorder = Watching()
    jobs = [make_job(id=str(i), seed=i, steps=4 + i, prompt="a cat, " * 30 * i) for i in range(3)]
    pictures, _ = drawn(replaying_checkpoint(file, recorder), *jobs)
    plain, steps = drawn(load_checkpoint(file, device="cpu"), *jobs)
    for ours, theirs in zip(pictures, plain, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert sum(recorder.replays) > evaluations(steps) / 2


def test_swapped_weights_are_those_that_recordings_read(file: Path, tmp_path: Path) -> None:
    """No call is recorded anew."""
    second = write_checkpoint(tmp_path / "b.safetensors", 1, torch.float32)
    recorder = Watching()
    loaded = replaying_checkpoint(file, recorder)
    drawn(loaded, make_job())
    swapped = swap_checkpoint(loaded, second)
    before = list(recorder.replays)
    ours, theirs = (
        drawn(each, make_job())[0][0] for each in (swapped, load_checkpoint(second, device="cpu"))
    )
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert len(recorder.replays) == len(before)
    assert sum(recorder.replays) == sum(before) + 4


def test_a_call_with_loras_tiling_or_in_float32_is_never_replayed(file: Path, tmp_path: Path) -> None:
    """They change the UNet for one call, which a recording knows nothing of."""
    unet, _, text_encoder = tiny_modules()
    changes = random_changes(unet, text_encoder, seed=0, only=["attn2.to_k"])
    write(tmp_path / "small.safetensors", kohya(changes))
    recorder = Watching()
    loaded = replaying_checkpoint(file, recorder, loras=LoraSettings(folder=tmp_path))
    plain = load_checkpoint(file, device="cpu", loras=LoraSettings(folder=tmp_path))
    drawn(loaded, make_job())
    before = list(recorder.replays)
    for job in (make_job(prompt=f"a cat {LORA}"), make_job(tiling=True)):
        assert np.array_equal(drawn(loaded, job)[0][0], drawn(plain, job)[0][0])
    cond = Cond(torch.zeros(77, 32))
    again = [
        Evaluate(
            denoiser=loaded.denoiser,
            x=Combination.of(torch.ones(4, 8, 8)),
            sigma=1.0,
            conds=[(cond, 1.0)],
            uncond=cond,
            guidance_scale=2.0,
            remaining=1,
            precise=True,
        )
    ]
    for _ in range(3):
        Evaluate.run(again)
    assert recorder.replays == before


@torch.inference_mode()
def test_compiled_code_is_shared_by_unets_of_an_architecture_and_outlives_a_swap() -> None:
    """Nothing compiles but what is meant to; torch counts."""
    compiled = Compiled("default", backend="eager")
    first, second = (small_unet(seed) for seed in range(2))
    counters.clear()
    given = inputs(2)
    assert torch.equal(compiled(first, given), evaluate(first, given))
    assert counters["stats"]["unique_graphs"] == 0
    with compiled.compiling():
        compiled(first, given)
    assert counters["stats"]["unique_graphs"] == 1
    assert torch.equal(compiled(second, given), evaluate(second, given))
    first.load_state_dict(second.state_dict())
    assert torch.equal(compiled(first, given), evaluate(second, given))
    with compiled.compiling():
        compiled(second, inputs(2, 1))
    compiled(first, inputs(3))
    assert counters["stats"]["unique_graphs"] == 1
