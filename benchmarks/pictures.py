"""Pictures that systems answer with, compared."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def decoded(answer: dict[str, Any]) -> Image.Image:
    """The first picture of a txt2img response."""
    return Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))


def mean_square(ours: Image.Image, theirs: Image.Image) -> float:
    """Of the difference, in steps of 255. What came as JPEG is compared with ours made a JPEG too."""
    if theirs.format == "JPEG":
        ours = as_jpeg(ours)
    difference = np.asarray(ours.convert("RGB"), dtype=float) - np.asarray(theirs.convert("RGB"), dtype=float)
    return float((difference**2).mean())


def as_jpeg(image: Image.Image) -> Image.Image:
    """At Pillow's own quality."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG")
    return Image.open(file)
