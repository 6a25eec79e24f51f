"""The client library webuiapi, unmodified, against the app on a socket: each of its methods."""

import asyncio
import inspect
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
import uvicorn
import webuiapi
from PIL import Image
from webuiapi import WebUIApi as Api

from engine.protocol import SCHEDULES, EmbeddingFile, LoraFile, UpscalerFile, VaeFile
from ingress.app import build_app
from ingress.settings import Settings, Style
from tests.ingress.bodies import willing_backend
from tests.ingress.fakes import FakeBackend

pytestmark = [  # it uses aiohttp's older ways
    pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'auth' parameter is deprecated:DeprecationWarning"),
]
PICTURE = Image.new("RGB", (8, 8), "red")


@pytest.fixture
def backend() -> FakeBackend:
    made = willing_backend()
    made.lora_files = [LoraFile(name="ink", alias="ink", filename="ink.safetensors", metadata={})]
    made.embedding_files = [EmbeddingFile(name="thing", width=768, vectors=1, usable=True)]
    made.upscaler_files = [UpscalerFile(name="R-ESRGAN 4x+", filename="x4.safetensors", scale=4)]
    made.vae_files = [VaeFile(name="kl.safetensors", filename="kl.safetensors")]
    return made


@pytest.fixture
def port(backend: FakeBackend, settings: Settings) -> Iterator[int]:
    styled = settings.model_copy(update={"styles": (Style(name="ink", prompt="ink"),)})
    app = build_app(backend, styled)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture
def api(port: int, key: str) -> Iterator[Api]:
    made = webuiapi.WebUIApi(port=port, username="anyone", password=key)
    yield made
    made.session.close()


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
@pytest.mark.parametrize("prefix", ["/sdapi/v1", "/v1/sdapi/v1"])
def test_webuiapi_draws(port: int, key: str, scheme: str, prefix: str) -> None:
    api = webuiapi.WebUIApi(baseurl=f"http://127.0.0.1:{port}{prefix}")
    if scheme == "basic":
        api.set_auth("anyone", key)
    else:
        api.session.headers["Authorization"] = f"Bearer {key}"

    drawn = api.txt2img(prompt="a lighthouse", seed=1003, batch_size=2, sampler_name="DPM++ 2M Karras")
    assert len(drawn.images) == 2
    assert drawn.image.info["parameters"] == drawn.info["infotexts"][0]
    assert drawn.info["all_seeds"] == [1003, 1004]
    assert drawn.parameters["prompt"] == "a lighthouse"

    assert api.util_get_model_names()[0] == "demo.safetensors"
    assert "DPM++ 2M Karras" in api.util_get_sampler_names()
    assert set(api.util_get_scheduler_names()) == {"automatic", *SCHEDULES}
    api.session.close()


def test_webuiapi_is_told_that_its_key_is_wrong(port: int) -> None:
    api = webuiapi.WebUIApi(baseurl=f"http://127.0.0.1:{port}/sdapi/v1")
    api.set_auth("anyone", "wrong")
    with pytest.raises(RuntimeError, match="401"):
        api.txt2img(prompt="a lighthouse")
    api.session.close()


def is_drawn(result: webuiapi.WebUIApiResult) -> bool:
    return bool(result.image.size == (8, 8)) and isinstance(result.info, dict)


def is_refused(call: Callable[[], object], text: str) -> bool:
    with pytest.raises(RuntimeError, match=text) as raised:
        call()
    return bool(raised.value.args[0] == 404)


def is_set(api: Api) -> bool:
    """By the nearest title."""
    api.util_set_model("majicmix")
    current: str = api.util_get_current_model()
    return current == "real/majicmixRealistic_v7.safetensors [7c819b6d13]"


def lacks_version(api: Api) -> bool:
    """As with an AUTOMATIC1111 that has no ControlNet."""
    with pytest.raises(KeyError, match="version"):
        api.controlnet_version()
    return True


