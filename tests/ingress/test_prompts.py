"""From the prompts that are sent to those that are drawn from: styles, comments, and options."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ingress.prompts import FIELDS, MOST_FOUND, without_styles, written
from ingress.schemas.sdapi import OverrideSettings, Txt2ImgRequest
from ingress.settings import Settings, Style
from tests.ingress.fakes import FakeBackend

STYLES = (
    Style(name="art", prompt="oil, canvas", negative_prompt="photo"),
    Style(name="frame", prompt="a painting of {prompt}, framed", negative_prompt=""),
    Style(name="--- more ---"),
    Style(name="twice", prompt="{prompt} {prompt}"),
)


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(styles=STYLES)


@pytest.mark.parametrize(
    ("styles", "prompt", "negative", "expected"),
    [
        (["art"], "a cat", "dog", ("a cat, oil, canvas", "dog, photo")),
        (["art"], "", "", ("oil, canvas", "photo")),
        (["frame"], "a cat", "", ("a painting of a cat, framed", "")),
        (["frame", "art"], "a cat", "", ("a painting of a cat, framed, oil, canvas", "photo")),
        (["art", "frame"], "a cat", "", ("a painting of a cat, oil, canvas, framed", "photo")),
        (["twice"], "a", "b", ("a a", "b")),
        (["--- more ---", "Art"], "a", "b", ("a", "b")),
        ([], "a", "b", ("a", "b")),
        (None, "a", "b", ("a", "b")),
    ],
)
def test_styles_are_applied_in_order(
    draw: Callable[..., Any],
    backend: FakeBackend,
    styles: list[str] | None,
    prompt: str,
    negative: str,
    expected: tuple[str, str],
) -> None:
    answer = draw(prompt=prompt, negative_prompt=negative, styles=styles).json()
    info = json.loads(answer["info"])
    assert (backend.jobs[0].prompt, backend.jobs[0].negative_prompt) == expected
    assert (info["prompt"], info["negative_prompt"]) == expected
    assert info["infotexts"][0].startswith(expected[0])
    assert info["styles"] == (styles or [])
    assert (answer["parameters"]["prompt"], answer["parameters"]["styles"]) == (prompt, styles)


pieces = st.sampled_from(["a", "b", ", ", "oil, canvas", "photo", "a painting of ", ", framed", " ", ""])
texts = st.lists(pieces, max_size=5).map("".join)


@given(prompt=texts, negative=texts, later=texts, names=st.lists(st.sampled_from([s.name for s in STYLES])))
def test_styles_that_are_found_give_the_same_prompts_again(
    prompt: str, negative: str, later: str, names: list[str]
) -> None:
    overrides = OverrideSettings()
    settings = Settings(auth="off", styles=STYLES)
    request = Txt2ImgRequest(prompt=prompt, negative_prompt=negative, hr_prompt=later, styles=names[:6])
    drawn, _ = written(request, overrides, settings)
    left, found = without_styles({field: getattr(drawn, field) for field in FIELDS}, STYLES)
    assert len(found) <= MOST_FOUND
    assert found or not {"art", "frame"} & set(names[:6])
    again, _ = written(drawn.model_copy(update={**left, "styles": found}), overrides, settings)
    assert [getattr(again, field) for field in FIELDS] == [getattr(drawn, field) for field in FIELDS]


def test_an_unknown_style_is_left_out_with_a_warning(draw: Callable[..., Any]) -> None:
    answer = draw(prompt="a", styles=["art", "ärt", *map(str, range(6))])
    assert answer.status_code == 200
    (warning,) = json.loads(answer.headers["x-warnings"])
    assert warning == "styles: 'ärt', '0', '1', '2', '3' and 2 more not known, and left out"
    assert "x-warnings" not in draw(prompt="a", styles=["art"]).headers


def test_styles_cannot_make_a_prompt_endless(draw: Callable[..., Any], backend: FakeBackend) -> None:
    answer = draw(prompt="a cat", styles=["twice"] * 5000)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("prompt: 6143 characters, styles included, are not allowed")
    assert backend.jobs == []


def test_styles_and_comments_are_for_the_second_pass_too(
    draw: Callable[..., Any], backend: FakeBackend
) -> None:
    options = {"enable_prompt_comments": True}
    body = {"prompt": "a", "styles": ["art"], "enable_hr": True, "override_settings": options}
    draw(**body, hr_prompt="b # big\n")
    draw(**body)
    first, second = (job.hires for job in backend.jobs)
    assert first is not None
    assert second is not None
    assert (first.prompt, first.negative_prompt) == ("b \n, oil, canvas", "photo")
    assert second.prompt == "a, oil, canvas"


@pytest.mark.parametrize(
    ("version", "option", "expected"),
    [
        ("v1.7.0", None, "a # b\nc # d"),
        ("v1.7.0", True, "a \nc \n"),
        ("v1.10.1", None, "a \nc \n"),
        ("v1.10.1", False, "a # b\nc # d"),
    ],
)
def test_comments_are_removed_where_the_version_or_the_option_says_so(
    make_client: Callable[..., TestClient],
    backend: FakeBackend,
    version: str,
    option: bool | None,
    expected: str,
) -> None:
    body = {"prompt": "a # b\nc # d", "override_settings": {"enable_prompt_comments": option}}
    answer = make_client(compat_version=version).post("/sdapi/v1/txt2img", json=body).json()
    assert backend.jobs[0].prompt == expected
    assert json.loads(answer["info"])["prompt"] == expected
    assert answer["parameters"]["prompt"] == body["prompt"]


@pytest.mark.parametrize(
    ("options", "emphasis"),
    [
        ({}, "Original"),
        ({"emphasis": "No norm"}, "No norm"),
        ({"emphasis": "None"}, "None"),
        ({"enable_emphasis": False}, "None"),
        ({"enable_emphasis": False, "emphasis": "Ignore"}, "Ignore"),
    ],
)
def test_emphasis_is_an_option(
    draw: Callable[..., Any], backend: FakeBackend, options: dict[str, Any], emphasis: str
) -> None:
    draw(prompt="a (cat)", override_settings=options)
    draw(prompt="a cat", override_settings=options)
    bracketed, plain = backend.jobs
    assert bracketed.emphasis == plain.emphasis == emphasis
    assert (f", Emphasis: {emphasis}, " in bracketed.infotext) is (emphasis != "Original")
    assert "Emphasis" not in plain.infotext


def test_an_unknown_emphasis_is_refused_by_name(draw: Callable[..., Any]) -> None:
    answer = draw(override_settings={"emphasis": "Fancy"})
    assert answer.status_code == 422
    assert "override_settings.emphasis" in answer.json()["detail"]


def test_old_scheduling_is_an_option_and_written_where_it_counts(
    draw: Callable[..., Any], backend: FakeBackend
) -> None:
    for prompt in ("[a:b:1.5]", "a"):
        draw(prompt=prompt, override_settings={"use_old_scheduling": True})
    draw(prompt="[a:b:1.5]")
    assert [job.old_scheduling for job in backend.jobs] == [True, True, False]
    written = ["Old prompt editing timelines: True" in job.infotext for job in backend.jobs]
    assert written == [True, False, False]


def test_styles_are_listed(client: TestClient) -> None:
    listed = client.get("/sdapi/v1/prompt-styles").json()
    assert listed[0] == {"name": "art", "prompt": "oil, canvas", "negative_prompt": "photo"}
    assert listed[2] == {"name": "--- more ---", "prompt": None, "negative_prompt": None}
