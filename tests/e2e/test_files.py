"""Files that jobs name besides their checkpoint, through the whole service."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.e2e.service import Service
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
