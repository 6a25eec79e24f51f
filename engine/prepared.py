"""What a job needs besides itself, looked up and loaded before it becomes a row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from engine.checkpoint import LoadedCheckpoint
from engine.images import Canvas
from engine.library import Library
from engine.lora.job import NO_LORAS, JobLoras, job_loras, names_loras
from engine.protocol import LATENT_UPSCALERS, InvalidJob, Job
from engine.upscalers.job import job_upscaler
from engine.upscalers.upscaler import Upscaler


@dataclass(frozen=True, slots=True)
class Model:
    """What evaluates: a checkpoint, and the LoRAs that a pass has on it.

    Whoever holds this keeps both loaded; `lease` is what does that for the checkpoint.
    """

    checkpoint: LoadedCheckpoint
    loras: JobLoras = NO_LORAS
    lease: object = None


def is_quick(job: Job) -> bool:
    """Whether there is nothing to be read or loaded for it."""
    return not (job.init or job.hires or job.refiner or job.vae or names_loras(job))


Models = tuple[Model, ...]
"""A pass' own model and, where the job has a refiner, that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The models of a job's passes, and the picture that it is given, prepared.

    `upscaler` is the network that enlarges between the passes; None where none does.
    """

    first: Models
    second: Models = ()
    canvas: Canvas | None = None
    upscaler: Upscaler | None = None

    @classmethod
    def of(cls, job: Job, library: Library) -> Self:
        """Slow where a picture is to be read, or a LoRA, an upscaler or a checkpoint to be loaded: seconds.

        Raises InvalidJob for what is not there, cannot be read or does not go together; LoraError for a LoRA
        that cannot be used and, where the store is strict, for an unknown name; UpscalerError for an upscaler
        that is not there or cannot be used.
        """
        made = cls(
            first=_models(job, library, "prompt"),
            second=_models(job.second_pass(), library, "hr_prompt") if job.hires else (),
            canvas=Canvas.of(job),
            upscaler=job_upscaler(job, library.own.upscalers),
        )
        _check_latents(job, made)
        return made

    @property
    def lora_hashes(self) -> str:
        """`name: hash, …` of the LoRAs that were found, named as in the prompts."""
        hashes: Mapping[str, str] = {k: v for model in self._all() for k, v in model.loras.hashes.items()}
        return ", ".join(f"{name.replace(',', '')}: {hash_}" for name, hash_ in hashes.items())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the job asks for and does not get, each once."""
        return tuple(dict.fromkeys(warning for model in self._all() for warning in model.loras.warnings))

    def _all(self) -> Iterator[Model]:
        yield from (*self.first, *self.second)


def _models(job: Job, library: Library, field: str) -> Models:
    """Of one pass."""
    own, lease = library.checkpoint(job.checkpoint, "hr_checkpoint_name")
    model = Model(own, job_loras(job, own.loras, field), lease)
    if job.refiner is None:
        return (model,)
    refining, lease = library.checkpoint(job.refiner.checkpoint, "refiner_checkpoint")
    return model, Model(refining, job_loras(job, refining.loras, field), lease)


def _check_latents(job: Job, prepared: Prepared) -> None:
    """Passes hand latents on, so their checkpoints must mean the same by them."""
    own = prepared.first[0].checkpoint.kind.family
    others = {"refiner_checkpoint": [*prepared.first[1:], *prepared.second[1:]]}
    if job.hires and job.hires.upscaler in LATENT_UPSCALERS:
        others["hr_checkpoint_name"] = list(prepared.second[:1])
    for field, models in others.items():
        for model in models:
            family = model.checkpoint.kind.family
            if family.latent_scale != own.latent_scale:
                raise InvalidJob(
                    f"{field}: that is {family.name}, whose latents {own.name}, which {job.checkpoint!r} is, "
                    "cannot hand on or take"
                )
