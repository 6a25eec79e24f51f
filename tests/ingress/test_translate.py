import json
import math
from datetime import datetime
from random import Random
from typing import Any

import pytest

from engine.protocol import Job
from ingress import translate
from ingress.errors import InvalidRequest
from ingress.schemas.sdapi import Txt2ImgRequest
from ingress.settings import Settings
from tests.ingress.fakes import CHECKPOINTS

NOW = datetime(2024, 3, 14, 16, 46, 34)


def resolve(body: dict[str, Any], random: int = 0, **settings: Any) -> translate.Generation:
    request = Txt2ImgRequest.model_validate(body)
    return translate.resolve(request, CHECKPOINTS, Settings(auth="off", **settings), Random(random), NOW)


def job(body: dict[str, Any], **settings: Any) -> Job:
    return translate.jobs(resolve(body, **settings), Random(0))[0]


def test_the_same_random_source_gives_the_same_jobs() -> None:
    body = {"prompt": "p", "batch_size": 3}
    first, second = (translate.jobs(resolve(body, random=1), Random(2)) for _ in range(2))
    assert first == second
    assert first[0].seed != resolve(body, random=2).seed


def test_a_random_seed_covers_what_upstream_draws() -> None:
    seeds = [resolve({"send_images": True}, random=n).seed for n in range(200)]
    assert min(seeds) >= 0
    assert 2**31 < max(seeds) < 4294967294


def test_nothing_is_left_open_in_a_job() -> None:
    assert job({"prompt": "p", "seed": 1}) == Job(
        id=f"{Random(0).getrandbits(128):032x}",
        checkpoint="demo",
        prompt="p",
        negative_prompt="",
        seed=1,
        width=512,
        height=512,
        steps=50,
        guidance_scale=7.0,
        sampler="Euler",
        schedule="uniform",
        eta=0.0,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=math.inf,
        s_noise=1.0,
        eta_noise_seed_delta=0,
        clip_skip=1,
        infotext="p\nSteps: 50, Sampler: Euler, CFG scale: 7.0, Seed: 1, Size: 512x512, Model: demo, "
        "Version: v1.7.0",
    )


@pytest.mark.parametrize(
    ("sampler", "eta"), [("Euler a", 1.0), ("DPM++ 2M SDE", 1.0), ("DPM adaptive", 1.0), ("DDIM", 0.0)]
)
def test_eta_is_the_samplers_own_unless_given(sampler: str, eta: float) -> None:
    default, given = (job({"sampler_name": sampler, "eta": value}) for value in (None, 0.5))
    assert (default.eta, given.eta) == (eta, 0.5)
    key = "Eta DDIM" if sampler == "DDIM" else "Eta"
    assert key not in default.infotext
    assert f", {key}: 0.5, Version" in given.infotext
    extra = translate.response(resolve({"sampler_name": sampler, "eta": 0.5}), [])["info"]
    assert f'"extra_generation_params": {{"{key}": 0.5}}' in extra


def test_an_eta_that_the_sampler_does_not_use_is_not_written() -> None:
    assert "Eta" not in job({"sampler_name": "Euler", "eta": 0.5}).infotext


def test_options_can_be_overridden_for_one_request() -> None:
    overrides = {"CLIP_stop_at_last_layers": "2", "eta_noise_seed_delta": 31337, "unknown_option": [1]}
    made = job({"sampler_name": "Euler a", "override_settings": overrides})
    assert (made.clip_skip, made.eta_noise_seed_delta) == (2, 31337)
    assert ", Clip skip: 2, ENSD: 31337, Version" in made.infotext
    assert job({}, clip_skip=3).clip_skip == 3


def test_ensd_is_written_only_where_it_changes_the_picture() -> None:
    overrides = {"eta_noise_seed_delta": 31337}
    assert "ENSD" not in job({"sampler_name": "Euler", "override_settings": overrides}).infotext
    body = {"sampler_name": "Euler a", "eta": 0, "override_settings": overrides}
    assert "ENSD" not in job(body).infotext


@pytest.mark.parametrize("sampler", ["DPM2 a", "DPM++ 2S a Karras", "DPM fast", "DPM adaptive"])
def test_ensd_is_written_for_every_sampler_that_uses_it(sampler: str) -> None:
    overrides = {"eta_noise_seed_delta": 31337}
    assert "ENSD: 31337" in job({"sampler_name": sampler, "override_settings": overrides}).infotext


