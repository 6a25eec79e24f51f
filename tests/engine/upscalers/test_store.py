"""A folder of upscalers."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.protocol import CheckpointError, UpscalerError, UpscalerFile
from engine.upscalers.store import UpscalerSettings, UpscalerStore
from engine.upscalers.upscaler import Upscaler
from tests import upscalers

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., UpscalerStore]:
    def make(max_bytes: int = 2**20, dtype: torch.dtype = torch.float32, **options: Any) -> UpscalerStore:
        settings = UpscalerSettings(folder=tmp_path, max_bytes=max_bytes)
        return UpscalerStore(settings, device=CPU, dtype=dtype, **options)

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, seed: int = 0, scale: int = 2) -> Path:
        return upscalers.write(tmp_path / f"{name}.safetensors", upscalers.compact(seed, scale=scale))

    return write


def loaded(store: UpscalerStore, name: str) -> Upscaler:
    upscaler = store.get(name)
    assert upscaler is not None
    return upscaler


def test_file_is_loaded_once_and_anew_when_it_has_changed(
    store: Callable[..., UpscalerStore], write: Callable[..., Path]
) -> None:
    write("a", scale=2)
    held = store()
    first = loaded(held, "a")
    assert held.get("a") is first
    write("b", scale=4).replace(write("a"))
    assert loaded(held, "a").scale == 4


def test_least_lately_used_goes_first_but_never_what_is_held(
    store: Callable[..., UpscalerStore], write: Callable[..., Path]
) -> None:
    for name in "abc":
        write(name)
    held = store(max_bytes=2 * loaded(store(), "a").bytes)
    a = loaded(held, "a")
    b = weakref.ref(loaded(held, "b"))
    assert b() is held.get("b")
    c = weakref.ref(loaded(held, "c"))
    assert b() is None  # used more lately than a, which is held
    assert c() is held.get("c")
    assert held.get("a") is a


def test_real_esrgans_files_go_by_the_names_that_clients_know(
    store: Callable[..., UpscalerStore], write: Callable[..., Path]
) -> None:
    write("sub/RealESRGAN_x4plus", scale=4)
    write("4x-Own", scale=4)
    held = store()
    assert held.listing() == [
        UpscalerFile(name="4x-Own", filename="4x-Own.safetensors", scale=4),
        UpscalerFile(name="R-ESRGAN 4x+", filename="sub/RealESRGAN_x4plus.safetensors", scale=4),
    ]
    assert loaded(held, "R-ESRGAN 4x+") is loaded(held, "RealESRGAN_x4plus")
    for unknown in ("r-esrgan 4x+", "../4x-Own", "4x-Own.safetensors", "sub/RealESRGAN_x4plus", ""):
        assert held.get(unknown) is None


def test_what_cannot_be_used_is_not_listed_and_says_why_when_asked_for(
    store: Callable[..., UpscalerStore], write: Callable[..., Path], tmp_path: Path
) -> None:
    write("good")
    swin = {"layers.0.residual_group.blocks.0.norm1.weight": torch.ones(1)}
    upscalers.write(tmp_path / "swin.safetensors", swin)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-4])
    torch.save(upscalers.compact(), tmp_path / "pickle.safetensors")
    torch.save(upscalers.compact(), tmp_path / "weights.pth")
    held = store()
    assert [file.name for file in held.listing()] == ["good"]
    for name, reason in {
        "swin": "is SwinIR; this version runs networks of ESRGAN's kind only",
        "cut": "no valid safetensors file: its tensors do not fill",
        "pickle": "no valid safetensors file: its header",
    }.items():
        with pytest.raises(UpscalerError, match=f"upscaler '{name}'.*{reason}") as caught:
            held.get(name)
        assert str(tmp_path) not in str(caught.value)
    assert held.get("weights") is None


def test_new_files_are_found_when_asked_for_or_listed_after_a_while(
    store: Callable[..., UpscalerStore], write: Callable[..., Path]
) -> None:
    now = [0.0]
    held = store(clock=lambda: now[0])
    write("a")
    assert held.get("a") is None
    now[0] = 60.0
    assert held.get("a")
    write("b")
    assert len(held.listing()) == 1
    now[0] = 120.0
    assert len(held.listing()) == 2


def test_file_that_vanishes_is_unknown(
    store: Callable[..., UpscalerStore], write: Callable[..., Path]
) -> None:
    path = write("a")
    held = store()
    path.unlink()
    assert held.get("a") is None


def test_cpus_compute_in_float32_whatever_the_checkpoint_does(
    store: Callable[..., UpscalerStore], write: Callable[..., Path]
) -> None:
    write("a")
    upscaler = loaded(store(dtype=torch.float16), "a")
    assert {parameter.dtype for parameter in upscaler.network.parameters()} == {torch.float32}


def test_without_a_folder_there_are_none_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    empty = UpscalerStore(UpscalerSettings(), device=CPU, dtype=torch.float32)
    assert (empty.listing(), empty.get("a")) == ([], None)
    with pytest.raises(CheckpointError, match="no folder nowhere for upscalers") as caught:
        UpscalerStore(UpscalerSettings(folder=tmp_path / "nowhere"), device=CPU, dtype=torch.float32)
    assert str(tmp_path) not in str(caught.value)
