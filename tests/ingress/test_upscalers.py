from starlette.testclient import TestClient

from engine.protocol import UpscalerFile
from tests.ingress.fakes import FakeBackend

FILES = [
    UpscalerFile(name="4x-Own", filename="sub/4x-Own.safetensors", scale=4),
    UpscalerFile(name="R-ESRGAN 2x+", filename="RealESRGAN_x2plus.safetensors", scale=2),
]


def test_upscalers_are_listed_behind_those_that_are_always_there(
    client: TestClient, backend: FakeBackend
) -> None:
    backend.upscaler_files = FILES
    none = {"model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
    assert client.get("/sdapi/v1/upscalers").json() == [
        {"name": "None", **none},
        {"name": "Lanczos", **none},
        {"name": "Nearest", **none},
        {
            "name": "4x-Own",
            "model_name": "4x-Own",
            "model_path": "sub/4x-Own.safetensors",
            "model_url": None,
            "scale": 4.0,
        },
        {
            "name": "R-ESRGAN 2x+",
            "model_name": "RealESRGAN_x2plus",
            "model_path": "RealESRGAN_x2plus.safetensors",
            "model_url": None,
            "scale": 2.0,
        },
    ]


def test_of_real_esrgans_models_those_are_listed_that_are_there(
    client: TestClient, backend: FakeBackend
) -> None:
    assert client.get("/sdapi/v1/realesrgan-models").json() == []
    backend.upscaler_files = FILES
    assert client.get("/sdapi/v1/realesrgan-models").json() == [
        {"name": "R-ESRGAN 2x+", "path": "RealESRGAN_x2plus.safetensors", "scale": 2}
    ]


def test_latent_modes_are_listed(client: TestClient) -> None:
    names = [mode["name"] for mode in client.get("/sdapi/v1/latent-upscale-modes").json()]
    assert names[0] == "Latent"
    assert len(names) == 6
