"""Pictures to begin with."""

import io

import numpy as np
from PIL import Image


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def scene(width: int, height: int) -> Image.Image:
    """Every pixel is different from its neighbours."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 2, y * 3, (x + y) % 256], axis=2).astype(np.uint8))