def finds_no_extensions(api: Api) -> bool:
    api.check_extensions()
    return not (api.has_controlnet or api.has_adetailer or api.has_animatediff)


def draws_at(api: Api) -> bool:
    return is_drawn(api.post_and_get_api_result(f"{api.baseurl}/txt2img", {"steps": 1}, False))


CASES: Mapping[str, Callable[[Api], bool]] = {
    "set_auth": lambda api: api.set_auth("anyone", "wrong") is None and "error" in api.get_samplers(),
    "check_extensions": finds_no_extensions,
    "txt2img": lambda api: is_drawn(api.txt2img(prompt="a", enable_hr=True, styles=["ink"])),
    "img2img": lambda api: is_drawn(api.img2img(images=[PICTURE], mask_image=PICTURE, prompt="a")),
    "post_and_get_api_result": draws_at,
    "async_post": lambda api: is_drawn(
        asyncio.run(api.async_post(f"{api.baseurl}/txt2img", {"steps": 1, "width": 64}))
    ),
    "extra_single_image": lambda api: api.extra_single_image(PICTURE).image.size == (8, 8),
    "extra_batch_images": lambda api: len(api.extra_batch_images([PICTURE, PICTURE]).images) == 2,
    "png_info": lambda api: api.png_info(api.txt2img(prompt="a").image).info.startswith("a\nSteps: 20"),
    "interrogate": lambda api: isinstance(api.interrogate(PICTURE).info, str),
    "list_prompt_gen_models": lambda api: api.list_prompt_gen_models() == [],
    "prompt_gen": lambda api: is_refused(api.prompt_gen, "promptgen is no part of this service"),
    "interrupt": lambda api: api.interrupt() == {},
    "skip": lambda api: api.skip() is None,
    "get_options": lambda api: api.get_options()["sd_model_checkpoint"] in api.util_get_model_names(),
    "set_options": lambda api: api.set_options({"CLIP_stop_at_last_layers": 2}) is None,
    "get_cmd_flags": lambda api: api.get_cmd_flags()["api"] is True,
    "get_progress": lambda api: api.get_progress()["state"]["job_count"] == 0,
    "get_samplers": lambda api: len(api.get_samplers()) == 30,
    "get_schedulers": lambda api: api.get_schedulers()[0]["name"] == "automatic",
    "get_sd_vae": lambda api: api.get_sd_vae()[0]["model_name"] == "kl.safetensors",
    "get_upscalers": lambda api: [each["name"] for each in api.get_upscalers()][:2] == ["None", "Lanczos"],
    "get_latent_upscale_modes": lambda api: len(api.get_latent_upscale_modes()) == 6,
    "get_loras": lambda api: api.get_loras()[0]["name"] == "ink",
    "get_sd_models": lambda api: api.get_sd_models()[0]["model_name"] == "demo",
    "get_hypernetworks": lambda api: api.get_hypernetworks() == [],
    "get_face_restorers": lambda api: api.get_face_restorers() == [],
    "get_realesrgan_models": lambda api: api.get_realesrgan_models()[0]["scale"] == 4,
    "get_prompt_styles": lambda api: api.get_prompt_styles()[0]["prompt"] == "ink",
    "get_artist_categories": lambda api: "no lists of artists" in api.get_artist_categories()["detail"],
    "get_artists": lambda api: "no lists of artists" in api.get_artists()["detail"],
    "refresh_checkpoints": lambda api: api.refresh_checkpoints() is None,
    "get_scripts": lambda api: api.get_scripts()["txt2img"] == ["refiner", "seed"],
    "get_embeddings": lambda api: list(api.get_embeddings()["loaded"]) == ["thing"],
    "get_memory": lambda api: api.get_memory()["ram"]["total"] > 0,
    "get_endpoint": lambda api: api.get_endpoint("controlnet/version", False).endswith("/controlnet/version"),
    "custom_get": lambda api: api.custom_get("internal/ping") == {},
    "custom_post": lambda api: is_drawn(api.custom_post("txt2img", {"steps": 1}, baseurl=True)),
    "controlnet_version": lacks_version,
    "controlnet_model_list": lambda api: api.controlnet_model_list() == [],
    "controlnet_module_list": lambda api: api.controlnet_module_list() == [],
    "controlnet_detect": lambda api: is_refused(
        lambda: api.controlnet_detect([PICTURE]), "ControlNet is no part of this service"
    ),
    "util_get_model_names": lambda api: api.util_get_model_names()[0] == "demo.safetensors",
    "util_get_sampler_names": lambda api: "Euler a" in api.util_get_sampler_names(),
    "util_get_scheduler_names": lambda api: "karras" in api.util_get_scheduler_names(),
    "util_set_model": is_set,
    "util_get_current_model": lambda api: api.util_get_current_model() in api.util_get_model_names(),
    "util_wait_for_ready": lambda api: api.util_wait_for_ready() is None,
}

