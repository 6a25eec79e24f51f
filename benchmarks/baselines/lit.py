"""LitServe with its own dynamic batching.

A batch is up to 8 requests that come within 50 ms. A pipeline call has one setting of everything, so of a
batch those of equal settings share a call, and the calls follow each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import litserve
from PIL import Image

from benchmarks.baselines.pipeline import PATH, READY, Pipelines, Settings, answer, settings_of
from benchmarks.served import Served

MAX_BATCH_SIZE = 8
BATCH_TIMEOUT = 0.05

Body = Mapping[str, Any]


class Drawing(litserve.LitAPI):  # type: ignore[misc]
    """LitServe finds the methods by name and, in part, the arguments too."""

    def __init__(self, served: Served) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT, api_path=PATH)
        self._served = served

    def setup(self, device: str) -> None:
        self._pipelines = Pipelines(self._served)

    def decode_request(self, request: Body) -> Body:
        return request

    def batch(self, inputs: Sequence[Body]) -> Sequence[Body]:
        return inputs

    def predict(self, bodies: Sequence[Body]) -> list[Image.Image]:
        alike: dict[Settings, list[int]] = {}
        for place, body in enumerate(bodies):
            alike.setdefault(settings_of(body), []).append(place)
        drawn: dict[int, Image.Image] = {}
        for settings, places in alike.items():
            images = self._pipelines.draw(settings, [bodies[place] for place in places])
            drawn.update(zip(places, images, strict=True))
        return [drawn[place] for place in range(len(bodies))]

    def unbatch(self, output: list[Image.Image]) -> list[Image.Image]:
        return output

    def encode_response(self, output: Image.Image) -> dict[str, Any]:
        return answer(output)


def serve(served: Served, port: int) -> None:
    server = litserve.LitServer(
        Drawing(served),
        accelerator="cpu",
        devices=1,
        workers_per_device=1,
        timeout=False,
        healthcheck_path=READY,
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
