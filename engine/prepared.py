"""What a job needs besides itself, looked up and loaded before it becomes a row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from engine.checkpoint import LoadedCheckpoint
from engine.images import Canvas
from engine.lora.job import NO_LORAS, JobLoras, job_loras, names_loras
from engine.protocol import Job
from engine.upscalers.job import job_upscaler, names_upscaler
from engine.upscalers.upscaler import Upscaler


@dataclass(frozen=True, slots=True)
class Model:
    """What a pass evaluates with: a checkpoint, and the LoRAs that it has on it."""

    checkpoint: LoadedCheckpoint
    loras: JobLoras = NO_LORAS

    @classmethod
    def of(cls, job: Job, checkpoint: LoadedCheckpoint, field: str = "prompt") -> Self:
        return cls(checkpoint, job_loras(job, checkpoint.loras, field))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job's models, one for each of its passes, and the picture that it is given, prepared.

    `upscaler` is the network that enlarges between the passes; None where none does.
    """

    first: Model
    second: Model | None = None
    canvas: Canvas | None = None
    upscaler: Upscaler | None = None

    @classmethod
    def of(cls, job: Job, checkpoint: LoadedCheckpoint) -> Self:
        """Slow where a picture is to be read or a file to be loaded: seconds, for a large one.

        Raises InvalidJob for a picture that cannot be read; LoraError for a LoRA that cannot be used and,
        where the store is strict, for an unknown name; InvalidJob for tags that this version does not apply;
        UpscalerError for an unknown upscaler and for one that cannot be used.
        """
        return cls(
            first=Model.of(job, checkpoint),
            second=Model.of(job.second_pass(), checkpoint, "hr_prompt") if job.hires else None,
            canvas=Canvas.of(job),
            upscaler=job_upscaler(job, checkpoint.upscalers),
        )

    @property
    def lora_hashes(self) -> str:
        """`name: hash, …` of the LoRAs that were found, named as in the prompts."""
        hashes: Mapping[str, str] = {k: v for model in self._models() for k, v in model.loras.hashes.items()}
        return ", ".join(f"{name.replace(',', '')}: {hash_}" for name, hash_ in hashes.items())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the job asks for and does not get, each once."""
        return tuple(dict.fromkeys(warning for model in self._models() for warning in model.loras.warnings))

    def _models(self) -> Iterator[Model]:
        yield from (model for model in (self.first, self.second) if model)


def is_slow(job: Job) -> bool:
    """Whether `Prepared.of` may have to read or load something for it."""
    return job.init is not None or names_loras(job) or names_upscaler(job)
