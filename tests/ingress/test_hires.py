import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.protocol import Hires, UpscalerError
from tests.ingress.fakes import FakeBackend

Draw = Callable[..., Any]


def second_pass(backend: FakeBackend) -> Hires:
    hires = backend.jobs[-1].hires
    assert hires is not None
    return hires


def test_without_enable_hr_its_fields_mean_nothing(draw: Draw, backend: FakeBackend) -> None:
    assert draw(hr_scale=99, hr_upscaler="no such", hr_sampler_name="no such").status_code == 200
    assert backend.jobs[0].hires is None


def test_the_second_pass_is_as_the_first_unless_told_otherwise(draw: Draw, backend: FakeBackend) -> None:
    draw(
        prompt="p", negative_prompt="n", enable_hr=True, sampler_name="DPM++ 2M Karras", steps=9, width=128,
        height=64, denoising_strength=0.3,
    )  # fmt: skip
    job = backend.jobs[0]
    assert (job.width, job.height) == (128, 64)
    assert second_pass(backend) == Hires(
        checkpoint=job.checkpoint,
        upscaler="Latent",
        upscaled_width=256,
        upscaled_height=128,
        width=256,
        height=128,
        steps=9,
        denoising_strength=0.3,
        sampler="DPM++ 2M",
        schedule="karras",
        eta=job.eta,
        prompt="p",
        negative_prompt="n",
    )


def test_the_second_pass_has_settings_of_its_own(draw: Draw, backend: FakeBackend) -> None:
    draw(
        prompt="p", enable_hr=True, sampler_name="Euler", hr_sampler_name="Euler a", hr_prompt="q",
        hr_negative_prompt="m", hr_second_pass_steps=5, hr_upscaler="Lanczos",
    )  # fmt: skip
    hires = second_pass(backend)
    assert (hires.sampler, hires.eta, hires.steps) == ("Euler a", 1.0, 5)
    assert (hires.prompt, hires.negative_prompt, hires.upscaler) == ("q", "m", "Lanczos")
    assert backend.jobs[0].sampler == "Euler"


def test_the_second_pass_may_have_a_checkpoint_of_its_own(draw: Draw, backend: FakeBackend) -> None:
    draw(enable_hr=True, hr_checkpoint_name="majicmixRealistic_v7 [7c819b6d13]")
    assert (backend.jobs[0].checkpoint, second_pass(backend).checkpoint) == ("demo", "majicmixRealistic_v7")
    assert "Hires checkpoint: majicmixRealistic_v7 [7c819b6d13], Hires upscale" in backend.jobs[0].infotext


def test_names_of_upscalers_are_passed_on_to_the_replicas(draw: Draw, backend: FakeBackend) -> None:
    info = json.loads(draw(enable_hr=True, hr_upscaler="R-ESRGAN 4x+").json()["info"])
    assert second_pass(backend).upscaler == "R-ESRGAN 4x+"
    assert "Hires upscaler: R-ESRGAN 4x+" in info["infotexts"][0]


def test_an_upscaler_that_no_replica_knows_is_a_client_error(draw: Draw, backend: FakeBackend) -> None:
    backend.fail = UpscalerError("hr_upscaler: '5x' is not known. Allowed: Latent.")
    answer = draw(enable_hr=True, hr_upscaler="5x")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "hr_upscaler: '5x' is not known. Allowed: Latent."


def test_what_leaves_the_strength_open_gets_the_contracts_default(draw: Draw, backend: FakeBackend) -> None:
    draw(enable_hr=True)
    assert second_pass(backend).denoising_strength == 0.75


@pytest.mark.parametrize("name", ["Use same sampler", "", None])
def test_ways_to_say_the_same_sampler(draw: Draw, backend: FakeBackend, name: str | None) -> None:
    body = {"hr_scheduler": "Use same scheduler", "hr_checkpoint_name": "Use same checkpoint"}
    assert draw(enable_hr=True, sampler_name="Heun", hr_sampler_name=name, **body).status_code == 200
    assert second_pass(backend).sampler == "Heun"


@pytest.mark.parametrize(
    ("body", "upscaled", "target"),
    [
        ({"hr_scale": 1.5}, (192, 96), (192, 96)),
        ({"hr_resize_x": 200}, (200, 100), (200, 100)),
        ({"hr_resize_y": 200}, (400, 200), (400, 200)),
        ({"hr_resize_x": 256, "hr_resize_y": 256}, (512, 256), (256, 256)),
        ({"hr_resize_x": 512, "hr_resize_y": 128}, (512, 256), (512, 128)),
    ],
)
def test_sizes_cover_the_box_and_are_cut_to_it(
    draw: Draw, backend: FakeBackend, body: dict[str, Any], upscaled: Any, target: Any
) -> None:
    draw(enable_hr=True, width=128, height=64, **body)
    hires = second_pass(backend)
    assert (hires.upscaled_width, hires.upscaled_height) == upscaled
    assert (hires.width, hires.height) == target


def test_old_clients_give_the_size_of_the_first_pass(draw: Draw, backend: FakeBackend) -> None:
    draw(enable_hr=True, width=512, height=256, firstphase_width=256, firstphase_height=128)
    job, hires = backend.jobs[0], second_pass(backend)
    assert (job.width, job.height, hires.width, hires.height) == (256, 128, 512, 256)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"hr_scale": 9}, 422, "hr_scale: 9"),
        ({"hr_scale": 8, "width": 512}, 422, "hr_scale: a picture of 4096"),
        ({"hr_resize_x": -8}, 422, "hr_resize_x: -8"),
        ({"hr_resize_x": 8, "hr_resize_y": 8}, 422, "hr_resize_x × hr_resize_y: a picture of 8"),
        ({"hr_second_pass_steps": 9999}, 422, "hr_second_pass_steps: 9999"),
        ({"hr_upscaler": "x" * 256}, 422, "is too long. Allowed: 255 characters"),
        ({"hr_sampler_name": "no such"}, 404, "Sampler not found"),
        ({"hr_checkpoint_name": "no such"}, 404, "hr_checkpoint_name: 'no such'"),
        ({"firstphase_width": 256}, 422, "firstphase_width × firstphase_height: 256 × 0"),
    ],
)
def test_bad_input_is_named_before_any_work(
    draw: Draw, backend: FakeBackend, body: dict[str, Any], status: int, named: str
) -> None:
    answer = draw(**{"enable_hr": True, "width": 256, "height": 256, **body})
    assert answer.status_code == status
    assert named in answer.json()["detail"]
    assert not backend.jobs


def test_the_infotext_tells_of_the_second_pass(make_client: Callable[..., TestClient]) -> None:
    client = make_client(compat_version="v1.10.1")
    body = {
        "enable_hr": True, "denoising_strength": 0.5, "hr_second_pass_steps": 10, "hr_upscaler": "Latent",
        "hr_prompt": "q",
    }  # fmt: skip
    info = json.loads(client.post("/sdapi/v1/txt2img", json=body).json()["info"])
    assert (
        "Denoising strength: 0.5, Hires prompt: q, Hires upscale: 2.0, Hires steps: 10, "
        "Hires upscaler: Latent, Version: v1.10.1"
    ) in info["infotexts"][0]
