"""What a picture's file says of it: its infotext, wherever that stands, and everything else but pixels."""

import io
import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from engine.protocol import EXIF_DIRECTORY, PICTURE_FORMATS, USER_COMMENT
from ingress.errors import InvalidRequest
from ingress.infotext import infotext
from ingress.schemas import samplers

MAX_CHARS = 4 * 2**20
"""Of all texts in a file together: compressed ones could be as large as one likes."""
MAX_CHUNKS = 2**16

HIDDEN = frozenset(
    {
        "jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "exif", "loop", "background", "timestamp",
        "duration", "progressive", "progression", "icc_profile", "chromaticity", "photoshop",
    }
)  # fmt: skip
"""What Pillow tells and clients are not told."""

_PNG = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_PIXELS = (b"IDAT", b"fdAT", b"fcTL")


@dataclass(frozen=True, slots=True)
class Metadata:
    """`infotext` is empty if there is none. `items` are values that JSON can carry, `texts` the file's own
    texts, with the infotext as `parameters`."""

    infotext: str
    items: Mapping[str, Any]
    texts: Mapping[str, str]


def read_metadata(data: bytes, field: str) -> Metadata:
    """Of a file, whose pixels are not decoded. Some milliseconds for each megabyte.

    Raises InvalidRequest, naming `field`, for what is no picture, and for texts that are too long.
    """
    try:
        with Image.open(io.BytesIO(_without_pixels(data, field)), formats=PICTURE_FORMATS) as opened:
            info: dict[Any, Any] = dict(opened.info)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InvalidRequest(f"{field}: not a picture that can be read.") from None
    if sum(len(value) for value in info.values() if isinstance(value, str | bytes)) > MAX_CHARS:
        raise InvalidRequest(f"{field}: the texts in it are too long. Allowed: {MAX_CHARS} characters.")
    items = {str(name): _plain(value) for name, value in info.items() if name not in HIDDEN}
    written = str(items.pop("parameters", ""))
    comment = info.get("comment")
    if said := _user_comment(info.get("exif")):
        written = said
    elif not written and isinstance(comment, bytes):
        written = comment.decode("utf-8", "replace")
    written = _by_novelai(items) or written
    texts = {str(name): str(value) for name, value in info.items() if isinstance(value, str)}
    return Metadata(written, items, texts | ({"parameters": written} if written else {}))


def _without_pixels(data: bytes, field: str) -> bytes:
    """A PNG file but for them: texts may stand behind, where Pillow would have to decode them first."""
    if not data.startswith(_PNG):
        return data
    kept, at = [_PNG], len(_PNG)
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return b"".join([*kept, _END])
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind not in _PIXELS:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    raise InvalidRequest(f"{field}: a PNG file of more than {MAX_CHUNKS} parts.")


def _plain(value: object) -> Any:
    match value:
        case str():
            return str(value)
        case bytes():
            return value.decode("utf-8", "replace")
        case bool() | int() | float() | None:
            return value
        case tuple() | list():
            return [_plain(each) for each in value]
    return str(type(value).__name__)


def _user_comment(exif: object) -> str:
    """Empty where there is none, or none that can be read."""
    if not isinstance(exif, bytes):
        return ""
    parsed = Image.Exif()
    try:
        parsed.load(exif)
        value = parsed.get_ifd(EXIF_DIRECTORY).get(USER_COMMENT)
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, OSError, struct.error):
        return ""
    return _decoded(value) if isinstance(value, bytes) else str(value or "")


def _decoded(value: bytes) -> str:
    """After the eight bytes that name the encoding; some programs leave them out."""
    code, text = value[:8], value[8:]
    if code == b"UNICODE\0":
        return text.decode(_utf_16(text), "replace").strip("\ufeff\0")
    if code not in (b"ASCII\0\0\0", b"\0" * 8):
        text = value
    return text.decode("utf-8", "replace").strip("\0")


def _utf_16(text: bytes) -> str:
    """In which order of bytes: as the mark says, or so that more characters are of the Latin alphabet."""
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        little = text[:2] == b"\xff\xfe"
    else:
        little = text[1::2].count(0) > text[::2].count(0)
    return "utf-16-le" if little else "utf-16-be"


def _by_novelai(items: Mapping[str, Any]) -> str:
    """The infotext of a picture of NovelAI's, which describes it in JSON; empty for another's."""
    if items.get("Software") != "NovelAI":
        return ""
    told: Any = None
    with suppress(ValueError, RecursionError):
        told = json.loads(str(items.get("Comment", "")))
    if not isinstance(told, dict):
        return ""
    pairs = {
        "Steps": told.get("steps"),
        "Sampler": samplers.canonical(str(told.get("sampler"))) or "Euler a",
        "CFG scale": told.get("scale"),
        "Seed": told.get("seed"),
        "Size": f"{told.get('width')}x{told.get('height')}" if "width" in told else None,
        "Clip skip": 2,
        "ENSD": 31337,
    }
    return infotext(str(items.get("Description", "")), str(told.get("uc", "")), pairs)
