"""What the ingress needs of whatever runs its jobs. Real: Ray handles. Fake: five lines in the tests."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

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
    """How far an order is.

    `state`: queued while no job of it has begun, then running, and done for a while after its end. `progress`
    is a share of all its work: 0 while queued, 1 when done. `eta` is seconds until its end, if there is any
    telling. `place` is that in the queue of `places` orders for its checkpoint, from 1, while it is queued.
    `preview` is a JPEG of a picture that is being drawn, empty if there is none; another one has another
    `preview_id`, none has 0. Steps are of the batch `job_no`, from 0, of `job_count`. `interrupted`: all
    of it was to stop; `skipped`: what had begun by then.
    """

    id: str
    kind: str
    state: Literal["queued", "running", "done"]
    progress: float
    eta: float | None
    place: int | None
    places: int | None
    preview: bytes
    preview_id: int
    sampling_step: int
    sampling_steps: int
    job_no: int
    job_count: int
    timestamp: str
    interrupted: bool
    skipped: bool


class Backend(Protocol):
    def checkpoints(self) -> Sequence[Checkpoint]:
        """Every configured checkpoint, the default first. Cheap: no I/O."""

    def opened(self, order: Order) -> AbstractContextManager[None]:
        """While this lasts, the order can be asked about and interrupted. Cheap: no I/O."""

    async def run(self, job: Job | Enlargement) -> JobResult:
        """Run one job to its end, wherever and however often that takes.

        Cancelling the call aborts the job. Raises the errors of `engine.protocol`, `Interrupted` among them.
        """

    async def progress(self, key: str, order: str | None, *, preview: bool) -> OrderProgress | None:
        """Of this caller's order, or, without an id, of the oldest one that runs, else the oldest of all.

        None if it is not known, be it yet or any more. `preview`: one is wanted, now and the next seconds.
        Never waits for pictures; may be behind by as much as a second or two in a large service.
        """

    async def pending(self, key: str) -> Sequence[str]:
        """The ids of this caller's orders that are queued, by arrival."""

    async def interrupt(self, key: str, order: str | None, *, skip: bool = False) -> int:
        """Stop this caller's order of this id, or all that are open, and say how many there were.

        Their jobs end with what there is of their pictures, or with `Interrupted`. `skip`: only those that
        have begun. It takes effect within a second or two. Raises Unavailable if nobody can be told now.
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