ASYNC: Mapping[str, Callable[[Api], Awaitable[webuiapi.WebUIApiResult]]] = {
    "txt2img": lambda api: api.txt2img(prompt="a", use_async=True),
    "img2img": lambda api: api.img2img(images=[PICTURE], use_async=True),
    "extra_single_image": lambda api: api.extra_single_image(PICTURE, use_async=True),
    "extra_batch_images": lambda api: api.extra_batch_images([PICTURE], use_async=True),
    "custom_post": lambda api: api.custom_post("txt2img", {"steps": 1}, baseurl=True, use_async=True),
    "post_and_get_api_result": lambda api: api.post_and_get_api_result(
        f"{api.baseurl}/txt2img", {"steps": 1}, True
    ),
}


def methods() -> dict[str, Any]:
    return {name: m for name, m in inspect.getmembers(Api, inspect.isfunction) if not name.startswith("_")}


def test_there_is_a_case_for_every_method() -> None:
    assert set(CASES) == set(methods())
    with_async = {name for name, m in methods().items() if "use_async" in inspect.signature(m).parameters}
    assert set(ASYNC) == with_async


@pytest.mark.parametrize("method", CASES)
def test_the_method_works(api: Api, method: str) -> None:
    assert CASES[method](api)


@pytest.mark.parametrize("method", ASYNC)
async def test_the_method_works_asynchronously(api: Api, method: str) -> None:
    result = await ASYNC[method](api)
    assert result.image.size == (8, 8)


def test_units_of_extensions_that_do_nothing_are_accepted(api: Api) -> None:
    units = [webuiapi.ControlNetUnit(), webuiapi.ControlNetUnit(module="canny", model="x", enabled=False)]
    scripts: dict[str, Any] = {}
    assert is_drawn(
        api.txt2img(
            controlnet_units=units,
            adetailer=[webuiapi.ADetailer()],
            animatediff=webuiapi.AnimateDiff(enable=False),
            roop=webuiapi.Roop(PICTURE, enable=False),
            reactor=webuiapi.ReActor(PICTURE, enable=False),
            sag=webuiapi.Sag(enable=False),
            alwayson_scripts=scripts,
        )
    )
    assert len(scripts) == 6


@pytest.mark.parametrize(
    "unit",
    [
        {"controlnet_units": [webuiapi.ControlNetUnit(image=PICTURE, module="canny", model="x")]},
        {"controlnet_units": [webuiapi.ControlNetUnit(image=PICTURE, module="reference_only")]},
        {"adetailer": [webuiapi.ADetailer(ad_model="face_yolov8n.pt")]},
        {"animatediff": webuiapi.AnimateDiff()},
        {"roop": webuiapi.Roop(PICTURE)},
        {"reactor": webuiapi.ReActor(PICTURE)},
        {"sag": webuiapi.Sag()},
    ],
    ids=lambda unit: next(iter(unit)),
)
def test_units_of_extensions_that_would_do_something_are_refused(api: Api, unit: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="feature that this version does not have") as raised:
        api.txt2img(alwayson_scripts={}, **unit)
    assert raised.value.args[0] == 422
