"""Ray Serve as its Stable Diffusion tutorial has it: an ingress deployment, and one with the pipeline.

https://docs.ray.io/en/latest/serve/tutorials/stable-diffusion.html, on a CPU, without autoscaling (one
machine), and with a lock: Serve runs plain methods in threads, up to five at once, and a pipeline is not made
for two. With one at a time by `max_ongoing_requests` instead it would idle between calls, in the router.
"""

import os
import signal
from threading import Lock
from typing import Any

import ray
from fastapi import FastAPI
from PIL import Image
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from benchmarks.baselines.pipeline import PATH, READY, Pipelines, answer, settings_of
from benchmarks.served import Served

app = FastAPI()


@ray_serve.ingress(app)
class Ingress:
    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self._model = model

    @app.get(READY)
    async def ready(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.post(PATH)
    async def txt2img(self, body: dict[str, Any]) -> dict[str, Any]:
        return answer(await self._model.generate.remote(body))


class StableDiffusion:
    def __init__(self, served: Served) -> None:
        self._pipelines = Pipelines(served)
        self._lock = Lock()

    def generate(self, body: dict[str, Any]) -> Image.Image:
        with self._lock:
            (image,) = self._pipelines.draw(settings_of(body), [body])
        return image


def serve(served: Served, port: int) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        "local",
        num_cpus=1 + served.replicas,  # one for each, and one for the ingress
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    model = ray_serve.deployment(name="StableDiffusion", num_replicas=served.replicas)(StableDiffusion)
    ingress = ray_serve.deployment(max_ongoing_requests=1000)(Ingress)
    ray_serve.run(ingress.bind(model.bind(served)))
    try:
        signal.pause()
    finally:
        ray.shutdown()
