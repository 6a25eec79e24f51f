"""A checkpoint in the modules of another: as if freshly loaded, or the old one is intact, or lost."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine import checkpoint as checkpoint_module
from engine.checkpoint import LoadedCheckpoint, load_checkpoint, swap_checkpoint
from engine.families.family import ARCHITECTURE_KEY
from engine.images import Picture
from engine.lora.store import LoraSettings
from engine.protocol import CheckpointError, CheckpointLost
from engine.weights import Digests, TensorFile
from tests.drawing import drawn
from tests.jobs import make_job
from tests.tiny import SIZES, read_checkpoint, write_checkpoint

KINDS: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd2": {"family": "sd2"},
    "sdxl": {"family": "sdxl"},
    "inpainting": {"in_channels": 9},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Two files of each kind, the second of them in half precision."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: (
            write_checkpoint(folder / f"{name}-a.safetensors", 0, torch.float32, **options),
            write_checkpoint(folder / f"{name}-b.safetensors", 1, torch.float16, **options),
        )
        for name, options in KINDS.items()
    }


def loaded(path: Path, **options: Any) -> LoadedCheckpoint:
    return load_checkpoint(path, device="cpu", **options)


def picture(checkpoint: LoadedCheckpoint) -> Picture:
    return drawn(checkpoint, make_job(steps=2))[0][0]


def addresses(checkpoint: LoadedCheckpoint) -> list[int]:
    return [weight.data_ptr() for module in checkpoint.modules for weight in module.parameters()]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_swapped_checkpoint_draws_what_a_fresh_one_draws_at_the_same_addresses(
    pairs: dict[str, tuple[Path, Path]], kind: str, dtype: str
) -> None:
    """The prompts are those that were encoded before the swap: of their conditionings none is left."""
    first, second = pairs[kind]
    checkpoint = loaded(first, dtype=dtype)
    own, before = addresses(checkpoint), picture(checkpoint)
    fresh = loaded(second, dtype=dtype)
    swapped = swap_checkpoint(checkpoint, second)
    assert addresses(swapped) == own
    assert (swapped.sha256, swapped.kind, swapped.bytes) == (fresh.sha256, fresh.kind, fresh.bytes)
    assert np.array_equal(picture(swapped), picture(fresh))
    back = swap_checkpoint(swapped, first)
    assert np.array_equal(picture(back), before)
    assert not np.array_equal(before, picture(fresh))


def test_weights_in_a_gpus_layout_are_the_same_and_stay_in_it(
    pairs: dict[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pairs["sd1"]
    usual = loaded(second)
    monkeypatch.setattr(checkpoint_module, "conv_layout", lambda device: torch.channels_last)
    checkpoint = loaded(first)
    swapped = swap_checkpoint(checkpoint, second)
    for module, plain in zip(swapped.modules, usual.modules, strict=True):
        for own, other in zip(module.modules(), plain.modules(), strict=True):
            if isinstance(own, torch.nn.Conv2d) and isinstance(other, torch.nn.Conv2d):
                assert own.weight.is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(own.weight, other.weight)
    assert np.abs(picture(swapped).astype(int) - picture(usual)).max() <= 1


def test_what_is_predicted_is_the_new_files_own(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    weights, metadata = read_checkpoint(pairs["sd1"][1])
    path = tmp_path / "x.safetensors"
    save_file(weights, path, metadata={**metadata, "modelspec.prediction_type": "v"})
    swapped = swap_checkpoint(loaded(pairs["sd1"][0]), path)
    assert swapped.kind.prediction == "v"
    assert np.array_equal(picture(swapped), picture(loaded(path)))


def test_files_that_name_their_tensors_differently_can_be_swapped(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    first, second = pairs["sd1"]
    weights, metadata = read_checkpoint(second)
    renamed = {name.replace("transformer.text_model.", "transformer."): t for name, t in weights.items()}
    save_file(renamed, tmp_path / "x.safetensors", metadata=metadata)
    swapped = swap_checkpoint(loaded(first), tmp_path / "x.safetensors")
    assert np.array_equal(picture(swapped), picture(loaded(second)))


def test_loras_and_embeddings_stay(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    save_file({"emb_params": torch.randn(1, 32)}, tmp_path / "thing.safetensors")
    checkpoint = loaded(pairs["sd1"][0], loras=LoraSettings(folder=tmp_path), embeddings=tmp_path)
    swapped = swap_checkpoint(checkpoint, pairs["sd1"][1])
    assert swapped.loras is checkpoint.loras
    job = make_job(prompt="a thing", steps=2)
    fresh = loaded(pairs["sd1"][1], embeddings=tmp_path)
    assert np.array_equal(drawn(swapped, job)[0][0], drawn(fresh, job)[0][0])


def other_heads(folder: Path) -> Path:
    """Tensors of the same names and shapes, which mean something else."""
    weights, metadata = read_checkpoint(write_checkpoint(folder / "x.safetensors"))
    sizes = {**SIZES["sd1"], "unet": {**SIZES["sd1"]["unet"], "attention_head_dim": 2}}
    save_file(weights, folder / "x.safetensors", metadata={**metadata, ARCHITECTURE_KEY: json.dumps(sizes)})
    return folder / "x.safetensors"


def cut_short(folder: Path) -> Path:
    path = write_checkpoint(folder / "x.safetensors", seed=1)
    os.truncate(path, path.stat().st_size - 1)
    return path


def without_a_tensor(folder: Path) -> Path:
    weights, metadata = read_checkpoint(write_checkpoint(folder / "x.safetensors", seed=1))
    del weights["first_stage_model.decoder.norm_out.bias"]
    save_file(weights, folder / "x.safetensors", metadata=metadata)
    return folder / "x.safetensors"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: write_checkpoint(folder / "x.safetensors", family="sdxl"), "another architecture"),
        (lambda folder: write_checkpoint(folder / "x.safetensors", in_channels=9), "another architecture"),
        (other_heads, "another architecture"),
        (without_a_tensor, r"VAE does not fit.*decoder\.conv_norm_out\.bias is missing"),
        (cut_short, "do not fill"),
        (lambda folder: folder / "x.safetensors", "no file"),
    ],
)
def test_file_that_cannot_be_swapped_in_changes_nothing(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    checkpoint = loaded(pairs["sd1"][0])
    before = picture(checkpoint)
    with pytest.raises(CheckpointError, match=reason) as caught:
        swap_checkpoint(checkpoint, make(tmp_path))
    assert str(tmp_path) not in str(caught.value)
    assert np.array_equal(picture(checkpoint), before)


class Cutting(Digests):
    """Cuts the file short as soon as it is being read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def of(self, file: TensorFile) -> str:
        os.truncate(self._path, self._path.stat().st_size // 2)
        return super().of(file)


def test_file_that_is_cut_short_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="while it was read"):
        loaded(path, digests=Cutting(path))


def test_file_that_is_cut_short_while_it_is_swapped_in_says_that_the_old_weights_are_lost(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "x.safetensors", seed=1)
    with pytest.raises(CheckpointLost, match=r"x\.safetensors could not be read to its end"):
        swap_checkpoint(loaded(pairs["sd1"][0]), path, digests=Cutting(path))
    assert not issubclass(CheckpointLost, CheckpointError), "for then nothing would have changed"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_pictures_do_not_depend_on_what_becomes_of_the_file(
    tmp_path: Path, kind: str, stored: torch.dtype
) -> None:
    path = write_checkpoint(tmp_path / "x.safetensors", dtype=stored, **KINDS[kind])
    checkpoint = loaded(path)
    before = picture(checkpoint)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 10_000)
    os.truncate(path, path.stat().st_size * 2 // 3)
    if Path("/proc/self/maps").exists():
        assert str(path) not in Path("/proc/self/maps").read_text()
    assert np.array_equal(picture(checkpoint), before)
