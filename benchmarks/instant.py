"""A backend whose pictures are there at once, behind the real HTTP side: for what a gateway itself costs.

A job's prompt says how many bytes its picture has. `python -m benchmarks.instant PORT KEY` serves it by
uvicorn alone; `benchmarks.instant:build_instant` is a checkpoint's application for Serve.
"""

import hashlib
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import uvicorn
from ray import serve
from ray.serve import Application

from deployments.app import Root
from deployments.config import DIFFUSION
from engine.protocol import (
    Checkpoint,
    DeviceMemory,
    EmbeddingFile,
    Enlargement,
    FolderKind,
    Job,
    JobResult,
    LoraFile,
    NotOffered,
    Timings,
    UpscalerFile,
    VaeFile,
)
from ingress.app import build_app
from ingress.backend import Order, OrderProgress
from ingress.settings import Key, Settings

CHECKPOINT = Checkpoint(name="instant", filename="instant.safetensors", sha256="0" * 64)
NO_TIME = Timings(wait=0, encode=0, denoise=0, decode=0, write=0, total=0)


def picture(job: Job | Enlargement) -> JobResult:
    if isinstance(job, Enlargement):
        raise NotOffered("nothing is enlarged here")
    return JobResult(
        job_id=job.id,
        image=bytes(int(job.prompt)),
        seed=job.seed,
        evaluations=job.steps,
        timings=NO_TIME,
        infotext=job.infotext,
    )


class InstantBackend:
    """In the gateway's own process."""

    def checkpoints(self) -> Sequence[Checkpoint]:
        return [CHECKPOINT]

    def opened(self, order: Order) -> AbstractContextManager[None]:
        return nullcontext()

    async def run(self, job: Job | Enlargement) -> JobResult:
        return picture(job)

    async def caption(self, image: bytes) -> str:
        raise NotOffered("nothing is captioned here")

    async def progress(self, key: str, order: str | None, *, preview: bool) -> OrderProgress | None:
        return None

    async def pending(self, key: str) -> Sequence[str]:
        return []

    async def interrupt(self, key: str, order: str | None, *, skip: bool = False) -> int:
        return 0

    async def loras(self) -> Sequence[LoraFile]:
        return []

    async def refresh(self, kind: FolderKind) -> None:
        """There are none."""

    async def memory(self) -> Sequence[DeviceMemory]:
        return []

    async def embeddings(self) -> Sequence[EmbeddingFile]:
        return []

    async def upscalers(self) -> Sequence[UpscalerFile]:
        return []

    async def vaes(self) -> Sequence[VaeFile]:
        return []

    async def metrics(self) -> str:
        return ""


class InstantDiffusion:
    """In a replica of its own, behind the router."""

    async def run(self, job: Job) -> JobResult:
        return picture(job)

    def describe(self) -> Checkpoint:
        return CHECKPOINT

    def metrics_text(self) -> str:
        return ""


def build_instant(args: dict[str, Any]) -> Application:
    """As `deployments.app.build_checkpoint` with `max_rows: 16`."""
    replicas = serve.deployment(name=DIFFUSION)(InstantDiffusion).options(
        num_replicas=1,
        max_ongoing_requests=40,
        max_queued_requests=256,
        ray_actor_options={"num_cpus": 0},
        request_router_config={
            "request_router_class": "deployments.router:BatchRouter",
            "request_router_kwargs": {"jobs": 16},
            "initial_backoff_s": 0.005,
            "backoff_multiplier": 2,
            "max_backoff_s": 0.02,
        },
    )
    root = serve.deployment(name="Root")(Root).options(ray_actor_options={"num_cpus": 0})
    return root.bind(replicas.bind())


def main() -> None:
    port, secret = int(sys.argv[1]), sys.argv[2]
    settings = Settings(keys=(Key(id="local", sha256=hashlib.sha256(secret.encode()).hexdigest()),))
    app = build_app(InstantBackend(), settings)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
