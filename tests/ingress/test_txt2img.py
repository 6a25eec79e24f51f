import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.ingress.fakes import FakeBackend

DATA = Path(__file__).parent / "data"
DOCUMENTED = json.loads((DATA / "documented_example.json").read_text())

Draw = Callable[..., Any]


def info(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    value = json.loads(answer.json()["info"])
    assert isinstance(value, dict)
    return value


def test_the_documented_request_gets_the_documented_answer(make_client: Callable[..., TestClient]) -> None:
    answer = make_client(clip_skip=2).post(DOCUMENTED["path"], json=DOCUMENTED["request"])
    got, documented = answer.json(), DOCUMENTED["response"]
    assert list(got) == list(documented)
    assert list(got["parameters"].items()) == list(documented["parameters"].items())
    assert len(got["parameters"]) == 50

    ours, theirs = json.loads(got["info"]), json.loads(documented["info"])
    assert got["info"] == json.dumps(ours)
    assert list(ours) == list(theirs)
    assert len(ours) == 32
    seed, subseed = ours["seed"], ours["subseed"]
    expected = theirs | {
        "seed": seed,
        "all_seeds": [seed],
        "subseed": subseed,
        "all_subseeds": [subseed],
        "job_timestamp": ours["job_timestamp"],
        "infotexts": [theirs["infotexts"][0].replace(str(theirs["seed"]), str(seed))],
    }
    assert ours == expected
    assert 0 <= seed < 4294967294
    assert len(ours["job_timestamp"]) == 14


def test_info_says_whether_the_checkpoint_is_for_inpainting(draw: Draw, backend: FakeBackend) -> None:
    assert info(draw())["is_using_inpainting_conditioning"] is False
    backend.known = {"inpainting": True}
    assert info(draw())["is_using_inpainting_conditioning"] is True


def test_floats_are_floats_and_defaults_are_as_upstream_wrote_them(draw: Draw) -> None:
    text = draw(cfg_scale=7).text
    assert '"cfg_scale":7.0' in text
    assert '"hr_scale":2.0' in text
    assert '"subseed_strength":0,' in text
    assert '"subseed_strength":0.0' in draw(subseed_strength=0).text


def test_every_image_carries_its_own_infotext(draw: Draw) -> None:
    answer = draw(prompt="猫, (a:1.2)", negative_prompt="b", batch_size=2, seed=5)
    infotexts = info(answer)["infotexts"]
    for encoded, infotext in zip(answer.json()["images"], infotexts, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
        assert image.info["parameters"] == infotext
    assert infotexts[1] == (
        "猫, (a:1.2)\nNegative prompt: b\nSteps: 50, Sampler: Euler, CFG scale: 7.0, Seed: 6, "
        "Size: 512x512, Model: demo, Version: v1.7.0"
    )


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/v1/sdapi/v1/txt2img"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_both_prefixes_answer_directly(client: TestClient, path: str, slash: str) -> None:
    answer = client.post(path + slash, json={}, follow_redirects=False)
    assert answer.status_code == 200


def test_a_body_without_content_type_is_json(client: TestClient) -> None:
    request = client.build_request("POST", "/sdapi/v1/txt2img", content=b'{"steps": 7}')
    request.headers.pop("content-type", None)
    assert client.send(request).json()["parameters"]["steps"] == 7


def test_images_come_in_the_order_of_their_seeds(draw: Draw, backend: FakeBackend) -> None:
    answer = draw(seed=10, subseed=20, batch_size=2, n_iter=3)
    got = info(answer)
    assert [job.seed for job in backend.jobs] == got["all_seeds"] == [10, 11, 12, 13, 14, 15]
    assert got["all_subseeds"] == [20, 21, 22, 23, 24, 25]
    assert got["batch_size"] == 2
    assert len(answer.json()["images"]) == len(got["infotexts"]) == len(got["all_prompts"]) == 6
    assert len({job.id for job in backend.jobs}) == 6


def test_send_images_false_still_says_what_was_made(draw: Draw, backend: FakeBackend) -> None:
    answer = draw(send_images=False, seed=3)
    assert answer.json()["images"] == []
    assert info(answer)["seed"] == 3
    assert len(backend.jobs) == 1


@pytest.mark.parametrize(
    "wanted",
    [
        "majicmixRealistic_v7",
        "MAJICMIXREALISTIC_V7",
        "majicmixRealistic_v7.safetensors",
        "real/majicmixRealistic_v7.safetensors",
        "real/majicmixRealistic_v7.safetensors [7c819b6d13]",
        "majicmixRealistic_v7 [7c819b6d13]",
        "7c819b6d13",
        "7c819b6d13" + "0" * 54,
    ],
)
def test_a_checkpoint_is_found_by_any_of_its_names(draw: Draw, backend: FakeBackend, wanted: str) -> None:
    assert draw(model=wanted).status_code == 200
    assert draw(override_settings={"sd_model_checkpoint": wanted}).status_code == 200
    assert {job.checkpoint for job in backend.jobs} == {"majicmixRealistic_v7"}


def test_model_wins_over_the_override_and_empty_means_the_default(draw: Draw, backend: FakeBackend) -> None:
    override = {"sd_model_checkpoint": "majicmixRealistic_v7"}
    draw(model="demo", override_settings=override)
    draw(model="", override_settings={"sd_model_checkpoint": ""})
    draw()
    assert [job.checkpoint for job in backend.jobs] == ["demo", "demo", "demo"]


def test_a_title_from_before_the_hash_was_known_again(draw: Draw, backend: FakeBackend) -> None:
    assert draw(model="demo.safetensors [0123456789]").status_code == 200
    assert draw(model="majicmixRealistic_v7 [0123456789]").status_code == 404


def test_v1_10_1_echoes_55_keys_and_splits_the_sampler(make_client: Callable[..., TestClient]) -> None:
    client = make_client(compat_version="v1.10.1", clip_skip=2)
    body = DOCUMENTED["request"] | {"seed": 2162159516}
    answer = client.post("/sdapi/v1/txt2img", json=body)
    keys = list(answer.json()["parameters"])
    assert len(keys) == 55
    assert keys[keys.index("sampler_name") + 1] == "scheduler"
    assert keys[keys.index("hr_sampler_name") + 1] == "hr_scheduler"
    assert keys[keys.index("comments") - 1] == "firstpass_image"
    assert keys[keys.index("hr_negative_prompt") + 1] == "force_task_id"
    assert keys[-1] == "infotext"
    got = info(answer)
    assert got["sampler_name"] == "DPM++ 2M SDE"
    assert got["infotexts"][0].rpartition("\n")[2] == (
        "Steps: 40, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 7.0, Seed: 2162159516, "
        "Size: 720x960, Model hash: 7c819b6d13, Model: majicmixRealistic_v7, Clip skip: 2, Version: v1.10.1"
    )


def test_unknown_keys_and_a_clients_own_secrets_are_not_echoed(draw: Draw) -> None:
    answer = draw(prompt="p", auth="user:pass", url="http://x", distilled_cfg_scale=3, model="demo")
    assert not {"auth", "url", "distilled_cfg_scale", "model"} & set(answer.json()["parameters"])


def test_the_body_that_webuiapi_sends_is_accepted(draw: Draw, backend: FakeBackend) -> None:
    body = json.loads((DATA / "webuiapi_txt2img.json").read_text())
    infotext = info(draw(**body))["infotexts"][0]
    job = backend.jobs[0]
    assert (job.sampler, job.schedule, job.eta, job.s_tmax) == ("Euler a", "uniform", 1.0, float("inf"))
    assert "Denoising strength: 0.7," in infotext
