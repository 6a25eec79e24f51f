"""diffusers behind a lock with one checkpoint in memory: a request for another one changes the weights first.

That is how desktop servers have many checkpoints. Nothing is built anew for a change, and nothing hashed: the
file, which the page cache has, is read to where the weights of the last one were.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image

from benchmarks.baselines.lock import build
from benchmarks.baselines.pipeline import Pipeline, Settings
from benchmarks.served import Served
from engine.families import told
from engine.weights import TensorFile

SWAPS = "/swaps"


class Swapping:
    """`count` swaps took `seconds`."""

    def __init__(self, served: Served) -> None:
        self._paths = {path.stem: path for path in served.checkpoints}
        self._first = self._loaded = served.checkpoints[0].stem
        self._pipeline = Pipeline(served.checkpoints[0], served.threads, served.loras)
        self.count = 0
        self.seconds = 0.0

    def draw(self, settings: Settings, bodies: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
        wanted = settings.model or self._first
        if wanted != self._loaded:
            began = time.monotonic()
            read_into(self._pipeline.modules, self._paths[wanted])
            self._loaded = wanted
            self.count += 1
            self.seconds += time.monotonic() - began
        return self._pipeline.draw(settings, bodies)


def read_into(modules: Any, path: Path) -> None:
    """A checkpoint's weights to where the modules of another one of its architecture have theirs."""
    with path.open("rb") as opened:
        file = TensorFile(opened)
        outlines = file.outlines()
        named = told(file.header).family.named(outlines, modules)
        targets = [module.state_dict() for module in modules]
        file.read_into((own[name], to[name]) for own, to in zip(named, targets, strict=True) for name in own)


def serve(served: Served, port: int) -> None:
    swapping = Swapping(served)
    app = build(swapping)

    @app.get(SWAPS)
    async def swaps() -> dict[str, float]:
        return {"count": swapping.count, "seconds": swapping.seconds}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
