"""What files say of their pictures."""

import base64
import io
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.protocol import EXIF_DIRECTORY, USER_COMMENT, user_comment
from ingress.errors import InvalidRequest
from ingress.metadata import MAX_CHARS, Metadata, read_metadata

TEXT = "a red circle\nNegative prompt: blue\nSteps: 20, Sampler: Euler a, Seed: 5"
FOREIGN = "赤い円 😀\nSteps: 20, Sampler: Euler a, Seed: 5"


def file_of(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind, **options)
    return file.getvalue()


def png_with(**texts: str) -> bytes:
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    return file_of("PNG", pnginfo=chunks)


def exif_with(value: bytes | str) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(EXIF_DIRECTORY)[USER_COMMENT] = value
    return exif.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read(data: bytes) -> Metadata:
    return read_metadata(data, "image")


@pytest.mark.parametrize("text", [TEXT, FOREIGN])
@pytest.mark.parametrize("how", ["add_text", "add_itxt"])
@pytest.mark.parametrize("packed", [False, True])
def test_pngs_texts_are_read_in_every_form(text: str, how: str, packed: bool) -> None:
    chunks = PngInfo()
    getattr(chunks, how)("parameters", text, zip=packed)
    assert read(file_of("PNG", pnginfo=chunks)) == Metadata(text, {}, {"parameters": text})


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "value",
    [
        user_comment(FOREIGN),
        b"UNICODE\0" + FOREIGN.encode("utf-16-le"),
        b"UNICODE\0" + b"\xff\xfe" + FOREIGN.encode("utf-16-le"),
        b"UNICODE\0" + b"\xfe\xff" + FOREIGN.encode("utf-16-be"),
        b"\0" * 8 + FOREIGN.encode(),
        FOREIGN.encode(),
    ],
)
def test_exifs_comment_is_read_in_every_encoding(kind: str, value: bytes) -> None:
    assert read(file_of(kind, exif=exif_with(value))).infotext == FOREIGN


def test_exifs_comment_in_ascii_is_read() -> None:
    assert read(file_of("JPEG", exif=exif_with(b"ASCII\0\0\0" + TEXT.encode() + b"\0"))).infotext == TEXT


def test_exifs_comment_wins_over_pngs_text_unless_it_is_empty() -> None:
    chunks = PngInfo()
    chunks.add_text("parameters", "the text")
    for comment, expected in ((user_comment(TEXT), TEXT), (user_comment(""), "the text")):
        data = file_of("PNG", pnginfo=chunks, exif=exif_with(comment))
        assert read(data).infotext == expected


@pytest.mark.parametrize("kind", ["GIF", "JPEG"])
def test_a_comment_of_the_format_is_read(kind: str) -> None:
    assert read(file_of(kind, comment=TEXT.encode())).infotext == TEXT


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_that_says_nothing_has_an_empty_infotext(kind: str) -> None:
    assert read(file_of(kind)).infotext == ""
    assert read(file_of(kind)).texts == {}


def test_texts_behind_the_pixels_are_read() -> None:
    plain = file_of("PNG")
    end = chunk(b"IEND", b"")
    assert plain.endswith(end)
    data = plain.removesuffix(end) + chunk(b"tEXt", b"parameters\0" + TEXT.encode()) + end
    assert read(data).infotext == TEXT


def test_a_file_that_is_cut_within_its_pixels_still_says_what_it_says() -> None:
    whole = png_with(parameters=TEXT)
    assert read(whole[: whole.index(b"IDAT") + 6]).infotext == TEXT


def test_other_items_are_told_and_those_about_the_file_are_not() -> None:
    chunks = PngInfo()
    chunks.add_text("parameters", TEXT)
    chunks.add_text("postprocessing", "Postprocess upscale by: 2.0")
    chunks.add(b"gAMA", struct.pack(">I", 45455))
    said = read(file_of("PNG", pnginfo=chunks, dpi=(72, 72), icc_profile=b"profile"))
    assert said.items == {"postprocessing": "Postprocess upscale by: 2.0", "gamma": 0.45455}
    assert said.texts == {"parameters": TEXT, "postprocessing": "Postprocess upscale by: 2.0"}
    assert read(file_of("JPEG", dpi=(72, 72), exif=exif_with(b"x"))).items == {}


