"""The service as its clients see it: A1111's own, many at once, and the documented request."""

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webuiapi
from PIL import Image

from tests.e2e.service import SECRET, Service
from tests.pictures import scene

pytestmark = pytest.mark.ray

DOCUMENTED = json.loads(
    Path(__file__).parent.parent.joinpath("ingress/data/documented_example.json").read_text()
)
SAMPLERS = ("Euler", "Euler a", "Heun", "DPM++ 2M Karras", "DPM++ 2M SDE Exponential", "DDIM")


@pytest.fixture(params=["basic", "bearer"])
def api(service: Service, request: pytest.FixtureRequest) -> Iterator[webuiapi.WebUIApi]:
    """The client library, unmodified."""
    api = webuiapi.WebUIApi(host="127.0.0.1", port=service.port)
    if request.param == "basic":
        api.set_auth("anyone", SECRET)
    else:
        api.session.headers["Authorization"] = f"Bearer {SECRET}"
    yield api
    api.session.close()


def test_webuiapi_draws_against_the_running_service(api: webuiapi.WebUIApi) -> None:
    drawn = api.txt2img(prompt="a red circle", seed=5, steps=4, width=64, height=64, batch_size=2)
    assert [image.size for image in drawn.images] == [(64, 64), (64, 64)]
    assert drawn.info["all_seeds"] == [5, 6]
    assert drawn.image.info["parameters"] == drawn.info["infotexts"][0]


def test_webuiapi_enlarges(api: webuiapi.WebUIApi) -> None:
    drawn = api.txt2img(
        prompt="a red circle",
        steps=2,
        width=64,
        height=64,
        enable_hr=True,
        hr_scale=2,
        denoising_strength=0.5,
    )
    assert drawn.image.size == (128, 128)


@pytest.mark.parametrize("only_masked", [False, True])
def test_webuiapi_repaints_what_a_mask_covers(api: webuiapi.WebUIApi, only_masked: bool) -> None:
    picture, mask = scene(64, 64), Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    drawn = api.img2img(
        images=[picture],
        mask_image=mask,
        mask_blur=0,
        inpaint_full_res=only_masked,
        prompt="a red circle",
        steps=4,
        width=64,
        height=64,
    )
    changed = (np.asarray(drawn.image) != np.asarray(picture)).any(axis=2)
    assert changed[16:48, 16:48].mean() > 0.5
    changed[16:48, 16:48] = False
    assert not changed.any()


def mixed(client: int) -> dict[str, Any]:
    return {
        "prompt": f"(number {client}:1.1) on a field" + ", detailed" * 40 * (client % 2),
        "negative_prompt": ["", "blue", "(grey:1.3)"][client % 3],
        "seed": 1000 + client,
        "steps": 30 + client % 5,
        "sampler_name": SAMPLERS[client % len(SAMPLERS)],
        "cfg_scale": [1.0, 4.5, 7.0, 11.0][client % 4],
        "width": 64,
        "height": 64,
    }


def test_sixteen_strangers_share_calls_and_get_the_pictures_they_get_alone(service: Service) -> None:
    def evaluations() -> tuple[float, float]:
        rows, calls = (
            service.metric(f"atelier_batch_rows_{part}", operation="evaluate", checkpoint="tiny")
            for part in ("sum", "count")
        )
        return rows, calls

    alone = [service.txt2img(**mixed(client)) for client in range(16)]
    before = evaluations()
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda client: service.txt2img(**mixed(client)), range(16)))
    rows, calls = (after - b for after, b in zip(evaluations(), before, strict=True))
    assert rows / calls >= 6
    for one, other in zip(alone, together, strict=True):
        a, b = (np.asarray(Image.open(io.BytesIO(png)), dtype=int) for png in (one, other))
        assert np.abs(a - b).max() <= 1


def test_documented_request_gets_the_documented_answer(service: Service) -> None:
    request = {**DOCUMENTED["request"], "model": "tiny", "steps": 2, "width": 72, "height": 96}
    answer = service.client.post("/v1/sdapi/v1/txt2img", json=request).json()
    expected = DOCUMENTED["response"]
    assert list(answer) == list(expected)
    assert list(answer["parameters"]) == list(expected["parameters"])
    assert list(json.loads(answer["info"])) == list(json.loads(expected["info"]))
    image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    assert image.size == (72, 96)
    assert image.info["parameters"] == json.loads(answer["info"])["infotexts"][0]
