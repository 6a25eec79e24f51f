"""Pictures that clients send."""

import base64

import pytest

from ingress.errors import InvalidRequest
from ingress.pictures import picture
from ingress.settings import Limits
from tests.ingress.fakes import picture as picture_file


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:image/webp;charset=utf-8;base64,"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_base64_and_data_uris_are_read(prefix: str, kind: str) -> None:
    assert picture(prefix + picture_file(kind), "mask", Limits()) == base64.b64decode(picture_file(kind))


def test_line_breaks_in_base64_are_passed_over() -> None:
    text = picture_file()
    assert picture(f"{text[:20]}\r\n{text[20:]}\n", "mask", Limits()) == base64.b64decode(text)


@pytest.mark.parametrize(
    "text", ["", "abc", "AAAA", "not base64 at all", "ÿØÿà", "data:image/png;base64,", picture_file("PPM")]
)
def test_what_is_no_picture_is_refused_by_field(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^init_images\[1\]: not"):
        picture(text, "init_images[1]", Limits())


@pytest.mark.parametrize("text", ["http://127.0.0.1/a.png", "HTTPS://127.0.0.1/a.png"])
def test_addresses_are_not_fetched(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^mask: pictures are not fetched"):
        picture(text, "mask", Limits())


def test_a_picture_beyond_the_limit_is_refused_by_its_header() -> None:
    with pytest.raises(InvalidRequest, match=r"^mask: 20 × 10 pixels are not allowed. Allowed: up to 199"):
        picture(picture_file(size=(20, 10)), "mask", Limits(max_image_pixels=199))