def test_bytes_among_the_items_are_told_as_text() -> None:
    file = io.BytesIO()
    coloured = Image.new("P", (3, 1))
    coloured.putpalette([0, 0, 0, 90, 90, 90, 200, 200, 200])
    coloured.putdata([0, 1, 2])
    coloured.save(file, "PNG", transparency=b"\x00\x7f\xff")
    items = read(file.getvalue()).items
    assert items == {"transparency": "\0\x7f�"}
    assert json.dumps(items)
    assert read(file_of("GIF", comment=b"hello")).items["comment"] == "hello"


NOVELAI = {"steps": 28, "sampler": "k_euler_ancestral", "scale": 11.0, "seed": 7, "uc": "lowres, bad"}


def test_novelais_pictures_are_described_as_infotexts_are() -> None:
    comment = json.dumps(NOVELAI | {"width": 512, "height": 768})
    said = read(png_with(Software="NovelAI", Description="a girl", Comment=comment))
    assert said.infotext == (
        "a girl\nNegative prompt: lowres, bad\n"
        "Steps: 28, Sampler: Euler a, CFG scale: 11.0, Seed: 7, Size: 512x768, Clip skip: 2, ENSD: 31337"
    )
    assert said.items["Software"] == "NovelAI"


@pytest.mark.parametrize(
    "comment", ["", "{", "[]", "null", '{"steps": []}', "[" * 100_000, '{"sampler": "nobody\'s"}']
)
def test_novelais_comment_may_be_anything(comment: str) -> None:
    said = read(png_with(Software="NovelAI", Description="a girl", Comment=comment))
    assert said.infotext in ("",) or said.infotext.startswith("a girl\n")


@pytest.mark.parametrize("chunks", [70, 5])
def test_texts_that_unpack_to_more_than_is_read_are_refused(chunks: int) -> None:
    info = PngInfo()
    for i in range(chunks):
        info.add_text(f"t{i}", "a" * (2**20 - 1), zip=True)
    data = file_of("PNG", pnginfo=info)
    assert len(data) < MAX_CHARS / 20
    with pytest.raises(InvalidRequest, match=r"^image: "):
        read(data)


def test_a_text_that_unpacks_to_too_much_is_refused() -> None:
    info = PngInfo()
    info.add_text("parameters", "a" * 2**22, zip=True)
    with pytest.raises(InvalidRequest, match=r"^image: "):
        read(file_of("PNG", pnginfo=info))


def test_a_file_of_very_many_parts_is_refused() -> None:
    plain = file_of("PNG")
    with pytest.raises(InvalidRequest, match=r"^image: .* parts"):
        read(plain[:33] + chunk(b"teSt", b"") * 70_000 + plain[33:])


@pytest.mark.parametrize("data", [b"", b"abc", b"\x89PNG\r\n\x1a\n", base64.b64decode("AAAA"), b"%PDF-1.4"])
def test_what_is_no_picture_is_refused_by_field(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^image: not a picture"):
        read(data)


WHOLE = {
    "PNG": png_with(parameters=TEXT, Comment="{}", Software="NovelAI"),
    "JPEG": file_of("JPEG", exif=exif_with(user_comment(TEXT))),
    "WEBP": file_of("WEBP", exif=exif_with(user_comment(TEXT))),
    "GIF": file_of("GIF", comment=TEXT.encode()),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of EXIF data that it could not read
@pytest.mark.parametrize("kind", WHOLE)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_a_file_is_more_than_a_refusal(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE[kind])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        said = read(bytes(data))
    except InvalidRequest:
        return
    assert json.dumps(said.items, allow_nan=False)
    said.infotext.encode()
