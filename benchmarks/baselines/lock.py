"""diffusers behind FastAPI, one request at a time: what most write first."""

import asyncio
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.baselines.pipeline import PATH, READY, Pipeline, answer, settings_of


def serve(checkpoint: Path, port: int, threads: int) -> None:
    uvicorn.run(build(Pipeline(checkpoint, threads)), host="127.0.0.1", port=port, log_level="warning")


def build(pipeline: Pipeline) -> FastAPI:
    app = FastAPI()
    lock = asyncio.Lock()

    @app.get(READY)
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post(PATH)
    async def txt2img(body: dict[str, Any]) -> dict[str, Any]:
        async with lock:
            (image,) = await asyncio.to_thread(pipeline.draw, settings_of(body), [body])
        return await asyncio.to_thread(answer, image)

    return app
