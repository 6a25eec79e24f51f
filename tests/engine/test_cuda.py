"""What only a CUDA device can show: recordings are the plain calls, and live beside everything else there."""

import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from engine.attention import attention_layers
from engine.checkpoint import load_checkpoint, swap_checkpoint
from engine.graphs import CudaRecorder, Graphs
from engine.kernels import TORCH, choose, kernels
from engine.memory import device_memory
from engine.row_counts import RowCounts
from engine.unet import Inputs, evaluate
from tests.tiny import write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda")
COUNTS = RowCounts({64: (2, 4, 8)})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_checkpoint(folder / f"{seed}.safetensors", seed) for seed in range(2)]


def inputs(rows: int, seed: int = 0, tokens: int = 77) -> Inputs:
    made = torch.Generator().manual_seed(seed)
    return Inputs(
        x=torch.randn(rows, 4, 8, 8, generator=made).to(DEVICE, torch.float16),
        timesteps=(torch.rand(rows, generator=made) * 1000).to(DEVICE),
        context=torch.randn(rows, tokens, 32, generator=made).to(DEVICE, torch.float16),
    )


@torch.inference_mode()
def test_recordings_are_the_plain_calls_and_do_not_disturb_each_other(files: list[Path]) -> None:
    """They share a pool of memory; each number of rows and length of prompts is replayed after the others."""
    call = partial(evaluate, load_checkpoint(files[0], device="cuda").modules[0])
    replaying = Graphs(call, CudaRecorder(DEVICE), COUNTS)
    kinds = [(rows, tokens) for rows in (2, 4, 7, 8) for tokens in (77, 154)]
    for seed in range(4):
        for rows, tokens in kinds:
            given = inputs(rows, seed, tokens)
            assert torch.allclose(replaying(given), call(given), atol=1e-2)
    assert len(replaying) == 6


@torch.inference_mode()
def test_a_recording_reads_the_weights_that_were_swapped_in(files: list[Path]) -> None:
    loaded = load_checkpoint(files[0], device="cuda")
    replaying = Graphs(partial(evaluate, loaded.modules[0]), CudaRecorder(DEVICE), COUNTS)
    before = [replaying(inputs(4)).clone() for _ in range(3)][-1]
    swap_checkpoint(loaded, files[1])
    fresh = evaluate(load_checkpoint(files[1], device="cuda").modules[0], inputs(4))
    assert torch.allclose(replaying(inputs(4)), fresh, atol=1e-2)
    assert not torch.allclose(before, fresh, atol=1e-2)


@torch.inference_mode()
def test_recording_and_another_thread_that_loads_do_not_break_each_other(files: list[Path]) -> None:
    loaded = load_checkpoint(files[0], device="cuda")
    stop, failures = threading.Event(), list[Exception]()

    def load() -> None:
        try:
            while not stop.is_set():
                load_checkpoint(files[1], device="cuda")
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        call = partial(evaluate, loaded.modules[0])
        replaying = Graphs(call, CudaRecorder(DEVICE), COUNTS)
        for rows in (2, 4, 8) * 4:
            assert torch.allclose(replaying(inputs(rows)), call(inputs(rows)), atol=1e-2)
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_every_layer_has_a_kernel_that_answers_what_torch_answers(files: list[Path]) -> None:
    unet = load_checkpoint(files[0], device="cuda").modules[0]
    choice = choose(attention_layers(unet), next(unet.parameters()))
    assert choice
    assert set(choice.values()) <= {TORCH, *kernels()}


def test_a_replicas_memory_is_what_its_tensors_take() -> None:
    before = device_memory(DEVICE)
    tensor = torch.zeros(2**26, dtype=torch.uint8, device=DEVICE)
    after = device_memory(DEVICE)
    assert before is not None
    assert after is not None
    assert before.device == after.device
    assert after.allocated.current - before.allocated.current == tensor.nbytes
    assert (
        after.allocated.peak >= after.allocated.current <= after.reserved.current <= after.total - after.free
    )
