"""The field `infotext`: a client sends a picture's and gets that picture again."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from engine.protocol import SAMPLERS, Job
from ingress.app import build_app
from ingress.infotext import DEFAULTS
from ingress.replay import MAX_CHARS, replay
from ingress.schemas.sdapi import GenerationRequest, Img2ImgRequest, Txt2ImgRequest
from ingress.settings import CompatVersion, Limits, Settings, Style
from tests.ingress.fakes import FakeBackend, picture

STYLES = (
    Style(name="art", prompt="oil, canvas", negative_prompt="photo"),
    Style(name="frame", prompt="a painting of {prompt}, framed", negative_prompt=""),
    Style(name="--- more ---"),
    Style(name="twice", prompt="{prompt} {prompt}"),
    Style(name="noted", prompt="{prompt} # noted", negative_prompt="bad # very"),
)
VERSIONS: tuple[CompatVersion, ...] = ("v1.7.0", "v1.10.1")
WIDE = Limits(min_side=8, max_side=2**16, max_pixels=2**32)

Draw = Callable[..., Any]
Body = dict[str, Any]
Bodies = st.SearchStrategy[Body]
Studios = Mapping[CompatVersion, "Studio"]


class Studio:
    """The application in one profile, and the jobs that it sent."""

    def __init__(self, version: CompatVersion) -> None:
        self.backend = FakeBackend()
        settings = Settings(auth="off", styles=STYLES, clip_skip=2, compat_version=version, limits=WIDE)
        self.client = TestClient(build_app(self.backend, settings))  # to be entered

    def jobs(self, body: Mapping[str, Any], route: str = "txt2img") -> list[Job]:
        """Those of this request, without their ids."""
        self.backend.jobs.clear()
        answer = self.client.post(f"/sdapi/v1/{route}", json=body)
        assert answer.status_code == 200, (body, answer.text)
        texts = json.loads(answer.json()["info"])["infotexts"]
        assert texts == [job.infotext for job in self.backend.jobs]
        return [replace(job, id="") for job in self.backend.jobs]


@pytest.fixture(scope="module")
def studios() -> Iterator[Studios]:
    with ExitStack() as running:
        studios = {version: Studio(version) for version in VERSIONS}
        for studio in studios.values():
            running.enter_context(studio.client)
        yield studios


PIECES = (
    "a", "cat", " ", ", ", ",", ":", "\n", '"', "\\", "(", ")", "[x|y]", "[a:b:0.5]", "é", "猫", "\t", "\r\n",
    "\u2028", "#", "# no\n", "BREAK", "AND", "<lora:x:0.5>", "512x768", "{prompt}", "oil, canvas",
    "Steps: 20, ", "Negative prompt: ", "Hires prompt", "Seed: 1, Size: 1x1, Steps: 3",
)  # fmt: skip


KEYS = (
    "Steps", "Sampler", "Seed", "Size", "Size-1", "First pass size", "First pass size-2", "Styles array",
    "VAE", "Denoising strength", "Hires upscale", "Hires upscaler", "Refiner", "Version", "Hypernet", "Eta",
    "Prompt",
)  # fmt: skip


def some(**fields: st.SearchStrategy[Any]) -> Bodies:
    """Any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


def all_or_none(**fields: st.SearchStrategy[Any]) -> Bodies:
    return st.just({}) | st.fixed_dictionaries(fields)


texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=6).map("".join)
strengths = st.floats(0, 1)
seeds = st.integers(0, 2**40)
sides = st.integers(100, 600)
schedules = st.sampled_from(["Automatic", "Karras", "uniform", "SGM Uniform", "beta"])
samplers = st.sampled_from([*SAMPLERS, "DPM++ 2M Karras", "Restart Uniform", "Euler exponential", "k_lms"])
samplers_with_ensd = st.sampled_from(["Euler a", "DPM2 a Karras", "DPM fast"])

