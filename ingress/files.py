"""Finished pictures as files: in which format, and several of them in one grid."""

import io
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from PIL import Image, PngImagePlugin

from engine.protocol import EXIF_DIRECTORY, USER_COMMENT, FileFormat, user_comment
from ingress.schemas.sdapi import OverrideSettings

KINDS: Mapping[str, str] = MappingProxyType({"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"})
"""The option samples_format -> one of `engine.protocol.FILE_FORMATS`."""
EXTENSIONS: Mapping[str, str] = MappingProxyType({"PNG": "png", "JPEG": "jpg", "WEBP": "webp"})

LONGEST = 16383
"""Pixels of a grid's side: as many as every format holds."""
MOST_EXIF = 65533
"""Bytes."""


def file_format(options: OverrideSettings) -> FileFormat:
    return FileFormat(
        kind=KINDS[options.samples_format or "png"],
        quality=options.jpeg_quality,
        lossless=options.webp_lossless,
        with_text=options.enable_pnginfo,
    )


def grid(files: Sequence[bytes], written: FileFormat, text: str) -> bytes:
    """The file of a picture of all pictures, in about as many rows as columns, with a text of its own.

    Takes a second for some ten megapixels. Larger than a file may be, it is made smaller.
    """
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    width, height = (max(sides) for sides in zip(*(picture.size for picture in pictures), strict=True))
    rows = round(math.sqrt(len(pictures)))
    columns = math.ceil(len(pictures) / rows)
    whole = Image.new("RGB", (columns * width, rows * height), "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        whole.paste(picture, (column * width, row * height))
    whole.thumbnail((LONGEST, LONGEST))
    buffer = io.BytesIO()
    whole.save(buffer, written.kind, **_options(written, text if written.with_text else ""))
    return buffer.getvalue()


def _options(written: FileFormat, text: str) -> dict[str, Any]:
    """Of Pillow's `save`. What replicas write is the engine's, which is not to be imported here."""
    if written.kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if text:
            chunks.add_text("parameters", text)
        return {"pnginfo": chunks}
    exif = Image.Exif()
    exif.get_ifd(EXIF_DIRECTORY)[USER_COMMENT] = user_comment(text)
    data = exif.tobytes() if text else b""
    return {
        "quality": written.quality,
        "exif": data if len(data) <= MOST_EXIF else b"",
        **({"lossless": written.lossless} if written.kind == "WEBP" else {}),
    }
