"""The client library webuiapi, unmodified, against the app on a socket."""

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
import webuiapi

from engine.protocol import SCHEDULES
from ingress.app import build_app
from ingress.settings import Settings
from tests.ingress.fakes import FakeBackend


@pytest.fixture
def port(backend: FakeBackend, settings: Settings) -> Iterator[int]:
    app = build_app(backend, settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


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
