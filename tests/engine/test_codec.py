"""Latents to pictures to files."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from engine import codec
from engine.checkpoint import LoadedCheckpoint
from engine.protocol import FILE_FORMATS, FileFormat, InvalidJob, NotFinite


@torch.inference_mode()
def test_latent_that_is_not_finite_does_not_spoil_its_neighbours(checkpoint: LoadedCheckpoint) -> None:
    good = torch.randn(4, 8, 8)
    alone = checkpoint.decoder([good])[0]
    first, second, third = checkpoint.decoder([good, torch.full((4, 8, 8), float("nan")), good])
    assert isinstance(second, NotFinite)
    for picture in (first, third):
        assert isinstance(picture, np.ndarray)
        assert isinstance(alone, np.ndarray)
        assert picture.shape == (64, 64, 3)
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1


@torch.inference_mode()
def test_tiles_of_a_picture_are_much_as_without(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent = torch.randn(4, 24, 40, generator=torch.Generator().manual_seed(0)).cumsum(dim=2) / 4
    monkeypatch.setattr(codec, "TILE", 32)
    pictures = []
    for tiled in (False, True):
        (picture,) = checkpoint.decoder([latent], tiled=tiled)
        assert isinstance(picture, np.ndarray)
        assert picture.shape == (192, 320, 3)
        pictures.append(picture.astype(int))
    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 12
    given = pictures[0].astype(np.uint8)
    whole, tiles = (checkpoint.encoder([given], tiled=tiled)[0] for tiled in (False, True))
    assert 0 < (whole - tiles).abs().mean() < 0.2 * whole.abs().mean()


INFOTEXTS = ["a cat\nSteps: 20, Sampler: Euler", "ein Käse, 猫 😀\nSteps: 1"]


def noise(width: int = 24, height: int = 16) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def opened(picture: npt.NDArray[np.uint8], texts: Mapping[str, str], **options: Any) -> Image.Image:
    return Image.open(io.BytesIO(codec.written(picture, FileFormat(**options), texts)))


def comment(image: Image.Image) -> bytes:
    """EXIF's UserComment."""
    value: bytes = image.getexif().get_ifd(0x8769).get(0x9286, b"")
    return value


@pytest.mark.parametrize("infotext", INFOTEXTS)
def test_png_carries_its_texts(infotext: str) -> None:
    image = opened(noise(), {"parameters": infotext, "postprocessing": "upscaled"})
    assert image.format == "PNG"
    assert image.info == {"parameters": infotext, "postprocessing": "upscaled"}
    assert np.array_equal(np.asarray(image), noise())


@pytest.mark.parametrize("infotext", INFOTEXTS)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_jpeg_and_webp_carry_the_infotext_as_user_comment(kind: str, infotext: str) -> None:
    image = opened(noise(), {"parameters": infotext, "postprocessing": "upscaled"}, kind=kind)
    assert image.format == kind
    assert comment(image) == b"UNICODE\0" + infotext.encode("utf-16-be")


@pytest.mark.parametrize("kind", FILE_FORMATS)
def test_a_file_may_be_without_its_texts(kind: str) -> None:
    image = opened(noise(), {"parameters": INFOTEXTS[0]}, kind=kind, with_text=False)
    assert "parameters" not in image.info
    assert "exif" not in image.info


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_quality_counts(kind: str) -> None:
    sizes = [len(codec.written(noise(64, 64), FileFormat(kind=kind, quality=q), {})) for q in (10, 80, 95)]
    assert sizes == sorted(set(sizes))


def test_lossless_webp_is_the_picture_itself() -> None:
    image = opened(noise(), {}, kind="WEBP", lossless=True, quality=10)
    assert np.array_equal(np.asarray(image.convert("RGB")), noise())


def test_a_text_larger_than_exif_is_left_out() -> None:
    assert comment(opened(noise(), {"parameters": "a" * 32_000}, kind="JPEG"))
    assert not comment(opened(noise(), {"parameters": "a" * 33_000}, kind="JPEG"))


def test_a_picture_too_large_for_its_format_is_refused_by_name() -> None:
    with pytest.raises(InvalidJob, match=r"^samples_format: WEBP .* 16383 pixels a side, .* 16384"):
        codec.written(noise(16384, 1), FileFormat(kind="WEBP"), {})