options = some(
    CLIP_stop_at_last_layers=st.integers(1, 12),
    randn_source=st.sampled_from(["CPU", "NV"]),
    always_discard_next_to_last_sigma=st.booleans(),
    enable_prompt_comments=st.booleans(),
    eta_ddim=strengths,
    tiling=st.booleans(),
    refiner_switch_by_sample_steps=st.booleans(),
    hires_fix_refiner_pass=st.sampled_from(["first pass", "second pass", "both passes"]),
)
seed_deltas = st.integers(1, 2**31).map(lambda delta: {"eta_noise_seed_delta": delta})
readings: Bodies = st.just({}) | st.sampled_from(["Original", "No norm", "Ignore", "None"]).map(
    lambda emphasis: {"emphasis": emphasis, "use_old_scheduling": True}
)
pictures = some(
    prompt=texts,
    negative_prompt=texts,
    styles=st.lists(st.sampled_from(["art", "frame", "twice", "noted", "unknown"]), max_size=3),
    cfg_scale=st.floats(0, 30),
    width=sides,
    height=sides,
    denoising_strength=strengths,
)
second_passes = some(
    hr_scale=st.floats(1, 3),
    hr_resize_x=sides,
    hr_resize_y=sides,
    hr_upscaler=st.sampled_from(["Latent", "Latent (bicubic)", "None", "Lanczos"]),
    hr_second_pass_steps=st.integers(0, 9),
    hr_sampler_name=samplers,
    hr_scheduler=schedules,
    hr_checkpoint_name=st.sampled_from(["demo", "majicmixRealistic_v7", "Use same checkpoint"]),
    hr_prompt=texts,
    hr_negative_prompt=texts,
)
unknowable = some(
    model=st.just("majicmixRealistic_v7"), disable_extra_networks=st.booleans(), s_churn=st.floats(0, 9)
)


@st.composite
def parameters(draw: st.DrawFn) -> Body:
    """What both routes take from an infotext."""
    body = draw(some(sampler_name=samplers, scheduler=schedules, eta=strengths, steps=st.integers(1, 30)))
    body |= draw(some(seed=seeds, subseed=seeds, subseed_strength=strengths))
    body |= draw(all_or_none(seed_resize_from_w=sides, seed_resize_from_h=sides))
    body |= draw(some(tiling=st.booleans(), refiner_switch_at=strengths))
    body |= draw(some(refiner_checkpoint=st.sampled_from(["demo", "majic", "None"])))
    body["override_settings"] = draw(options)
    if draw(st.booleans()):
        body |= {"sampler_name": draw(samplers_with_ensd), "eta": draw(st.floats(0.1, 1))}
        body["override_settings"] |= draw(seed_deltas)
    return body


@st.composite
def requests(draw: st.DrawFn) -> Body:
    body = draw(parameters()) | draw(pictures) | draw(some(batch_size=st.integers(1, 2)))
    if draw(st.booleans()):
        body |= draw(second_passes) | {"enable_hr": True}
        body |= draw(all_or_none(firstphase_width=sides, firstphase_height=sides))
    if reading := draw(readings):
        body["override_settings"] |= reading
        body["prompt"] = "(a) [b:c:0.5]" + body.get("prompt", "")
    return body


def can_be_said(job: Job) -> bool:
    """The grammar's limits, as `ingress/infotext.py` names them."""
    if job.prompt != job.prompt.lstrip() or "\nNegative prompt:" in f"\n{job.prompt}":
        return False
    later = [job.hires.prompt, job.hires.negative_prompt] if job.hires else []
    return not any(
        re.fullmatch(r'[0-9]+x[0-9]+|Hires (negative )?prompt|\s*"[^,:\n]*', text) for text in later
    )


def refines_by_timestep(job: Job) -> bool:
    """As v1.7.0 cannot."""
    refiners = (job.refiner, job.hires.refiner if job.hires else None)
    return any(refiner is not None and refiner.by_timestep for refiner in refiners)


