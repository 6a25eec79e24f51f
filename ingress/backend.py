"""What the ingress needs of whatever runs its jobs. Real: Ray handles. Fake: five lines in the tests."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from engine.protocol import (
    Checkpoint,
    DeviceMemory,
    EmbeddingFile,
    Enlargement,
    FolderKind,
    Job,
    JobResult,
    LoraFile,
    UpscalerFile,
    VaeFile,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one caller asked for at once: some jobs, under an id that the caller may ask about.

    `id` is the wire's task id, chosen by the caller or by us; of two callers' equal ids each knows its own.
    `key` is the id of the caller's API key, empty where none is needed. `kind` is txt2img, img2img or
    extras. `jobs` are the jobs' ids, `batch_size` of them to a batch. `timestamp` is the wire's, in local
    time.
    """

    id: str
    key: str
    kind: str
    checkpoint: str
    jobs: tuple[str, ...]
    batch_size: int
    steps: int
    timestamp: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderProgress:
    """How far an order is. `state` is queued or running, `place` how soon it is its turn: 1 is next.

    `progress` is from 0 to 1, `eta` in seconds. `preview` is a picture's file, or empty; another
    `preview_id`, another preview. Steps are those of the jobs that run, `job_no` of `job_count` the wire's.
    """

    id: str
    state: str
    progress: float
    eta: float | None
    place: int | None
    preview: bytes
    preview_id: int
    sampling_step: int
    sampling_steps: int
    job_no: int
    job_count: int
    timestamp: str
    kind: str
    interrupted: bool
    skipped: bool


class Backend(Protocol):
    def checkpoints(self) -> Sequence[Checkpoint]:
        """Every configured checkpoint, the default first. Cheap: no I/O."""

    def opened(self, order: Order) -> AbstractContextManager[None]:
        """While this lasts, the order can be asked about and interrupted. Cheap: no I/O."""

    async def progress(self, key: str, order: str | None) -> OrderProgress | None:
        """Of a key's order with that id, or of its latest; of any gateway's. None if it is not open."""

    async def run(self, job: Job | Enlargement) -> JobResult:
        """Run one job to its end, wherever and however often that takes.

        Cancelling the call aborts the job. Raises the errors of `engine.protocol`.
        """

    async def caption(self, image: bytes) -> str:
        """What is in a picture, the bytes of a file.

        Raises NotOffered where nothing can tell, and other errors of `engine.protocol`.
        """

    async def loras(self) -> Sequence[LoraFile]:
        """The LoRAs of all checkpoints that have a replica running, each name once."""

    async def refresh(self, kind: FolderKind) -> None:
        """Have every replica look through its folders of these files again."""

    async def embeddings(self) -> Sequence[EmbeddingFile]:
        """The embeddings of all checkpoints that have a replica running, each name once, usable first."""

    async def upscalers(self) -> Sequence[UpscalerFile]:
        """The upscalers of all checkpoints that have a replica running, each name once, by name."""

    async def vaes(self) -> Sequence[VaeFile]:
        """The VAEs of all checkpoints that have a replica running, each name once."""

    async def memory(self) -> Sequence[DeviceMemory]:
        """Of every replica that runs on a GPU."""

    async def metrics(self) -> str:
        """The metrics of every process of the service, in Prometheus' text format."""


class RequestObserver(Protocol):
    def __call__(self, *, route: str, model: str, status: int, seconds: float) -> None:
        """Called once per HTTP request, after its answer. `route` is the template, never the raw path;
        `model` is a configured checkpoint's name or empty."""
