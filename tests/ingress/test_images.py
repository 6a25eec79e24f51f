"""The routes about given pictures, against a fake backend."""

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from engine.protocol import (
    Checkpoint,
    FileFormat,
    InvalidJob,
    Job,
    JobResult,
    Overloaded,
    Unavailable,
    UpscalerNotFound,
)
from engine.protocol import Enlargement as Work
from ingress.settings import Limits, Style
from tests.ingress.fakes import FakeBackend, picture

SMALL, WIDE = picture(), picture("JPEG", (16, 8))
TEXT = "a red circle\nSteps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 5, Size: 512x768, Version: v1.10.1"

PREFIXES = ["/sdapi/v1", "/v1/sdapi/v1"]

Post = Callable[..., Any]


def with_text(**texts: str) -> str:
    chunks, file = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        chunks.add_text(name, text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def post(client: TestClient) -> Post:
    return lambda path, **body: client.post(f"/sdapi/v1/{path}", json=body)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("path", ["png-info", "extra-single-image", "extra-batch-images", "interrogate"])
def test_examples_of_the_documentation_are_answered(
    client: TestClient, backend: FakeBackend, prefix: str, path: str
) -> None:
    operation = client.get("/openapi.json").json()["paths"][f"{prefix}/{path}"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        backend.captions = {base64.b64decode(example["value"].get("image", "")): "a square"}
        assert client.post(f"{prefix}/{path}", json=example["value"]).status_code == 200


def test_png_info_tells_the_text_what_it_says_and_what_else_there_is(post: Post) -> None:
    answer = post("png-info", image=with_text(parameters=TEXT, postprocessing="Postprocess upscale by: 2.0"))
    assert answer.status_code == 200
    told = answer.json()
    assert list(told) == ["info", "items", "parameters"]
    assert told["info"] == TEXT
    assert told["items"] == {"postprocessing": "Postprocess upscale by: 2.0"}
    said = {"Prompt": "a red circle", "Negative prompt": "", "Steps": "20", "Size-1": "512", "Size-2": "768"}
    assert told["parameters"].items() >= (said | {"Clip skip": "1", "RNG": "GPU"}).items()


def test_png_info_of_a_picture_without_a_text_has_defaults_alone(post: Post) -> None:
    told = post("png-info", image=f"data:image/png;base64,{SMALL}").json()
    assert (told["info"], told["items"]) == ("", {})
    assert told["parameters"] == {
        "Prompt": "",
        "Negative prompt": "",
        "Clip skip": "1",
        "Hires resize-1": 0,
        "Hires resize-2": 0,
        "Hires sampler": "Use same sampler",
        "Hires schedule type": "Use same scheduler",
        "Hires checkpoint": "Use same checkpoint",
        "Hires prompt": "",
        "Hires negative prompt": "",
        "Mask mode": "Inpaint masked",
        "Masked content": "original",
        "Inpaint area": "Whole picture",
        "Masked area padding": 32,
        "RNG": "GPU",
        "Schedule type": "Automatic",
        "Schedule max sigma": 0,
        "Schedule min sigma": 0,
        "Schedule rho": 0,
        "VAE Encoder": "Full",
        "VAE Decoder": "Full",
        "FP8 weight": "Disable",
        "Refiner switch by sampling steps": False,
    }


def test_png_info_knows_the_services_styles(make_client: Callable[..., TestClient]) -> None:
    client = make_client(styles=(Style(name="oil", prompt="oil painting", negative_prompt="photo"),))
    text = "a cat, oil painting\nNegative prompt: photo\nSteps: 20, Sampler: Euler, Seed: 5"
    told = client.post("/sdapi/v1/png-info", json={"image": with_text(parameters=text)}).json()
    assert told["parameters"]["Styles array"] == ["oil"]


def test_a_drawn_picture_sent_to_png_info_says_what_info_says(client: TestClient, post: Post) -> None:
    drawn = client.post("/sdapi/v1/txt2img", json={"prompt": "a red circle", "seed": 3, "steps": 4}).json()
    told = post("png-info", image=drawn["images"][0]).json()
    assert told["info"].startswith("a red circle\nSteps: 4, ")
    assert told["parameters"]["Seed"] == "3"


@pytest.mark.parametrize("body", [{}, {"image": ""}, {"image": None}, {"image": "AAAA"}, {"image": 5}])
def test_png_info_refuses_what_is_no_picture_by_field(post: Post, body: dict[str, Any]) -> None:
    answer = post("png-info", **body)
    assert answer.status_code == 422
    assert list(answer.json()) == ["error", "detail", "body", "errors"]
    assert answer.json()["detail"].startswith("image: not ")


def test_png_info_refuses_an_infotext_that_is_too_long(post: Post) -> None:
    answer = post("png-info", image=with_text(parameters="a" * 70_000))
    assert answer.status_code == 422
    assert "70000 characters" in answer.json()["detail"]


def test_an_enlargement_is_what_was_asked_for(post: Post, backend: FakeBackend) -> None:
    answer = post(
        "extra-single-image",
        image=with_text(parameters=TEXT),
        upscaler_1="4x-Own",
        upscaler_2="Lanczos",
        extras_upscaler_2_visibility=0.25,
        upscaling_resize=3,
    )
    assert answer.status_code == 200
    done = "Postprocess upscale by: 3.0, Postprocess upscaler: 4x-Own, Postprocess upscaler 2: Lanczos"
    (sent,) = backend.enlargements
    assert sent == Work(
        id=sent.id,
        checkpoint="demo",
        image=base64.b64decode(with_text(parameters=TEXT)),
        scale=3.0,
        box=None,
        crop=True,
        max_pixels=4096 * 4096,
        upscaler="4x-Own",
        second="Lanczos",
        second_visibility=0.25,
        texts={"parameters": TEXT, "postprocessing": done},
    )
    assert answer.json() == {
        "html_info": f"<p>{done}</p>",
        "image": base64.b64encode(b"enlarged " + sent.id.encode()).decode(),
    }


@pytest.mark.parametrize(
    ("body", "html_info"),
    [
        ({}, "<p></p>"),
        ({"upscaler_1": None}, "<p></p>"),
        ({"upscaler_1": ""}, "<p></p>"),
        (
            {"upscaler_1": "Lanczos", "upscaling_resize": 2.0},
            "<p>Postprocess upscale by: 2.0, Postprocess upscaler: Lanczos</p>",
        ),
        (
            {"upscaler_1": "Lanczos", "resize_mode": 1, "upscaling_resize_w": 640},
            "<p>Postprocess upscale to: 640x512, Postprocess crop to: 640x512, "
            "Postprocess upscaler: Lanczos</p>",
        ),
        (
            {"upscaler_1": "Lanczos", "resize_mode": 1, "upscaling_crop": False},
            "<p>Postprocess upscale to: 512x512, Postprocess upscaler: Lanczos</p>",
        ),
        (
            {"upscaler_1": "Lanczos", "upscaling_resize": 4, "upscaler_2": "Nearest"},
            "<p>Postprocess upscale by: 4.0, Postprocess upscaler: Lanczos</p>",
        ),
        (
            {"upscaler_1": "a <b>, c", "upscaling_resize": 4},
            "<p>Postprocess upscale by: 4.0, Postprocess upscaler: &quot;a &lt;b&gt;, c&quot;</p>",
        ),
    ],
)
def test_html_info_says_what_was_done(post: Post, body: dict[str, Any], html_info: str) -> None:
    answer = post("extra-single-image", image=SMALL, **body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["html_info"] == html_info


def test_a_box_is_given_on_with_whether_to_cut(post: Post, backend: FakeBackend) -> None:
    body = {"upscaler_1": "Lanczos", "resize_mode": 1, "upscaling_resize_w": "96", "upscaling_resize_h": 64.0}
    post("extra-single-image", image=SMALL, **body, upscaling_crop=0)
    (sent,) = backend.enlargements
    assert (sent.box, sent.crop) == ((96, 64), False)


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({}, FileFormat()),
        ({"samples_format": "webp", "webp_lossless": True}, FileFormat(kind="WEBP", lossless=True)),
        ({"samples_format": "JPG", "jpeg_quality": 95.0}, FileFormat(kind="JPEG", quality=95)),
        ({"enable_pnginfo": False}, FileFormat(with_text=False)),
    ],
)
def test_the_file_is_as_the_options_say(
    post: Post, backend: FakeBackend, options: dict[str, Any], written: FileFormat
) -> None:
    post("extra-single-image", image=SMALL, override_settings=options)
    assert backend.enlargements[0].file_format == written


def test_a_batch_comes_in_its_order(post: Post, backend: FakeBackend) -> None:
    answer = post("extra-batch-images", imageList=[{"data": SMALL, "name": "a"}, {"data": WIDE, "name": "b"}])
    assert [sent.image for sent in backend.enlargements] == [base64.b64decode(each) for each in (SMALL, WIDE)]
    ids = [sent.id for sent in backend.enlargements]
    assert len(set(ids)) == 2
    images = [base64.b64decode(image).decode() for image in answer.json()["images"]]
    assert images == [f"enlarged {each}" for each in ids]
    assert answer.json()["html_info"] == "<p></p>"


def test_a_batch_under_the_names_of_another_client_is_understood(post: Post, backend: FakeBackend) -> None:
    answer = post("extra-batch-images", image_list=[{"image": WIDE, "name": "b"}])
    assert answer.status_code == 200
    assert backend.enlargements[0].image == base64.b64decode(WIDE)


def test_results_that_are_not_to_be_shown_are_left_out(post: Post) -> None:
    hidden = {"show_extras_results": False}
    assert post("extra-single-image", image=SMALL, **hidden).json()["image"] == ""
    assert post("extra-batch-images", imageList=[{"data": SMALL}], **hidden).json()["images"] == []


def test_pictures_of_a_batch_share_what_a_request_may_draw(
    make_client: Callable[..., TestClient], backend: FakeBackend
) -> None:
    limits = Limits(max_images=4, max_pixels=1000, max_upscaled_pixels=3000)
    client = make_client(limits=limits)
    for count, most in ((1, 3000), (4, 1000)):
        backend.enlargements.clear()
        body = {"imageList": [{"data": SMALL}] * count}
        assert client.post("/sdapi/v1/extra-batch-images", json=body).status_code == 200
        assert {sent.max_pixels for sent in backend.enlargements} == {most}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("extra-single-image", {}, "image: not "),
        ("extra-single-image", {"image": "AAAA"}, "image: not a picture"),
        ("extra-single-image", {"image": SMALL, "resize_mode": 2}, "resize_mode: 2"),
        ("extra-single-image", {"image": SMALL, "upscaling_resize": 9}, "upscaling_resize: 9"),
        ("extra-single-image", {"image": SMALL, "upscaling_resize": 0}, "upscaling_resize: 0"),
        ("extra-single-image", {"image": SMALL, "upscaling_resize_w": 0}, "upscaling_resize_w: 0"),
        (
            "extra-single-image",
            {"image": SMALL, "gfpgan_visibility": 0.5},
            "gfpgan_visibility: 0.5 asks for GF",
        ),
        (
            "extra-single-image",
            {"image": SMALL, "codeformer_visibility": 1},
            "codeformer_visibility: 1.0 asks",
        ),
        ("extra-single-image", {"image": SMALL, "upscaler_2": "x" * 300}, "upscaler_2: 'xxx"),
        (
            "extra-single-image",
            {"image": SMALL, "override_settings": {"samples_format": "gif"}},
            "override_settings.samples_format: 'gif' is not allowed: Input should be 'png', 'jpg', 'jpeg' or",
        ),
        ("extra-batch-images", {}, "imageList: 0 pictures"),
        ("extra-batch-images", {"imageList": [{"data": SMALL}] * 17}, "imageList: 17 pictures"),
        ("extra-batch-images", {"imageList": [{"data": SMALL}, {}]}, "imageList[1].data: not "),
        ("extra-batch-images", {"image_list": [{"image": "AAAA"}]}, "image_list[0].image: not "),
        ("extra-batch-images", {"imageList": [5]}, "imageList.0"),
    ],
)
def test_bad_extras_are_named_before_any_work(
    post: Post, backend: FakeBackend, path: str, body: dict[str, Any], named: str
) -> None:
    answer = post(path, **body)
    assert answer.status_code == 422
    assert list(answer.json()) == ["error", "detail", "body", "errors"]
    assert answer.json()["detail"].startswith(named)
    assert not backend.enlargements


