"""Ray Serve with nothing in it, as it comes: an ingress, a handle, a replica that answers at once.

What is measured is Serve itself. A request's prompt says how many bytes its picture has.
"""

import base64
import os
import signal
from typing import Any

import ray
from fastapi import FastAPI
from pydantic_core import to_json
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle
from starlette.responses import Response

from benchmarks.baselines.pipeline import PATH, READY
from benchmarks.served import Served

app = FastAPI()


@ray_serve.ingress(app)
class Ingress:
    def __init__(self, replica: DeploymentHandle[Any]) -> None:
        self._replica = replica

    @app.get(READY)
    async def ready(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.post(PATH)
    async def txt2img(self, body: dict[str, Any]) -> Response:
        picture = await self._replica.picture.remote(int(body["prompt"]))
        answer = {"images": [base64.b64encode(picture).decode()]}
        return Response(to_json(answer), media_type="application/json")


class Replica:
    async def picture(self, size: int) -> bytes:
        return bytes(size)


def serve(served: Served, port: int) -> None:
    """`served` is not looked at: there is no model."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    replica = ray_serve.deployment(name="Replica")(Replica)
    ingress = ray_serve.deployment(name="Ingress", max_ongoing_requests=1000)(Ingress)
    ray_serve.run(ingress.bind(replica.bind()))
    try:
        signal.pause()
    finally:
        ray.shutdown()