def test_eta_follows_the_option_of_its_samplers() -> None:
    overrides = {"eta_ancestral": 0.25, "eta_ddim": 0.75}
    made = {
        sampler: job({"sampler_name": sampler, "override_settings": overrides}).eta
        for sampler in ("Euler a", "DPM++ SDE", "DDIM CFG++", "Euler")
    }
    assert made == {"Euler a": 0.25, "DPM++ SDE": 0.25, "DDIM CFG++": 0.75, "Euler": 0.0}


def test_variations_share_the_seed_and_count_their_own() -> None:
    body = {"seed": 5, "subseed": 40, "subseed_strength": 0.3, "batch_size": 2}
    made = translate.jobs(resolve(body), Random(0))
    assert [(each.seed, each.subseed, each.subseed_strength) for each in made] == [(5, 40, 0.3), (5, 41, 0.3)]
    for each, subseed in zip(made, (40, 41), strict=True):
        variation = f"Variation seed: {subseed}, Variation seed strength: 0.3"
        assert f", Seed: 5, Size: 512x512, Model: demo, {variation}," in each.infotext
    info = json.loads(translate.response(resolve(body), [])["info"])
    assert (info["all_seeds"], info["all_subseeds"]) == ([5, 5], [40, 41])


def test_a_variation_seed_without_strength_changes_nothing() -> None:
    made = job({"seed": 5, "subseed": 40})
    assert (made.subseed, made.subseed_strength) == (0, 0)
    assert "Variation" not in made.infotext


def test_seed_resize_needs_both_sides() -> None:
    made = job({"seed_resize_from_w": 512, "seed_resize_from_h": 384})
    assert (made.seed_resize_from_w, made.seed_resize_from_h) == (512, 384)
    assert ", Seed resize from: 512x384, " in made.infotext
    assert "Seed resize" not in job({"seed_resize_from_w": 512}).infotext
    assert job({"seed_resize_from_w": 0, "seed_resize_from_h": -1}).seed_resize_from_h == 0


@pytest.mark.parametrize("body", [{"subseed_strength": 1.5}, {"seed_resize_from_w": 4}])
def test_noise_that_cannot_be_made_is_refused_by_name(body: dict[str, float]) -> None:
    (field,) = body
    with pytest.raises(InvalidRequest, match=f"{field}: .* is not allowed"):
        job(body)


@pytest.mark.parametrize(
    ("source", "noise", "written"),
    [(None, "cpu", None), ("GPU", "nvidia", None), ("CPU", "cpu", "RNG: CPU"), ("NV", "nvidia", "RNG: NV")],
)
def test_noise_comes_from_where_it_is_asked_from(source: str | None, noise: str, written: str | None) -> None:
    """GPU is written in no infotext, whoever asked for it."""
    made = job({"override_settings": {"randn_source": source}})
    assert made.noise_source == noise
    assert ("RNG" in made.infotext) is (written is not None)
    assert written is None or f", {written}, Version" in made.infotext


def test_the_next_to_last_level_may_always_be_discarded() -> None:
    made = job({"override_settings": {"always_discard_next_to_last_sigma": True}})
    assert made.discard_next_to_last_sigma
    assert ", Discard penultimate sigma: True, " in made.infotext


def test_zero_and_missing_s_tmax_mean_no_upper_bound() -> None:
    assert job({"s_tmax": 0}).s_tmax == job({}).s_tmax == math.inf
    assert job({"s_tmax": 5}).s_tmax == 5
    assert job({"s_noise": 0}).s_noise == 0


def test_the_size_stays_as_asked_for() -> None:
    made = job({"width": 853, "height": 480})
    assert (made.width, made.height) == (853, 480)
    assert "Size: 853x480" in made.infotext


def test_the_timestamp_is_local_time() -> None:
    assert '"job_timestamp": "20240314164634"' in translate.response(resolve({}), [])["info"]


def test_the_denoising_strength_is_written_by_v1_7_0_alone() -> None:
    body = {"denoising_strength": 0.7}
    assert ", Denoising strength: 0.7, " in job(body).infotext
    assert "Denoising" not in job(body, compat_version="v1.10.1").infotext