@pytest.mark.parametrize("reader", VERSIONS)
@pytest.mark.parametrize("writer", VERSIONS)
@hypothesis_settings(max_examples=40, deadline=None)
@given(body=requests(), rest=unknowable)
def test_a_pictures_infotext_gives_that_picture(
    studios: Studios, writer: CompatVersion, reader: CompatVersion, body: Body, rest: Body
) -> None:
    """On servers of both versions, and with that infotext again on one of the same version."""
    for job in studios[writer].jobs(body | rest):
        assume(can_be_said(job))
        assume(reader == "v1.10.1" or not refines_by_timestep(job))
        (again,) = studios[reader].jobs({"infotext": job.infotext} | rest)
        assert again == (job if writer == reader else replace(job, infotext=again.infotext))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a, b\n(c)", "negative_prompt": "d\nNegative prompt: e", "steps": 7, "width": 853},
        {"sampler_name": "DPM++ 2M Karras", "cfg_scale": 3.5, "batch_size": 2},
        {"sampler_name": "DPM++ 2M", "denoising_strength": 0.4},
        {"subseed": 3, "subseed_strength": 0.25, "n_iter": 2},
        {"seed_resize_from_w": 512, "seed_resize_from_h": 384},
        {"sampler_name": "Euler a", "eta": 0.5, "override_settings": {"eta_noise_seed_delta": 31337}},
        {"sampler_name": "DDIM", "eta": 0.5},
        {"override_settings": {"CLIP_stop_at_last_layers": 1, "randn_source": "NV"}},
        {"override_settings": {"always_discard_next_to_last_sigma": True}},
        {"prompt": "[a:b:3.5]", "override_settings": {"emphasis": "No norm", "use_old_scheduling": True}},
        {"prompt": "a BREAK b", "override_settings": {"enable_emphasis": False}},
        {"prompt": "a # b", "override_settings": {"enable_prompt_comments": False}},
        {"prompt": "a # b\nc", "override_settings": {"enable_prompt_comments": True}},
        {"prompt": "a", "negative_prompt": "b", "styles": ["art", "frame", "twice", "art"]},
        {"enable_hr": True},
        {"enable_hr": True, "denoising_strength": 0.4, "hr_scale": 1.5, "hr_second_pass_steps": 3},
        {"enable_hr": True, "hr_resize_y": 600, "hr_upscaler": "Lanczos"},
        {"enable_hr": True, "firstphase_width": 256, "firstphase_height": 128},
        {"enable_hr": True, "hr_sampler_name": "Euler a", "override_settings": {"eta_noise_seed_delta": 1}},
        {"enable_hr": True, "hr_sampler_name": "DDIM", "eta": 0.5, "sampler_name": "Euler a"},
        {"enable_hr": True, "hr_scheduler": "Karras"},
        {"enable_hr": True, "hr_checkpoint_name": "majicmixRealistic_v7"},
        {"refiner_checkpoint": "majicmixRealistic_v7", "refiner_switch_at": 0.8},
        {"refiner_checkpoint": "majic", "override_settings": {"refiner_switch_by_sample_steps": True}},
        {
            "refiner_checkpoint": "majic",
            "enable_hr": True,
            "override_settings": {"hires_fix_refiner_pass": "first pass"},
        },
        {"tiling": True},
        {"enable_hr": True, "sampler_name": "Euler Karras", "hr_sampler_name": "Euler"},
        {"enable_hr": True, "sampler_name": "DDIM", "scheduler": "Karras", "hr_sampler_name": "Heun"},
        {
            "enable_hr": True,
            "prompt": "a",
            "hr_prompt": 'b, "c": d\ne',
            "hr_negative_prompt": " f",
            "styles": ["art"],
        },
    ],
)
def test_what_an_infotext_has_to_say_of(studios: Studios, version: CompatVersion, body: Body) -> None:
    for job in studios[version].jobs(body):
        assert studios[version].jobs({"infotext": job.infotext}) == [job]


