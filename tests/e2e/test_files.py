"""Files that jobs name besides their checkpoint, through the whole service."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.blip import WORDS
from tests.e2e.service import Service
from tests.pictures import png, scene
from tests.tiny import TINY_TEXT

pytestmark = pytest.mark.ray

HIRES = {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.5}
BODY = {"prompt": "a red circle", "seed": 3, "steps": 4, "width": 64, "height": 64}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"refiner_checkpoint": "second", "refiner_switch_at": 0.5},
            "Refiner: second, Refiner switch at: 0.5",
        ),
        ({**HIRES, "hr_checkpoint_name": "second"}, "Hires checkpoint: second"),
        ({**HIRES, "hr_upscaler": "2x"}, "Hires upscaler: 2x"),
        ({"override_settings": {"sd_vae": "kl"}}, "VAE: kl.safetensors"),
        ({"tiling": True}, "Tiling: True"),
    ],
)
def test_what_a_request_names_reaches_the_picture_and_its_infotext(
    service: Service, changes: dict[str, object], told: str
) -> None:
    plain = service.client.post("/sdapi/v1/txt2img", json=BODY | (HIRES if "enable_hr" in changes else {}))
    answer = service.client.post("/sdapi/v1/txt2img", json=BODY | changes)
    assert answer.status_code == 200, answer.text
    assert "x-warnings" not in answer.headers
    assert told in answer.json()["info"]
    assert answer.json()["images"] != plain.json()["images"]


def test_lists_tell_of_the_files(service: Service) -> None:
    def names(path: str, key: str) -> list[str]:
        return [item[key] for item in service.client.get(f"/sdapi/v1/{path}").json()]

    assert names("sd-vae", "model_name") == ["kl.safetensors"]
    assert "2x" in names("upscalers", "name")
    assert names("sd-models", "model_name")[:2] == ["tiny", "second"]


def test_an_embedding_that_was_added_is_used_by_every_replica_after_a_refresh(
    service: Service, folder: Path
) -> None:
    body = BODY | {"prompt": "a thing", "batch_size": 4}
    before = service.client.post("/sdapi/v1/txt2img", json=body).json()
    learnt = torch.randn(2, TINY_TEXT["hidden_size"], generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": learnt}, folder / "embeddings" / "thing.safetensors")
    assert service.client.post("/sdapi/v1/refresh-embeddings").json() is None
    assert list(service.client.get("/sdapi/v1/embeddings").json()["loaded"]) == ["thing"]
    after = service.client.post("/sdapi/v1/txt2img", json=body).json()
    assert all(one != other for one, other in zip(before["images"], after["images"], strict=True))
    assert "TI hashes: " in after["info"]
    assert "TI hashes: " not in before["info"]


def test_memory_is_told_of_a_cpu_service(service: Service) -> None:
    memory = service.client.get("/sdapi/v1/memory").json()
    assert 0 < memory["ram"]["used"] < memory["ram"]["total"]
    assert memory["cuda"] == {"error": "unavailable"}


def test_a_checkpoint_that_replicas_may_not_load_is_a_client_error(service: Service) -> None:
    answer = service.client.post("/sdapi/v1/txt2img", json=BODY | {"refiner_checkpoint": "tiny"})
    assert answer.status_code == 200
    answer = service.client.post("/sdapi/v1/txt2img", json=BODY | {"model": "second"})
    assert answer.status_code == 422


def test_a_drawn_picture_is_enlarged_and_keeps_what_it_says(service: Service) -> None:
    drawn = service.txt2img(**BODY)
    body = {
        "image": base64.b64encode(drawn).decode(),
        "upscaler_1": "2x",
        "upscaler_2": "Lanczos",
        "extras_upscaler_2_visibility": 0.5,
        "upscaling_resize": 4,
    }
    answer = service.client.post("/v1/sdapi/v1/extra-single-image", json=body)
    assert answer.status_code == 200, answer.text
    done = "Postprocess upscale by: 4.0, Postprocess upscaler: 2x, Postprocess upscaler 2: Lanczos"
    assert answer.json()["html_info"] == f"<p>{done}</p>"
    large = Image.open(io.BytesIO(base64.b64decode(answer.json()["image"])))
    assert large.size == (256, 256)
    said = Image.open(io.BytesIO(drawn)).info["parameters"]
    assert large.info == {"parameters": said, "postprocessing": done}
    told = service.client.post("/sdapi/v1/png-info", json={"image": answer.json()["image"]}).json()
    assert (told["info"], told["items"]) == (said, {"postprocessing": done})
    assert told["parameters"]["Seed"] == "3"


def test_a_batch_is_enlarged_in_its_order(service: Service) -> None:
    pictures = [scene(16, 8), scene(8, 24)]
    body = {
        "imageList": [{"data": base64.b64encode(png(each)).decode(), "name": "x"} for each in pictures],
        "upscaler_1": "Nearest",
        "upscaling_resize": 2,
    }
    answer = service.client.post("/sdapi/v1/extra-batch-images", json=body)
    assert answer.status_code == 200, answer.text
    for given, image in zip(pictures, answer.json()["images"], strict=True):
        large = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))
        assert np.array_equal(large, np.asarray(given).repeat(2, axis=0).repeat(2, axis=1))


def test_an_upscaler_that_is_not_there_is_told_through_all_processes(service: Service) -> None:
    body = {"image": base64.b64encode(png(scene(8, 8))).decode(), "upscaler_1": "2x+"}
    answer = service.client.post("/sdapi/v1/extra-single-image", json=body)
    assert answer.status_code == 422
    assert "Nearest: 2x" in answer.json()["detail"]
    assert answer.json()["errors"] == "could not find upscaler named 2x+"


def test_a_picture_is_described(service: Service) -> None:
    body = {"image": base64.b64encode(png(scene(64, 48))).decode()}
    answer = service.client.post("/sdapi/v1/interrogate", json=body)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()["caption"].split()) <= set(WORDS)


@pytest.mark.parametrize(("option", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_pictures_come_in_the_format_that_is_asked_for(service: Service, option: str, kind: str) -> None:
    drawn = service.txt2img(**BODY, override_settings={"samples_format": option})
    assert Image.open(io.BytesIO(drawn)).format == kind
    told = service.client.post("/sdapi/v1/png-info", json={"image": base64.b64encode(drawn).decode()}).json()
    assert told["parameters"]["Prompt"] == "a red circle"
