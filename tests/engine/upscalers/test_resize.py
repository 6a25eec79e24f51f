"""Pictures and latents at another size, without a network."""

import numpy as np
import pytest
import torch
from PIL import Image

from engine.protocol import IMAGE_UPSCALERS, LATENT_UPSCALERS
from engine.upscalers.resize import IMAGE, LATENT, resize, upscale_latent


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(64, 96), (40, 36), (20, 30), (10, 70)])
@pytest.mark.parametrize(
    ("name", "filtering"), [("Lanczos", Image.Resampling.LANCZOS), ("Nearest", Image.Resampling.NEAREST)]
)
def test_pictures_are_enlarged_as_pillow_does(
    name: str, filtering: Image.Resampling, size: tuple[int, int]
) -> None:
    given = [picture(20, 30), picture(20, 30)[::-1].copy()]
    ours = resize(given, size, name, torch.device("cpu"))
    for source, large in zip(given, ours, strict=True):
        theirs = np.asarray(Image.fromarray(source).resize(size, filtering))
        assert np.abs(large.astype(int) - theirs.astype(int)).max() <= 1


@pytest.mark.parametrize("name", LATENT_UPSCALERS)
def test_a_flat_latent_stays_flat(name: str) -> None:
    latent = torch.full((4, 5, 7), 0.5)
    large = upscale_latent(latent, (14, 10), name)
    assert large.shape == (4, 10, 14)
    assert torch.allclose(large, torch.tensor(0.5))


def test_every_latent_mode_is_another() -> None:
    latent = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    results = [upscale_latent(latent, (5, 13), name) for name in LATENT_UPSCALERS]
    assert len({result.numpy().tobytes() for result in results}) == len(LATENT_UPSCALERS)


def test_the_canonical_names_are_all_there() -> None:
    assert tuple(LATENT) == LATENT_UPSCALERS
    assert tuple(IMAGE) == IMAGE_UPSCALERS