@pytest.mark.parametrize("version", VERSIONS)
@hypothesis_settings(max_examples=25, deadline=None)
@given(body=parameters(), own=pictures, noise=st.floats(0, 2))
def test_in_img2img_prompts_and_pictures_stay_the_clients(
    studios: Studios, version: CompatVersion, body: Body, own: Body, noise: float
) -> None:
    own = own | {"init_images": [picture()], "mask": picture()}
    (job,) = studios[version].jobs({**body, **own, "initial_noise_multiplier": noise}, "img2img")
    assume(can_be_said(job))
    removed = body["override_settings"].get("enable_prompt_comments")
    own["override_settings"] = {"enable_prompt_comments": removed}
    assert studios[version].jobs({**own, "infotext": job.infotext}, "img2img") == [job]


INFOTEXT = (
    "a, oil, canvas\nNegative prompt: b, photo\nSteps: 7, Sampler: DPM++ 2M Karras, CFG scale: 4, Seed: 5, "
    "Size: 256x128, Model hash: 0123456789, Model: other, Denoising strength: 0.3, Clip skip: 3, "
    "ENSD: 31337, Hires upscale: 2, Hires upscaler: None, Refiner: other [0123456789], "
    "Refiner switch at: 0.8, Version: v1.7.0"
)


def replayed(route: type[GenerationRequest] = Txt2ImgRequest, /, **body: Any) -> Body:
    """What an infotext filled in."""
    request = route.model_validate({"infotext": INFOTEXT, **body})
    filled = replay(request, Settings(auth="off", styles=STYLES)).request
    return {name: value for name, value in filled if value != getattr(request, name)}


def test_what_is_filled_in() -> None:
    for_both = {
        "seed": 5,
        "steps": 7,
        "sampler_name": "DPM++ 2M Karras",
        "override_settings": {"CLIP_stop_at_last_layers": 3, "eta_noise_seed_delta": 31337},
        "refiner_checkpoint": "other [0123456789]",
        "refiner_switch_at": 0.8,
    }
    assert replayed(Img2ImgRequest) == for_both
    assert replayed() == for_both | {
        "prompt": "a",
        "negative_prompt": "b",
        "styles": ["art"],
        "cfg_scale": 4.0,
        "width": 256,
        "height": 128,
        "denoising_strength": 0.3,
        "enable_hr": True,
        "hr_upscaler": "None",
    }


@pytest.mark.parametrize(
    ("body", "field", "filled"),
    [
        ({"steps": 9}, "steps", None),
        ({"steps": None}, "steps", 7),
        ({"prompt": ""}, "prompt", None),
        ({"width": 64}, "height", 128),
        ({"styles": []}, "prompt", "a, oil, canvas"),
        ({"enable_hr": False}, "enable_hr", None),
        ({"sampler_index": "Heun"}, "sampler_name", None),
        ({"refiner_checkpoint": ""}, "refiner_checkpoint", None),
        ({"override_settings": {"CLIP_stop_at_last_layers": 1}}, "override_settings",
         {"CLIP_stop_at_last_layers": 1, "eta_noise_seed_delta": 31337}),
        ({"override_settings": {"CLIP_stop_at_last_layers": None, "filter_nsfw": True}}, "override_settings",
         {"CLIP_stop_at_last_layers": 3, "eta_noise_seed_delta": 31337, "filter_nsfw": True}),
    ],
)  # fmt: skip
def test_what_the_client_says_itself_stays(body: Body, field: str, filled: Any) -> None:
    assert replayed(**body).get(field) == filled


def test_the_vae_is_the_pictures(draw: Draw, backend: FakeBackend) -> None:
    """Its hash and name are written by the replica."""
    draw(infotext="Steps: 1, Sampler: Euler, Seed: 1, VAE hash: 0123456789, VAE: kl-f8.safetensors")
    assert backend.jobs[0].vae == "kl-f8.safetensors"


def test_the_older_name_of_an_option_is_that_option() -> None:
    text = "(a)\nSteps: 1, Sampler: Euler, Seed: 1, Emphasis: No norm"
    options = {"enable_emphasis": False}
    assert replayed(infotext=text)["override_settings"] == {"emphasis": "No norm"}
    assert "override_settings" not in replayed(infotext=text, override_settings=options)


