"""diffusers behind FastAPI, one request at a time: what most write first. All checkpoints are in memory."""

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.baselines.pipeline import PATH, READY, Draws, Pipelines, answer, settings_of
from benchmarks.served import Served


def serve(served: Served, port: int) -> None:
    uvicorn.run(build(Pipelines(served)), host="127.0.0.1", port=port, log_level="warning")


def build(pipelines: Draws) -> FastAPI:
    app = FastAPI()
    lock = asyncio.Lock()

    @app.get(READY)
    async def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post(PATH)
    async def txt2img(body: dict[str, Any]) -> dict[str, Any]:
        async with lock:
            (image,) = await asyncio.to_thread(pipelines.draw, settings_of(body), [body])
        return await asyncio.to_thread(answer, image)

    return app
