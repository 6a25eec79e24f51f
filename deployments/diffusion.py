"""A replica pinned to one checkpoint: one engine, in one worker."""

import asyncio
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ray import serve

from deployments.board.remote import RayBoard
from deployments.board.replica import Rate, ReplicaJobs
from deployments.config import CheckpointConfig
from deployments.metrics import ReplicaMetrics
from engine.protocol import (
    Checkpoint,
    DeviceMemory,
    EmbeddingFile,
    Enlargement,
    FolderKind,
    Job,
    JobResult,
    LoraFile,
    StepStats,
    Unavailable,
    UpscalerFile,
    VaeFile,
)

if TYPE_CHECKING:  # torch is for replicas alone
    from engine.checkpoint import LoadedCheckpoint
    from engine.registry import Registry
    from engine.tuning import Tuner, TuningSettings

logger = logging.getLogger("ray.serve")

BROKEN = 70
"""Exit status of a replica that gave itself up."""
MIB = 2**20


class Diffusion:
    """Raises CheckpointError while it is made, if the file cannot be used."""

    def __init__(self, config: CheckpointConfig) -> None:
        import torch

        from engine.captioner import Captioner
        from engine.engine import Engine
        from engine.worker import Worker

        torch.set_num_threads(1)  # here and in threads that prepare; the engine's has its own team
        tuner = _tuner(config)
        registry = _registry(config, tuner)
        self._config = config
        self._registry = registry
        own = registry.own
        self._captioner = Captioner(config.captioner_dir, device=own.device, dtype=own.denoiser.dtype)
        replica = serve.get_replica_context().replica_id.unique_id
        self._metrics = ReplicaMetrics(config.name, replica, registry.own.quality.shown)
        self._rate = Rate()
        engine = Engine(registry.own, max_rows=config.max_rows, on_step=self._observe_step)
        threads = config.cpu_threads or len(os.sched_getaffinity(0))
        self._worker = Worker(
            engine,
            registry,
            cpu_threads=threads if config.torch_device == "cpu" else None,
            warm_up=partial(tuner.tune, registry.own) if tuner else None,
        )
        self._worker.start()
        self._reports = ReplicaJobs(replica, config.name, self._worker, self._rate, RayBoard())
        self._reporting = asyncio.get_running_loop().create_task(self._reports.run())

    async def run(self, job: Job | Enlargement) -> JobResult:
        """Cancelling the call drops the job at the next step."""
        self._reports.wake()
        try:
            result = await self._worker.run(job)
        except Unavailable as error:
            _give_up(error.message)
        if isinstance(job, Job):  # an enlargement has none of the stages
            self._metrics.observe_job(result)
        return result

    def _observe_step(self, stats: StepStats) -> None:
        self._metrics.observe_step(stats)
        self._rate.observe(stats)

    async def caption(self, image: bytes) -> str:
        return await self._captioner.caption(image)

    def describe(self) -> Checkpoint:
        return Checkpoint(
            name=self._config.name, filename=self._config.path.name, sha256=self._registry.own.sha256
        )

    def loras(self) -> list[LoraFile]:
        return self._registry.own.loras.listing()

    def embeddings(self) -> list[EmbeddingFile]:
        return self._registry.own.embeddings.listing()

    async def refresh(self, kind: FolderKind) -> None:
        await asyncio.to_thread(self._registry.refresh, kind)

    def memory(self) -> DeviceMemory | None:
        """None on a CPU."""
        from engine.memory import device_memory

        return device_memory(self._registry.own.device)

    async def vaes(self) -> list[VaeFile]:
        return await asyncio.to_thread(self._registry.vaes.listing)

    async def upscalers(self) -> list[UpscalerFile]:
        return await asyncio.to_thread(self._registry.upscalers.listing)

    def metrics_text(self) -> str:
        running, waiting = self._worker.load
        return self._metrics.text(running=running, waiting=waiting)

    def check_health(self) -> None:
        """A step that does not end cannot be stopped from within: the process goes, and Serve makes a
        new one at once. If this only raised, Serve would first wait for the stuck jobs."""
        age = self._worker.heartbeat_age()
        if age > self._config.step_timeout_seconds:
            _give_up(f"a step has taken {age:.0f} s")


def _tuner(config: CheckpointConfig) -> "Tuner | None":
    """None on a CPU."""
    if config.torch_device == "cpu":
        return None
    import torch

    from engine.tuning import Tuner

    return Tuner(_tuning(config), torch.device(config.torch_device))


def _tuning(config: CheckpointConfig) -> "TuningSettings":
    """In strict mode nothing is chosen by measured times, and no call filled up."""
    from engine.profiles import cache_folder
    from engine.tuning import TuningSettings

    strict = config.strict
    return TuningSettings(
        attention="torch" if strict and config.attention == "auto" else config.attention,
        graphs=config.cuda_graphs != "off",
        compile=None if config.compile == "off" else config.compile,
        max_rows=config.max_rows,
        row_counts=tuple(range(1, config.max_rows + 1)) if strict else config.row_counts,
        pictures=config.sizes,
        most_graphs=config.most_graphs,
        folder=cache_folder(),
    )


def _registry(config: CheckpointConfig, tuner: "Tuner | None") -> "Registry":
    from engine.checkpoint import load_checkpoint, make_strict, swap_checkpoint
    from engine.companions import Companions
    from engine.lora.store import LoraSettings
    from engine.quality import quality_of
    from engine.registry import Registry
    from engine.upscalers.store import UpscalerSettings, UpscalerStore
    from engine.vae import VaeStore
    from engine.weights import Digests

    digests = Digests()

    def load(path: Path) -> "LoadedCheckpoint":
        loaded = load_checkpoint(
            path,
            device=config.torch_device,
            dtype=config.dtype,
            loras=LoraSettings(
                folder=config.loras_dir, max_bytes=config.loras_memory_mb * MIB, strict=config.strict_loras
            ),
            embeddings=config.embeddings_dir,
            digests=digests,
            quality=quality_of(config.quality, config.deepcache_interval),
        )
        if config.strict:
            make_strict(loaded)
        if tuner:
            tuner.share(loaded)
        return loaded

    own = load(config.path)
    companions = Companions(
        config.companions,
        load,
        partial(swap_checkpoint, digests=digests),
        max_bytes=config.companions_memory_mb * MIB,
    )
    upscalers = UpscalerSettings(folder=config.upscalers_dir, max_bytes=config.upscalers_memory_mb * MIB)
    return Registry(
        own,
        config.name,
        companions,
        VaeStore(config.vae_dir, own, max_bytes=config.vaes_memory_mb * MIB),
        UpscalerStore(upscalers, device=own.device, dtype=own.denoiser.dtype),
    )


def _give_up(reason: str) -> NoReturn:
    """End this process; its jobs are sent to other replicas."""
    logger.critical("replica gives itself up: %s", reason)
    os._exit(BROKEN)