def test_options_known_as_fields_are_filled_in_there() -> None:
    text = "Steps: 50, Seed: -1, NGMS: 0.5, Sigma churn: 1, Sigma noise: 1.1, Noise multiplier: 1.5"
    fields = {"s_min_uncond": 0.5, "s_churn": 1, "s_noise": 1.1}
    assert replayed(infotext=text) == fields
    assert replayed(Img2ImgRequest, infotext=text) == fields | {"initial_noise_multiplier": 1.5}


@pytest.mark.parametrize(
    ("pairs", "enabled"),
    [
        ("Denoising strength: 0.5", False),
        ("Hires upscale: 2", False),
        ("Denoising strength: 0.5, Hires upscale: 2", True),
        ("Denoising strength: 0.5, Hires upscaler: Latent", True),
        ("Denoising strength: 0.5, Hires resize: 0x512", True),
        ("Denoising strength: 0.5, First pass size: 256x256, Size: 512x512", True),
    ],
)
def test_which_infotexts_tell_of_a_second_pass(pairs: str, enabled: bool) -> None:
    assert replayed(infotext=f"Steps: 1, Sampler: Euler, Seed: 1, {pairs}").get("enable_hr", False) is enabled


def test_the_answer_shows_the_request_with_what_was_filled_in(draw: Draw, backend: FakeBackend) -> None:
    text = "a\nSteps: 7, Sampler: Euler, CFG scale: 4, Seed: 5, Clip skip: 2"
    answer = draw(infotext=text, cfg_scale=3, model="majicmixRealistic_v7").json()["parameters"]
    assert (answer["prompt"], answer["steps"], answer["cfg_scale"], answer["seed"]) == ("a", 7, 3, 5)
    assert answer["override_settings"] == {"CLIP_stop_at_last_layers": 2}
    assert backend.jobs[0].checkpoint == "majicmixRealistic_v7"


@pytest.mark.parametrize("text", ["", None])
def test_an_empty_infotext_says_nothing(
    make_client: Callable[..., TestClient], backend: FakeBackend, text: str | None
) -> None:
    make_client(clip_skip=2).post("/sdapi/v1/txt2img", json={"infotext": text})
    assert backend.jobs[0].clip_skip == 2


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        ("Steps: many", "infotext.Steps: 'many' is not allowed: must be an integer"),
        ("Steps: 9999", "infotext.Steps: 9999 is not allowed. Allowed: 1 to 150."),
        ("CFG scale: nan", "infotext.CFG scale: 'nan' is not allowed"),
        (f"Seed: {9**99}", f"infotext.Seed: '{str(9**99)[:80]}…' is not allowed"),
        ("Size: 512 x 512", "infotext.Size: '512 x 512' is not allowed. Allowed: width and height"),
        ("Size: 512x1", "infotext.Size-2: 1 is not allowed"),
        ("Sampler: Eulr", "infotext.Sampler: 'Eulr' is not known. Nearest: Euler"),
        ("Schedule type: Foo", "infotext.Schedule type: 'Foo' is not known."),
        ("Clip skip: 99", "infotext.Clip skip: '99' is not allowed"),
        ("Emphasis: Foo", "infotext.Emphasis: 'Foo' is not allowed"),
        ("RNG: TPU", "infotext.RNG: 'TPU' is not allowed"),
        (f"VAE: {'x' * 256}", "infotext.VAE: 'xxx"),
        ("Tiling: often", "infotext.Tiling: 'often' is not allowed"),
        ("Refiner: Foo", "infotext.Refiner: 'Foo' is not known."),
        ("Refiner: demo, Refiner switch at: 2", "infotext.Refiner switch at: 2.0 is not allowed"),
        ("NGMS: 0.5", "infotext.NGMS: 0.5 asks for a feature"),
        ("Schedule rho: 5", "infotext.Schedule rho: 5.0 asks for a feature"),
        (f"Hires upscaler: {'x' * 256}, Hires upscale: 2, Denoising strength: 0.5",
         "infotext.Hires upscaler: 'xxx"),
        ("Hires checkpoint: Foo, Hires upscale: 2, Denoising strength: 0.5",
         "infotext.Hires checkpoint: 'Foo' is not known."),
        ("Hires sampler: Foo, Hires upscale: 2, Denoising strength: 0.5",
         "infotext.Hires sampler: 'Foo' is not known."),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_its_key(
    draw: Draw, backend: FakeBackend, pair: str, named: str
) -> None:
    answer = draw(infotext=f"Steps: 20, Sampler: Euler, Seed: 1, {pair}")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(named)
    assert backend.jobs == []


