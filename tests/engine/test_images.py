"""Given pictures and masks: fitting, blurring, filling, cropping, pasting back."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from engine.images import Canvas, crop_box, filled, fitted, gaussian
from engine.protocol import InvalidJob, Job
from tests.drawing import begun_with, masked
from tests.jobs import make_job
from tests.pictures import png, scene


def spot(width: int = 96, height: int = 64, box: tuple[int, ...] = (40, 24, 56, 40)) -> Image.Image:
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def job_with(mask: Image.Image, picture: Image.Image | None = None, **changes: Any) -> Job:
    """`changes` are the mask's."""
    return from_picture(picture or scene(96, 64), mask=masked(mask, **changes))


def from_picture(picture: Image.Image, **changes: Any) -> Job:
    return make_job(width=96, height=64, init=begun_with(picture, **changes))


def canvas_of(job: Job) -> Canvas:
    canvas = Canvas.of(job)
    assert canvas is not None
    return canvas


def test_a_job_without_a_picture_has_no_canvas() -> None:
    assert Canvas.of(make_job()) is None


def test_a_picture_of_the_right_size_is_taken_as_it_is() -> None:
    assert (canvas_of(from_picture(scene(96, 64))).pixels == np.asarray(scene(96, 64))).all()


@pytest.mark.parametrize("data", [b"", b"no picture", png(scene(96, 64))[:100]])
def test_what_is_no_picture_is_refused_by_field(data: bytes) -> None:
    with pytest.raises(InvalidJob, match=r"^init_images"):
        Canvas.of(from_picture(scene(96, 64), image=data))
    mask = job_with(spot()).init
    assert mask is not None
    assert mask.mask is not None
    with pytest.raises(InvalidJob, match=r"^mask"):
        Canvas.of(from_picture(scene(96, 64), mask=dataclasses.replace(mask.mask, image=data)))


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (96, 64), (10, 20, 30, 0))
    assert (canvas_of(from_picture(clear)).pixels == 255).all()


def test_exif_orientation_is_applied() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90° clockwise to be upright
    Image.new("RGB", (64, 96), "red").save(buffer, "JPEG", exif=exif)
    job = from_picture(scene(96, 64), image=buffer.getvalue(), resize_mode="latent")
    assert canvas_of(job).pixels.shape == (64, 96, 3)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["stretch", "crop", "fill"]))
def test_a_fitted_picture_has_the_size_asked_for(width: int, height: int, mode: str) -> None:
    assert fitted(Image.new("RGB", (width, height), "red"), (24, 16), mode).size == (24, 16)


def test_crop_cuts_the_sides_and_keeps_the_aspect() -> None:
    wide = Image.new("RGB", (64, 16), "red")
    wide.paste("blue", (24, 0, 40, 16))
    assert fitted(wide, (16, 16), "crop").getcolors() == [(256, (0, 0, 255))]


def test_fill_stretches_the_edges_over_the_borders() -> None:
    picture = Image.new("RGB", (16, 8), "red")
    picture.paste("blue", (0, 4, 16, 8))
    pixels = np.asarray(fitted(picture, (16, 16), "fill"))
    assert (pixels[:8] == (255, 0, 0)).all()
    assert (pixels[8:] == (0, 0, 255)).all()


def test_gaussian_keeps_the_sum_and_reaches_no_further_than_it_says() -> None:
    values = np.zeros((41, 41), np.float32)
    values[20, 20] = 1
    blurred = gaussian(gaussian(values, 4, 0), 4, 1)
    assert blurred.sum() == pytest.approx(1, abs=1e-6)
    assert (np.nonzero(blurred)[0].min(), np.nonzero(blurred)[0].max()) == (10, 30)


def test_latent_mask_is_rounded_unless_soft() -> None:
    mask = spot(box=(44, 24, 56, 40))
    hard, soft = (canvas_of(job_with(mask, soft=soft)).repaint for soft in (False, True))
    assert hard is not None
    assert soft is not None
    assert set(np.unique(hard)) == {0, 1}
    assert soft[4, 5] == pytest.approx(0.5, abs=0.01)
    assert hard.shape == soft.shape == (8, 12)


def test_alpha_is_the_mask_where_it_varies() -> None:
    picture = Image.new("RGBA", (96, 64), (255, 255, 255, 0))
    picture.paste((0, 0, 0, 255), (40, 24, 56, 40))
    from_alpha, from_grey = canvas_of(job_with(picture)), canvas_of(job_with(spot()))
    assert from_alpha.repaint is not None
    assert (from_alpha.repaint == from_grey.repaint).all()


def test_inverted_mask_repaints_the_rest() -> None:
    plain, inverted = (canvas_of(job_with(spot(), invert=invert)).repaint for invert in (False, True))
    assert plain is not None
    assert inverted is not None
    assert (plain + inverted == 1).all()


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("blur", [0, 4])
def test_nothing_outside_the_blurred_mask_changes(only_masked: bool, blur: int) -> None:
    canvas = canvas_of(job_with(spot(), only_masked=only_masked, padding=8, blur_x=blur, blur_y=blur))
    result = canvas.finish(np.zeros((64, 96, 3), np.uint8))
    reach = int(2.5 * blur + 0.5)
    changed = (result != np.asarray(scene(96, 64))).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert changed[32, 48]
    assert rows.min() >= 24 - reach
    assert rows.max() < 40 + reach
    assert columns.min() >= 40 - reach
    assert columns.max() < 56 + reach


def test_only_masked_answers_with_the_size_of_the_given_picture() -> None:
    job = job_with(spot(200, 100), scene(200, 100), only_masked=True)
    canvas = canvas_of(job)
    assert canvas.pixels.shape == (64, 96, 3)
    assert canvas.finish(canvas.pixels).shape == (100, 200, 3)


def test_only_masked_puts_the_part_back_where_it_was() -> None:
    picture = Image.linear_gradient("L").resize((200, 100)).convert("RGB")
    canvas = canvas_of(job_with(spot(200, 100, (30, 30, 80, 60)), picture, only_masked=True, padding=10))
    difference = np.abs(canvas.finish(canvas.pixels).astype(int) - np.asarray(picture).astype(int))
    assert difference.max() <= 2


def test_a_blank_mask_is_no_mask_for_only_job_with() -> None:
    canvas = canvas_of(job_with(Image.new("L", (96, 64)), only_masked=True))
    assert canvas.repaint is None
    assert canvas.overlay is None


@given(st.integers(0, 90), st.integers(0, 60), st.integers(1, 50), st.integers(1, 50), st.integers(0, 40))
def test_the_crop_box_holds_the_mask_and_lies_in_the_picture(
    left: int, top: int, width: int, height: int, padding: int
) -> None:
    mask = spot(96, 64, (left, top, min(96, left + width), min(64, top + height)))
    box, bounds = crop_box(mask, padding, (96, 64)), mask.getbbox()
    assert box is not None
    assert bounds is not None
    assert 0 <= box[0] <= max(0, bounds[0] - padding) <= min(96, bounds[2] + padding) <= box[2] <= 96
    assert 0 <= box[1] <= max(0, bounds[1] - padding) <= min(64, bounds[3] + padding) <= box[3] <= 64


def test_filling_takes_the_masked_part_from_its_surroundings() -> None:
    picture = Image.new("RGB", (96, 64), "red")
    picture.paste("blue", (40, 24, 56, 40))
    pixels = np.asarray(filled(picture, spot())).astype(int)
    assert np.abs(pixels - (255, 0, 0)).max() <= 2
