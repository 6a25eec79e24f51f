"""Latents to pictures to PNG."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from engine import codec
from engine.checkpoint import LoadedCheckpoint
from engine.protocol import NotFinite


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
def test_large_latent_is_decoded_in_tiles_whose_inside_is_as_without(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent = torch.randn(4, 24, 40).cumsum(dim=2) / 4
    monkeypatch.setattr(codec, "TILE", 32)
    pictures = []
    for limit in (codec.TILED_ABOVE, 24 * 40, 24 * 40 - 1):
        monkeypatch.setattr(codec, "TILED_ABOVE", limit)
        (picture,) = checkpoint.decoder([latent])
        assert isinstance(picture, np.ndarray)
        assert picture.shape == (192, 320, 3)
        pictures.append(picture.astype(int))
    whole, same, tiled = pictures
    assert np.array_equal(whole, same)
    assert 0 < np.abs(whole - tiled).mean() < 8
    (given,) = checkpoint.encoder([whole.astype(np.uint8)])
    assert given.shape == latent.shape


@pytest.mark.parametrize("infotext", ["a cat\nSteps: 20, Sampler: Euler", "ein Käse, 猫\nSteps: 1"])
def test_png_carries_the_infotext(infotext: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(codec.png(pixels, infotext)))
    assert image.format == "PNG"
    assert image.info["parameters"] == infotext
    assert np.array_equal(np.asarray(image), pixels)