class Several(FakeBackend):
    """Checkpoints of which each has other upscalers."""

    def __init__(self, **upscalers: str) -> None:
        offered = [
            Checkpoint(name=name, filename=name, available=bool(have)) for name, have in upscalers.items()
        ]
        super().__init__(offered=offered)
        self.upscalers_of = upscalers

    async def run(self, job: Job | Work) -> JobResult:
        assert isinstance(job, Work)
        if job.upscaler != self.upscalers_of[job.checkpoint]:
            raise UpscalerNotFound(f"upscaler_1: {job.upscaler!r} is not known. Nearest: 4x.", job.upscaler)
        return await super().run(job)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> FakeBackend:
    """A plain one, unless a test gives another."""
    given: FakeBackend = getattr(request, "param", None) or FakeBackend()
    return given


@pytest.mark.parametrize("backend", [Several(a="", b="2x", c="4x", d="4x")], indirect=True)
def test_the_first_checkpoint_that_has_the_upscaler_enlarges(post: Post, backend: FakeBackend) -> None:
    assert post("extra-single-image", image=SMALL, upscaler_1="4x").status_code == 200
    assert [sent.checkpoint for sent in backend.enlargements] == ["c"]


@pytest.mark.parametrize("backend", [Several(a="2x", b="4x")], indirect=True)
def test_an_upscaler_that_nobody_has_is_refused_in_the_originals_words(post: Post) -> None:
    answer = post("extra-single-image", image=SMALL, upscaler_1="4x+")
    assert answer.status_code == 422
    assert answer.json() == {
        "error": "InvalidRequest",
        "detail": "upscaler_1: '4x+' is not known. Nearest: 4x.",
        "body": "",
        "errors": "could not find upscaler named 4x+",
    }


