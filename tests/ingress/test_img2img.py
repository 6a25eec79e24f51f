import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.protocol import InitImage
from tests.ingress.fakes import FakeBackend, picture

SMALL, WIDE = picture(), picture("JPEG", (16, 8))

Draw = Callable[..., Any]


@pytest.fixture
def redraw(client: TestClient) -> Draw:
    """Post the keywords as an img2img body."""
    return lambda **body: client.post("/sdapi/v1/img2img", json={"init_images": [SMALL], **body})


def sent(backend: FakeBackend) -> InitImage:
    init = backend.jobs[-1].init
    assert init is not None
    return init


def test_the_picture_arrives_as_it_was_sent(redraw: Draw, backend: FakeBackend) -> None:
    assert redraw(init_images=[f"data:image/jpeg;base64,{WIDE}"]).status_code == 200
    assert sent(backend) == InitImage(
        image=base64.b64decode(WIDE),
        denoising_strength=0.75,
        exact_steps=False,
        resize_mode="stretch",
        noise_multiplier=1.0,
        mask=None,
    )


def test_a_mask_arrives_with_what_belongs_to_it(redraw: Draw, backend: FakeBackend) -> None:
    redraw(
        mask=SMALL,
        mask_blur_x=1,
        mask_blur_y=2,
        inpainting_fill=2,
        inpaint_full_res=False,
        inpaint_full_res_padding=32,
        inpainting_mask_invert=1,
        mask_round=False,
    )
    mask = sent(backend).mask
    assert mask is not None
    assert (mask.blur_x, mask.blur_y, mask.content, mask.padding) == (1, 2, "latent noise", 32)
    assert (mask.only_masked, mask.invert, mask.soft) == (False, True, True)


def test_what_is_not_given_of_a_mask_is_the_originals_default(redraw: Draw, backend: FakeBackend) -> None:
    redraw(mask=SMALL)
    mask = sent(backend).mask
    assert mask is not None
    assert (mask.blur_x, mask.blur_y, mask.content, mask.padding) == (4, 4, "fill", 0)
    assert (mask.only_masked, mask.invert, mask.soft) == (True, False, False)


def test_mask_blur_is_for_both_directions(redraw: Draw, backend: FakeBackend) -> None:
    redraw(mask=SMALL, mask_blur=9, mask_blur_x=1)
    mask = sent(backend).mask
    assert mask is not None
    assert (mask.blur_x, mask.blur_y) == (9, 9)


def test_an_empty_mask_is_none(redraw: Draw, backend: FakeBackend) -> None:
    redraw(mask="")
    assert sent(backend).mask is None


def test_pictures_are_echoed_only_on_demand(redraw: Draw) -> None:
    parameters = redraw(mask=SMALL).json()["parameters"]
    assert len(parameters) == 52
    assert (parameters["init_images"], parameters["mask"]) == (None, None)
    parameters = redraw(mask=SMALL, include_init_images=True).json()["parameters"]
    assert (parameters["init_images"], parameters["mask"]) == ([SMALL], SMALL)


def test_newer_versions_echo_their_fields_in_their_places(make_client: Callable[..., TestClient]) -> None:
    client = make_client(compat_version="v1.10.1")
    parameters = client.post("/sdapi/v1/img2img", json={"init_images": [SMALL]}).json()["parameters"]
    names = list(parameters)
    assert len(names) == 57
    for earlier, later in (("mask_blur", "mask_round"), ("latent_mask", "force_task_id")):
        assert names.index(later) == names.index(earlier) + 1


def test_one_picture_is_for_all_images(redraw: Draw, backend: FakeBackend) -> None:
    redraw(batch_size=2, n_iter=2, seed=5)
    assert {job.init.image for job in backend.jobs if job.init} == {base64.b64decode(SMALL)}
    assert [job.seed for job in backend.jobs] == [5, 6, 7, 8]


def test_several_pictures_are_a_batch_of_their_number(redraw: Draw, backend: FakeBackend) -> None:
    answer = redraw(init_images=[SMALL, WIDE], batch_size=3, n_iter=2)
    order = [base64.b64decode(each) for each in (SMALL, WIDE, SMALL, WIDE)]
    assert [job.init.image for job in backend.jobs if job.init] == order
    info = json.loads(answer.json()["info"])
    assert (info["batch_size"], len(info["all_seeds"])) == (2, 4)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"init_images": None}, "init_images: 0 pictures"),
        ({"init_images": []}, "init_images: 0 pictures"),
        ({"init_images": [SMALL, SMALL]}, "init_images: 2 pictures"),
        ({"init_images": ["AAAA"]}, "init_images[0]: not a picture"),
        ({"mask": "http://127.0.0.1/mask.png"}, "mask: pictures are not fetched"),
        ({"resize_mode": 4}, "resize_mode: 4"),
        ({"inpainting_fill": -1}, "inpainting_fill: -1"),
        ({"mask_blur": 257}, "mask_blur: 257"),
        ({"denoising_strength": 1.5}, "denoising_strength: 1.5"),
        ({"initial_noise_multiplier": -1}, "initial_noise_multiplier: -1"),
        ({"script_name": "loopback"}, "script_name"),
    ],
)
def test_bad_input_is_named_before_any_work(
    redraw: Draw, backend: FakeBackend, body: dict[str, Any], named: str
) -> None:
    answer = redraw(**body)
    assert answer.status_code == 422
    assert named in answer.json()["detail"]
    assert not backend.jobs


def test_the_infotext_tells_how_the_picture_was_made(make_client: Callable[..., TestClient]) -> None:
    client = make_client(compat_version="v1.10.1")
    body = {
        "init_images": [SMALL],
        "mask": SMALL,
        "inpainting_mask_invert": 1,
        "inpaint_full_res_padding": 8,
        "initial_noise_multiplier": 1.5,
        "denoising_strength": 0.4,
    }
    info = json.loads(client.post("/sdapi/v1/img2img", json=body).json()["info"])
    assert (
        "Denoising strength: 0.4, Mask mode: Inpaint not masked, Mask blur: 4, Inpaint area: Only masked, "
        "Masked area padding: 8, Masked content: fill, Noise multiplier: 1.5, Version: v1.10.1"
    ) in info["infotexts"][0]
    assert info["denoising_strength"] == 0.4
