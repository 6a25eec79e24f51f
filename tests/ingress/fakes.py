import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sqlalchemy import ColumnElement, Double, literal

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
from ingress.backend import Order, OrderProgress

TIMINGS = Timings(wait=0, encode=0, denoise=0, decode=0, write=0, total=0)

CHECKPOINTS = (
    Checkpoint(name="demo", filename="demo.safetensors"),
    Checkpoint(
        name="majicmixRealistic_v7",
        filename="real/majicmixRealistic_v7.safetensors",
        sha256="7c819b6d13" + "0" * 54,
    ),
)


class FakeBackend:
    """Every job gives a small picture at once, or `fail`."""

    def __init__(self, fail: Exception | None = None, offered: Sequence[Checkpoint] = CHECKPOINTS) -> None:
        self.jobs: list[Job] = []
        self.enlargements: list[Enlargement] = []
        self.captions: dict[bytes, str] = {}
        """Of pictures, by their files."""
        self.orders: list[Order] = []
        self.fail = fail
        self.offered = offered
        self.lora_files: list[LoraFile] = []
        self.embedding_files: list[EmbeddingFile] = []
        self.upscaler_files: list[UpscalerFile] = []
        self.vae_files: list[VaeFile] = []
        self.refreshed: list[FolderKind] = []
        self.device_memory: list[DeviceMemory] = []
        self.found: dict[tuple[str, str | None], OrderProgress] = {}
        """What is known of orders, by key and id."""
        self.asked: list[tuple[str, str | None, bool]] = []
        self.queued: list[str] = []
        self.interrupted: list[tuple[str, str | None, bool]] = []
        self.known: dict[str, Any] = {}
        """What of a result only a replica knows."""

    def checkpoints(self) -> Sequence[Checkpoint]:
        return self.offered

    @contextmanager
    def opened(self, order: Order) -> Iterator[None]:
        self.orders.append(order)
        yield

    async def run(self, job: Job | Enlargement) -> JobResult:
        if isinstance(job, Enlargement):
            self.enlargements.append(job)
        else:
            self.jobs.append(job)
        if self.fail:
            raise self.fail
        if isinstance(job, Enlargement):
            return JobResult(job_id=job.id, image=b"enlarged " + job.id.encode(), timings=TIMINGS)
        return replace(result(job), **self.known)

    async def caption(self, image: bytes) -> str:
        if image not in self.captions:
            raise NotOffered("no captioner here")
        return self.captions[image]

    async def progress(self, key: str, order: str | None, *, preview: bool) -> OrderProgress | None:
        self.asked.append((key, order, preview))
        return self.found.get((key, order))

    async def pending(self, key: str) -> Sequence[str]:
        return self.queued

    async def interrupt(self, key: str, order: str | None, *, skip: bool = False) -> int:
        self.interrupted.append((key, order, skip))
        return 1

    async def loras(self) -> Sequence[LoraFile]:
        return self.lora_files

    async def refresh(self, kind: FolderKind) -> None:
        self.refreshed.append(kind)

    async def memory(self) -> Sequence[DeviceMemory]:
        return self.device_memory

    async def embeddings(self) -> Sequence[EmbeddingFile]:
        return self.embedding_files

    async def upscalers(self) -> Sequence[UpscalerFile]:
        return self.upscaler_files

    async def vaes(self) -> Sequence[VaeFile]:
        return self.vae_files

    async def metrics(self) -> str:
        return "atelier_jobs_total 1\n"


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now(self) -> ColumnElement[float]:
        return literal(self.seconds, Double())


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> str:
    """A picture as clients send it."""
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def result(job: Job) -> JobResult:
    file, chunks = io.BytesIO(), PngInfo()
    chunks.add_text("parameters", job.infotext)
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=chunks)
    return JobResult(
        job_id=job.id,
        image=file.getvalue(),
        seed=job.seed,
        evaluations=job.steps,
        timings=TIMINGS,
        infotext=job.infotext,
    )