def test_what_is_not_filled_in_is_not_refused(draw: Draw) -> None:
    text = "Steps: many, Sampler: Foo, Seed: 1, Size: 1, ENSD: many"
    own = {
        "steps": 1,
        "sampler_name": "Euler",
        "width": 64,
        "height": 64,
        "override_settings": {"eta_noise_seed_delta": 0},
    }
    assert draw(infotext=text, **own).status_code == 200


def test_an_error_of_the_clients_own_field_is_not_the_infotexts(draw: Draw) -> None:
    answer = draw(infotext="Steps: 20, Sampler: Euler, Seed: 1", sampler_name="Foo")
    assert (answer.status_code, answer.json()["detail"]) == (404, "Sampler not found")


@hypothesis_settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.sampled_from([*KEYS, *DEFAULTS, *PIECES]), max_size=8), values=st.lists(texts))
def test_whatever_an_infotext_says_is_answered(
    studios: Studios, pieces: list[str], values: list[str]
) -> None:
    pairs = ", ".join(
        f"{key}: {value}" for key, value in zip(pieces, [*values, "1", "1", "1x1"], strict=False)
    )
    for route in ("txt2img", "img2img"):
        body = {"infotext": f"a\n{pairs}, Some: 1, more: 2, pairs: 3", "init_images": [picture()]}
        answer = studios["v1.10.1"].client.post(f"/sdapi/v1/{route}", json=body)
        assert answer.status_code in (200, 422), answer.text


def test_an_infotext_has_a_longest_length(draw: Draw) -> None:
    answer = draw(infotext="a" * (MAX_CHARS + 1))
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(f"infotext: {MAX_CHARS + 1} characters are not allowed")
    answer = draw(infotext="a" * MAX_CHARS)
    assert answer.json()["detail"].startswith(f"infotext.Prompt: {MAX_CHARS} characters are not allowed")


def test_the_longest_infotext_of_our_own_can_be_read(draw: Draw) -> None:
    worst = "\x01," * 2000
    body = {"prompt": "a" * 4000, "negative_prompt": worst, "hr_prompt": worst, "hr_negative_prompt": worst}
    answer = draw(**body, enable_hr=True, width=128, height=128)
    (text,) = json.loads(answer.json()["info"])["infotexts"]
    assert draw(infotext=text).status_code == 200


def test_what_is_left_out_is_told(draw: Draw) -> None:
    text = (
        "Steps: 1, Sampler: Euler, Seed: 1, ADetailer model: é, Face restoration: GFPGAN, VAE Encoder: TAESD"
    )
    (warning,) = json.loads(draw(infotext=text).headers["x-warnings"])
    assert warning == (
        "infotext: 'VAE Encoder', 'ADetailer model', 'Face restoration' not known, and left out"
    )
    assert "x-warnings" not in draw(infotext=INFOTEXT, refiner_checkpoint="None").headers


def test_class_of_quality_is_read_and_changes_nothing(draw: Draw, backend: FakeBackend) -> None:
    """It is the checkpoint's, which an infotext does not choose."""
    text = "Steps: 1, Sampler: Euler, Seed: 1"
    told = draw(infotext=f"{text}, Quality: deepcache 3, Version: v1.7.0")
    assert "x-warnings" not in told.headers
    draw(infotext=text)
    first, second = backend.jobs
    assert first == replace(second, id=first.id)
