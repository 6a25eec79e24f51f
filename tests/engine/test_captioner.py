"""Captions by a tiny random BLIP."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.captioner import FEWEST, MOST, Captioner
from engine.protocol import CheckpointError, InvalidJob, JobFailed, NotOffered
from tests.blip import WORDS, write_blip
from tests.pictures import png, scene

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blip(tmp_path_factory.mktemp("blip"))


def captioner(folder: Path | None) -> Captioner:
    return Captioner(folder, device=CPU, dtype=torch.float16)


async def test_a_picture_is_described_in_words(folder: Path) -> None:
    caption = await captioner(folder).caption(png(scene(50, 40)))
    words = caption.split()
    assert set(words) <= set(WORDS)
    assert FEWEST - 2 <= len(words) <= MOST
    assert await captioner(folder).caption(png(scene(50, 40))) == caption


async def test_the_caption_depends_on_the_picture(folder: Path) -> None:
    asked = captioner(folder)
    pictures = [scene(50, 40), Image.new("RGB", (50, 40)), Image.new("RGB", (50, 40), "white")]
    assert len({await asked.caption(png(picture)) for picture in pictures}) > 1


async def test_any_kind_of_picture_will_do(folder: Path) -> None:
    asked = captioner(folder)
    for mode, kind in (("L", "PNG"), ("RGBA", "PNG"), ("P", "GIF"), ("RGB", "JPEG")):
        file = io.BytesIO()
        Image.new(mode, (9, 300)).save(file, kind)
        assert await asked.caption(file.getvalue())


async def test_what_is_no_picture_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidJob, match=r"^image: not a picture"):
        await captioner(folder).caption(b"no picture")


async def test_without_a_folder_the_error_names_the_key_that_is_missing() -> None:
    with pytest.raises(NotOffered, match="captioner_dir"):
        await captioner(None).caption(png(scene(8, 8)))


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", r"model\.safetensors"),
        ("preprocessor_config.json", "preprocessor_config.json"),
        ("tokenizer.json", "tokenizer.json or vocab.txt"),
    ],
)
def test_a_folder_that_lacks_something_ends_the_start_by_name(
    folder: Path, tmp_path: Path, missing: str, named: str
) -> None:
    there = shutil.copytree(folder, tmp_path / "blip")
    (there / missing).unlink()
    with pytest.raises(CheckpointError, match=f"captioner_dir: .*{named}"):
        captioner(there)


def test_another_model_ends_the_start(folder: Path, tmp_path: Path) -> None:
    there = shutil.copytree(folder, tmp_path / "blip")
    (there / "config.json").write_text(json.dumps({"model_type": "git"}))
    with pytest.raises(CheckpointError, match="BLIP"):
        captioner(there)


def test_weights_that_are_broken_end_the_start(folder: Path, tmp_path: Path) -> None:
    there = shutil.copytree(folder, tmp_path / "blip")
    (there / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"captioner_dir: model\.safetensors is no valid file"):
        captioner(there)


async def test_what_fails_later_fails_the_caption_and_tells_no_path(folder: Path, tmp_path: Path) -> None:
    there = shutil.copytree(folder, tmp_path / "blip")
    made = captioner(there)
    (there / "model.safetensors").unlink()
    with pytest.raises(JobFailed, match="the captioner failed") as caught:
        await made.caption(png(scene(8, 8)))
    assert str(tmp_path) not in caught.value.message


async def test_pickled_weights_are_not_looked_at(folder: Path, tmp_path: Path) -> None:
    there = shutil.copytree(folder, tmp_path / "blip")
    (there / "model.safetensors").unlink()
    torch.save({}, there / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        captioner(there)