@pytest.mark.parametrize("backend", [Several(a="")], indirect=True)
def test_without_a_checkpoint_that_runs_nothing_is_enlarged(post: Post) -> None:
    assert post("extra-single-image", image=SMALL).status_code == 503


@pytest.mark.parametrize(
    ("error", "status"), [(InvalidJob("upscaling_resize: too large"), 422), (Overloaded("full", 2.0), 429)]
)
def test_replicas_errors_are_answered(
    post: Post, backend: FakeBackend, error: Exception, status: int
) -> None:
    backend.fail = error
    answer = post("extra-single-image", image=SMALL)
    assert (answer.status_code, answer.json()["detail"]) == (status, str(error.args[0]))


def test_a_caption_is_told(post: Post, backend: FakeBackend) -> None:
    backend.captions[base64.b64decode(SMALL)] = "a red square"
    for body in ({}, {"model": "clip"}, {"model": None}):
        assert post("interrogate", image=SMALL, **body).json() == {"caption": "a red square"}


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"image": SMALL}, 501, "no captioner here"),
        ({"image": SMALL, "model": "deepdanbooru"}, 501, "model: deepdanbooru is not there. Allowed: clip."),
        ({"image": SMALL, "model": "blip"}, 404, "Model not found"),
        ({"image": ""}, 404, "Image not found"),
        ({"image": None, "model": "x"}, 404, "Image not found"),
        (
            {"image": "AAAA"},
            422,
            "image: not a picture that can be read. Allowed: PNG, JPEG, WEBP, BMP, GIF, in base64.",
        ),
    ],
)
def test_what_cannot_be_captioned_is_answered(
    post: Post, body: dict[str, Any], status: int, detail: str
) -> None:
    answer = post("interrogate", **body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error", "detail", "body", "errors"]
    assert answer.json()["detail"] == detail


def test_a_captioner_that_is_away_is_one_to_ask_again(client: TestClient, backend: FakeBackend) -> None:
    async def away(image: bytes) -> str:
        raise Unavailable("lost", 1.0)

    backend.caption = away  # type: ignore[method-assign]
    answer = client.post("/sdapi/v1/interrogate", json={"image": SMALL})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
