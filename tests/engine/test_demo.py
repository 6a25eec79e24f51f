"""What the demo checkpoint shows, read back by pixels and templates: that features reach the picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from engine.checkpoint import LoadedCheckpoint, load_checkpoint
from engine.lora.store import LoraSettings
from engine.protocol import Job
from tests.drawing import begun_with, drawn, enlarged, masked
from tests.jobs import make_job
from tools.train_demo.evaluate import bars
from tools.train_demo.measure import look

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture(scope="module")
def demo() -> LoadedCheckpoint:
    loras = LoraSettings(folder=MODELS / "lora")
    return load_checkpoint(MODELS / "demo.safetensors", device="cpu", loras=loras)


def job(prompt: str, negative_prompt: str = "", size: int = 256, **changes: Any) -> Job:
    """As in the card: DPM++ 2M, Karras, 20 steps, guidance 5."""
    return make_job(
        prompt=prompt,
        negative_prompt=negative_prompt,
        width=size,
        height=size,
        steps=20,
        guidance_scale=5.0,
        sampler="DPM++ 2M",
        **changes,
    )


def draw(demo: LoadedCheckpoint, *jobs: Job) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in drawn(demo, *jobs)[0]]


@pytest.fixture(scope="module")
def circle(demo: LoadedCheckpoint) -> Image.Image:
    (picture,) = draw(demo, job("a large green circle on a white background"))
    return picture


def test_the_prompt_is_drawn(circle: Image.Image) -> None:
    seen = look(circle, 1)
    assert (seen.background, seen.colours, seen.shapes) == ("white", ("green",), ("circle",))


def test_a_negative_prompt_keeps_its_subject_away(demo: LoadedCheckpoint) -> None:
    with_it, without = draw(demo, job("a red heart", "white background"), job("a red heart"))
    assert look(without, 1).background == "white"
    assert look(with_it, 1).background != "white"


def test_emphasis_enlarges_what_it_is_on(demo: LoadedCheckpoint) -> None:
    prompt = "a red circle and a (blue star:{}) on a white background"
    areas = [
        look(picture, 2).areas[1] for picture in draw(demo, *(job(prompt.format(w)) for w in (0.4, 1, 1.4)))
    ]
    assert areas == sorted(areas)
    assert areas[2] > 2 * areas[0]


def test_prompt_editing_changes_the_subject_on_the_way(demo: LoadedCheckpoint) -> None:
    """Late steps decide the colour, early ones the shape."""
    colour, shape = draw(
        demo,
        job("a [red:blue:0.5] circle on a white background"),
        job("a red [circle:star:0.5] on a white background"),
    )
    assert look(colour, 1).colours == ("blue",)
    assert look(shape, 1).shapes == ("circle",)


def test_parts_joined_by_and_are_both_drawn(demo: LoadedCheckpoint) -> None:
    (picture,) = draw(demo, job("a red circle AND a yellow background"))
    seen = look(picture, 1)
    assert (seen.background, seen.colours, seen.shapes) == ("yellow", ("red",), ("circle",))


def test_two_loras_and_none_in_one_batch_each_show_in_their_own_picture(demo: LoadedCheckpoint) -> None:
    prompt = "a large blue circle on a yellow background"
    tags = ("", "<lora:striped:1>", "<lora:hollow:1>")
    plain, striped, hollow = draw(demo, *(job(prompt + tag) for tag in tags))
    assert bars(plain) < 1.2
    assert bars(striped) > 2
    assert [look(picture, 1).shapes for picture in (plain, hollow)] == [("circle",), ("ring",)]
    assert all(look(picture, 1).colours == ("blue",) for picture in (plain, striped, hollow))


def test_img2img_goes_from_the_picture_to_the_prompt(demo: LoadedCheckpoint, circle: Image.Image) -> None:
    prompt = "a large red star on a yellow background"
    strengths = (0.2, 0.5, 0.8)
    pictures = draw(
        demo, *(job(prompt, init=begun_with(circle, denoising_strength=strength)) for strength in strengths)
    )
    start = np.asarray(circle).astype(int)
    assert [look(picture, 1).shapes for picture in pictures] == [("circle",), ("star",), ("star",)]
    near, *far = (np.abs(np.asarray(picture).astype(int) - start).mean() for picture in pictures)
    assert near < min(far)


@pytest.mark.parametrize("only_masked", [False, True])
def test_inpainting_turns_a_circle_into_a_star_and_leaves_the_rest(
    demo: LoadedCheckpoint, circle: Image.Image, only_masked: bool
) -> None:
    grey = Image.new("L", circle.size)
    ImageDraw.Draw(grey).rectangle((40, 40, 215, 215), fill=255)
    mask = masked(grey, blur_x=4, blur_y=4, content="fill", only_masked=only_masked, padding=24)
    (picture,) = draw(
        demo,
        job(
            "a large green star on a white background", init=begun_with(circle, mask, denoising_strength=1.0)
        ),
    )
    assert look(picture, 1).shapes == ("star",)
    outside = np.ones((256, 256), bool)
    outside[30:226, 30:226] = False  # the blur reaches 10 pixels
    assert (np.asarray(picture)[outside] == np.asarray(circle)[outside]).all()


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_hires_fix_draws_the_same_subject_larger(demo: LoadedCheckpoint, upscaler: str) -> None:
    prompt = "a blue star on a yellow background"
    hires = enlarged(
        512, 512, upscaler=upscaler, steps=8, sampler="DPM++ 2M", prompt=prompt, negative_prompt=""
    )
    small = job(prompt, size=128)
    first, larger = draw(demo, small, replace(small, hires=hires))
    assert larger.size == (512, 512)
    assert look(larger, 1).colours == look(first, 1).colours == ("blue",)
    assert look(larger, 1).shapes == look(first, 1).shapes == ("star",)
    assert look(larger, 1).background == "yellow"
