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


@pytest.mark.parametrize("infotext", ["a cat\nSteps: 20, Sampler: Euler", "ein Käse, 猫\nSteps: 1"])
def test_png_carries_the_infotext(infotext: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(codec.png(pixels, infotext)))
    assert image.format == "PNG"
    assert image.info["parameters"] == infotext
    assert np.array_equal(np.asarray(image), pixels)
