"""Finished pictures as files: formats and grids."""

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from engine.protocol import FileFormat
from ingress.files import grid
from ingress.metadata import read_metadata
from tests.ingress.fakes import FakeBackend

COLOURS = ("red", "lime", "blue", "black", "yellow", "cyan", "magenta")


def files(*sizes: tuple[int, int]) -> list[bytes]:
    """One-coloured pictures."""
    return [base64.b64decode(coloured(size, colour)) for size, colour in zip(sizes, COLOURS, strict=False)]


def coloured(size: tuple[int, int], colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return base64.b64encode(file.getvalue())


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, FileFormat()),
        ({"samples_format": "png", "jpeg_quality": 90}, FileFormat(quality=90)),
        ({"samples_format": "jpg"}, FileFormat(kind="JPEG")),
        ({"samples_format": "JPEG", "jpeg_quality": "60"}, FileFormat(kind="JPEG", quality=60)),
        ({"samples_format": "webp", "webp_lossless": True}, FileFormat(kind="WEBP", lossless=True)),
        ({"enable_pnginfo": False}, FileFormat(with_text=False)),
    ],
)
def test_jobs_say_in_which_format_their_picture_is_written(
    draw: Callable[..., Any], backend: FakeBackend, options: dict[str, Any], written: FileFormat
) -> None:
    assert draw(override_settings=options).status_code == 200
    assert backend.jobs[0].file_format == written


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"samples_format": "gif"}, "'gif' is not allowed: Input should be 'png', 'jpg', 'jpeg' or 'webp'"),
        ({"samples_format": 5}, "5 is not allowed"),
        ({"jpeg_quality": 0}, "0 is not allowed"),
        ({"jpeg_quality": 101}, "101 is not allowed"),
    ],
)
def test_a_format_that_is_not_there_is_refused_by_name(
    draw: Callable[..., Any], options: dict[str, Any], named: str
) -> None:
    answer = draw(override_settings=options)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(f"override_settings.{next(iter(options))}: {named}")


@pytest.mark.parametrize(
    ("count", "shape"), [(2, (2, 1)), (3, (2, 2)), (4, (2, 2)), (5, (3, 2)), (6, (3, 2)), (7, (3, 3))]
)
def test_a_grid_has_about_as_many_rows_as_columns(count: int, shape: tuple[int, int]) -> None:
    whole = Image.open(io.BytesIO(grid(files(*[(16, 8)] * count), FileFormat(), "")))
    assert whole.size == (16 * shape[0], 8 * shape[1])
    for place, colour in enumerate(COLOURS[:count]):
        left, top = 16 * (place % shape[0]), 8 * (place // shape[0])
        cell = whole.crop((left, top, left + 16, top + 8))
        assert cell.getcolors() == [(128, Image.new("RGB", (1, 1), colour).getpixel((0, 0)))]
    if count < shape[0] * shape[1]:
        assert whole.getpixel((whole.width - 1, whole.height - 1)) == (255, 255, 255)


def test_pictures_of_several_sizes_fit_into_a_grid() -> None:
    whole = Image.open(io.BytesIO(grid(files((8, 24), (16, 8)), FileFormat(), "")))
    assert whole.size == (32, 24)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_grid_carries_its_text_unless_files_shall_not(kind: str) -> None:
    for with_text, expected in ((True, "a cat 猫\nSteps: 1"), (False, "")):
        data = grid(files((8, 8), (8, 8)), FileFormat(kind=kind, with_text=with_text), "a cat 猫\nSteps: 1")
        assert Image.open(io.BytesIO(data)).format == kind
        assert read_metadata(data, "image").infotext == expected


def test_a_grid_larger_than_its_file_may_be_is_made_smaller() -> None:
    whole = Image.open(io.BytesIO(grid(files((9000, 2), (9000, 2)), FileFormat(kind="WEBP"), "")))
    assert whole.width == 16383
