"""Pictures of two systems, compared."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.pictures import as_jpeg, mean_square


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def test_a_jpeg_is_compared_with_ours_as_jpeg(noise: Image.Image) -> None:
    assert mean_square(noise, as_jpeg(noise)) == 0
    assert mean_square(as_jpeg(noise), noise) > 100


def test_another_picture_differs_as_jpeg_too(noise: Image.Image) -> None:
    assert mean_square(noise, as_jpeg(noise.rotate(90))) > 100
