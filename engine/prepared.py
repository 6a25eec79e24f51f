"""What a job needs besides itself, looked up and loaded before it becomes a row."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from engine.checkpoint import LoadedCheckpoint
from engine.images import Canvas
from engine.infotext import hashes
from engine.lora.job import NO_LORAS, JobLoras, job_loras, names_loras
from engine.prompts.networks import take_networks
from engine.protocol import LATENT_UPSCALERS, InvalidJob, Job, LoraError, Refiner
from engine.registry import Registry
from engine.upscalers.job import job_upscaler
from engine.upscalers.upscaler import Upscaler
from engine.vae import Vae


@dataclass(frozen=True, slots=True)
class Model:
    """What evaluates: a checkpoint, and the LoRAs that a pass has on it.

    Whoever holds this keeps both loaded; `lease` is what does that for the checkpoint.
    """

    checkpoint: LoadedCheckpoint
    loras: JobLoras = NO_LORAS
    lease: object = None


Models = tuple[Model, ...]
"""A pass' own model and, where the job has a refiner, that."""


def is_quick(job: Job) -> bool:
    """Whether there is nothing to be read or loaded for it."""
    return not (job.init or job.hires or job.refiner or job.vae or names_loras(job))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The models of a job's passes, and the picture that it is given, prepared.

    `embeddings` are those that its prompts name, with their hashes.
    """

    first: Models
    second: Models = ()
    vae: Vae | None = None
    canvas: Canvas | None = None
    embeddings: str = ""
    upscaler: Upscaler | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, job: Job, registry: Registry) -> Self:
        """Slow where a picture is to be read, or a LoRA or a checkpoint to be loaded: seconds.

        Raises InvalidJob for what is not there, cannot be read or does not go together; LoraError for a LoRA
        that cannot be used and, where the store is strict, for an unknown name; UpscalerError for an upscaler
        that is unknown or cannot be used.
        """
        vae = registry.vaes.get(job.vae) if job.vae else None
        made = cls(
            first=_models(job, registry, vae, "prompt"),
            second=_models(job.second_pass(), registry, vae, "hr_prompt") if job.hires else (),
            vae=vae,
            canvas=Canvas.of(job),
            upscaler=job_upscaler(job, registry.upscalers),
        )
        _check_latents(job, made)
        warnings = [warning for model in made.models() for warning in model.loras.warnings]
        if job.vae and vae is None:
            warnings.append(f"override_settings.sd_vae: there is no VAE {job.vae[:60]!r}")
        return replace(made, embeddings=_embeddings(job, made), warnings=tuple(dict.fromkeys(warnings)))

    def models(self) -> Iterator[Model]:
        """Of all passes."""
        yield from (*self.first, *self.second)

    @property
    def lora_hashes(self) -> str:
        """`name: hash, …` of the LoRAs that were found, named as in the prompts."""
        return hashes({k: v for model in self.models() for k, v in model.loras.hashes.items()})


def _models(job: Job, registry: Registry, vae: Vae | None, field: str) -> Models:
    """Of one pass."""
    own, lease = registry.checkpoint(job.checkpoint, "hr_checkpoint_name")
    if vae is not None and own.kind.family.latent_scale == registry.own.kind.family.latent_scale:
        own = replace(own, encoder=vae.encoder, decoder=vae.decoder)
    model = Model(own, job_loras(job, own.loras, field), lease)
    if job.refiner is None:
        return (model,)
    return model, _refiner(job, job.refiner, registry)


def _refiner(job: Job, refiner: Refiner, registry: Registry) -> Model:
    """With the LoRAs of the prompt, unless they are not for such a checkpoint."""
    checkpoint, lease = registry.checkpoint(refiner.checkpoint, "refiner_checkpoint")
    try:
        loras = job_loras(job, checkpoint.loras)
    except LoraError as error:
        loras = JobLoras(warnings=(f"refiner_checkpoint: without LoRAs, for {error.message}",))
    return Model(checkpoint, loras, lease)


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


def _embeddings(job: Job, prepared: Prepared) -> str:
    found: dict[str, str] = {}
    for each in [job, job.second_pass()] if job.hires else [job]:
        prompt, _ = take_networks(each.prompt, "prompt")
        for text in (prompt, each.negative_prompt):
            found |= prepared.first[0].checkpoint.conditioner.embeddings_in(text)
    return hashes(found)
