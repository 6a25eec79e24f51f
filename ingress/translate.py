"""Wire -> fully resolved jobs, results -> wire. The only place that knows both vocabularies."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from engine.protocol import Checkpoint, FileFormat, InitImage, Job, JobResult, Unavailable
from ingress import checkpoints, hires, options, prompts
from ingress.errors import InvalidRequest, NotFound, validation_message
from ingress.files import file_format
from ingress.hires import SecondPass
from ingress.infotext import infotext
from ingress.limits import check_limits, check_supported
from ingress.pictures import init_images, mask_blur
from ingress.refiner import Refining, refining
from ingress.replay import replay
from ingress.saving import Saving
from ingress.schemas import samplers
from ingress.schemas.sdapi import GenerationRequest, Img2ImgRequest, OverrideSettings, Txt2ImgRequest
from ingress.scripts import check_scripts
from ingress.settings import CompatVersion, Settings

RANDOM_SEEDS = 4294967294
"""A seed of -1 becomes one of 0 … 4294967293."""

ETA: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a",
                "DPM2 a", "DPM fast", "DPM adaptive",
            ),
            ("Eta", 1.0),
        ),
        **dict.fromkeys(("DDIM", "DDIM CFG++"), ("Eta DDIM", 0.0)),
    }
)  # fmt: skip
"""The samplers that use eta: its key in the infotext, where it is written unless it has this default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A request with everything decided that the client left open. `init` is empty for txt2img.

    `sent` is the request as it came, `request` the one with the prompts that are drawn from. `warnings` are
    what it asked for and does not get. `missing` are the images that were interrupted before there was
    anything of them.
    """

    sent: GenerationRequest
    request: GenerationRequest
    version: CompatVersion
    checkpoint: Checkpoint
    sampling: samplers.Sampling
    seed: int
    subseed: int
    eta: float
    eta_noise_seed_delta: int
    randn_source: str | None
    discard_next_to_last_sigma: bool
    clip_skip: int
    emphasis: str
    old_scheduling: bool
    started: datetime
    warnings: tuple[str, ...]
    tiling: bool
    vae: str
    refining: Refining | None
    file_format: FileFormat
    saving: Saving | None
    init: tuple[InitImage, ...] = ()
    second: SecondPass | None = None
    missing: frozenset[int] = frozenset()

    @property
    def batch_size(self) -> int:
        """Several pictures to start from are a batch of their own number."""
        return len(self.init) if len(self.init) > 1 else self.request.batch_size

    @property
    def images(self) -> Sequence[int]:
        count = self.batch_size * self.request.n_iter
        return [image for image in range(count) if image not in self.missing]

    def seed_of(self, image: int) -> int:
        """Variations of a picture share its seed; their variation seeds count up."""
        return self.seed if self.request.subseed_strength else self.seed + image

    @property
    def passes(self) -> list[tuple[str, float]]:
        """Of each pass its sampler and the eta."""
        first = (self.sampling.sampler, self.eta)
        return [first, (self.second.hires.sampler, self.second.hires.eta)] if self.second else [first]

    def init_of(self, image: int) -> InitImage | None:
        return self.init[image % len(self.init)] if self.init else None


def resolve(
    request: GenerationRequest,
    available: Sequence[Checkpoint],
    settings: Settings,
    random: Random,
    now: datetime,
    overlay: Mapping[str, Any] = MappingProxyType({}),
) -> Generation:
    """Decide what the client left open: as its infotext says if there is one, else as the options that it
    has set, the overlay, say. `now` is local time.

    Raises `InvalidRequest`, `NotFound` and `SamplerNotFound`, all of them about the request.
    """
    replayed = replay(request, settings, overlay)
    try:
        generation = _resolve(replayed.request, replayed.overlay, available, settings, random, now)
    except (InvalidRequest, NotFound) as error:
        raise replayed.explained(error) from None
    left_out = options.unknown(request.override_settings or {})
    warnings = options.unknown_options("override_settings", left_out)
    return replace(generation, warnings=(*replayed.warnings, *warnings, *generation.warnings))


def _resolve(
    request: GenerationRequest,
    overlay: Mapping[str, Any],
    available: Sequence[Checkpoint],
    settings: Settings,
    random: Random,
    now: datetime,
) -> Generation:
    overrides = _overrides(request, overlay)
    check_limits(request, settings.limits)
    check_supported(request, overrides, saves=settings.save_dir is not None)
    left_out = check_scripts(request)
    sent = request
    request, warnings = prompts.written(request, overrides, settings)
    field = "sampler_name" if request.sampler_name else "sampler_index"
    sampling = samplers.resolve(
        getattr(request, field) or "Euler", request.scheduler, settings.compat_version, field
    )
    checkpoint = _checkpoint(request, overrides, available)
    refiner = refining(request, overrides, available, settings.compat_version)
    return Generation(
        sent=sent,
        request=request,
        version=settings.compat_version,
        checkpoint=checkpoint,
        sampling=sampling,
        seed=random.randrange(RANDOM_SEEDS) if request.seed == -1 else request.seed,
        subseed=random.randrange(RANDOM_SEEDS) if request.subseed == -1 else request.subseed,
        eta=_eta(request, overrides, sampling.sampler),
        eta_noise_seed_delta=overrides.eta_noise_seed_delta,
        randn_source=overrides.randn_source,
        discard_next_to_last_sigma=overrides.always_discard_next_to_last_sigma,
        clip_skip=overrides.CLIP_stop_at_last_layers or settings.clip_skip,
        emphasis=overrides.emphasis or ("Original" if overrides.enable_emphasis else "None"),
        old_scheduling=overrides.use_old_scheduling,
        started=now,
        warnings=(*left_out, *warnings),
        tiling=overrides.tiling if request.tiling is None else request.tiling,
        vae=_vae(overrides),
        refining=refiner,
        file_format=file_format(overrides),
        saving=_saving(request, overrides),
        init=_init_images(request, overrides, settings),
        second=_second_pass(request, overrides, checkpoint, available, refiner, settings),
    )


def _saving(request: GenerationRequest, overrides: OverrideSettings) -> Saving | None:
    if not request.save_images:
        return None
    return Saving(samples=overrides.samples_save, grid=overrides.grid_save, shows_grid=overrides.return_grid)


def _vae(overrides: OverrideSettings) -> str:
    """Empty for the checkpoint's own."""
    name = overrides.sd_vae or ""
    return "" if name.casefold() in ("none", "automatic") else name


def _eta(request: GenerationRequest, overrides: OverrideSettings, sampler: str) -> float:
    """0 for samplers that do not use it."""
    if sampler not in ETA:
        return 0.0
    if request.eta is not None:
        return request.eta
    return {"Eta": overrides.eta_ancestral, "Eta DDIM": overrides.eta_ddim}[ETA[sampler][0]]


def _init_images(
    request: GenerationRequest, overrides: OverrideSettings, settings: Settings
) -> tuple[InitImage, ...]:
    if not isinstance(request, Img2ImgRequest):
        return ()
    return init_images(request, settings.limits, exact_steps=overrides.img2img_fix_steps)


def _second_pass(
    request: GenerationRequest,
    overrides: OverrideSettings,
    checkpoint: Checkpoint,
    available: Sequence[Checkpoint],
    refiner: Refining | None,
    settings: Settings,
) -> SecondPass | None:
    if not isinstance(request, Txt2ImgRequest) or not request.enable_hr:
        return None
    return hires.second_pass(
        request,
        settings,
        checkpoint,
        available,
        refiner.second if refiner else None,
        lambda sampler: _eta(request, overrides, sampler),
    )


def _overrides(request: GenerationRequest, overlay: Mapping[str, Any]) -> OverrideSettings:
    try:
        return OverrideSettings.model_validate(options.counting(overlay, request.override_settings or {}))
    except ValidationError as error:
        raise InvalidRequest(validation_message(error.errors(), "override_settings")) from None


def _checkpoint(
    request: GenerationRequest, overrides: OverrideSettings, available: Sequence[Checkpoint]
) -> Checkpoint:
    if not available:
        raise Unavailable("No checkpoint is configured")
    if request.model:
        return checkpoints.with_replicas(checkpoints.find(request.model, available, "model"), "model")
    if name := overrides.sd_model_checkpoint:
        own = (request.override_settings or {}).get("sd_model_checkpoint")
        field = "override_settings.sd_model_checkpoint" if own else "options.sd_model_checkpoint"
        return checkpoints.with_replicas(checkpoints.find(name, available, field), field)
    return available[0]


def jobs(generation: Generation, random: Random) -> list[Job]:
    """One job per image; `random` draws their ids."""
    request, second, refiner = generation.request, generation.second, generation.refining
    width, height = second.first if second else (request.width, request.height)
    return [
        Job(
            id=f"{random.getrandbits(128):032x}",
            checkpoint=generation.checkpoint.name,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=generation.seed_of(image),
            width=width,
            height=height,
            steps=request.steps,
            guidance_scale=request.cfg_scale,
            sampler=generation.sampling.sampler,
            schedule=generation.sampling.schedule,
            eta=generation.eta,
            s_churn=request.s_churn or 0.0,
            s_tmin=request.s_tmin or 0.0,
            s_tmax=request.s_tmax or math.inf,
            s_noise=1.0 if request.s_noise is None else request.s_noise,
            eta_noise_seed_delta=generation.eta_noise_seed_delta,
            clip_skip=generation.clip_skip,
            infotext=_infotext(generation, image),
            init=generation.init_of(image),
            extra_networks=not request.disable_extra_networks,
            emphasis=generation.emphasis,
            old_scheduling=generation.old_scheduling,
            hires=second.hires if second else None,
            subseed=generation.subseed + image if request.subseed_strength else 0,
            subseed_strength=request.subseed_strength,
            seed_resize_from_w=max(request.seed_resize_from_w, 0),
            seed_resize_from_h=max(request.seed_resize_from_h, 0),
            noise_source="nvidia" if generation.randn_source in ("GPU", "NV") else "cpu",
            discard_next_to_last_sigma=generation.discard_next_to_last_sigma,
            refiner=(refiner.first if second else refiner.refiner) if refiner else None,
            tiling=generation.tiling,
            vae=generation.vae,
            file_format=generation.file_format,
        )
        for image in generation.images
    ]


def response(
    generation: Generation, results: Sequence[JobResult], grid: bytes | None = None
) -> dict[str, Any]:
    """The wire's answer; `results` in the order of the jobs, and in front of them a grid, if there is one."""
    images = [*([grid] if grid else []), *(result.image for result in results)]
    sent = images if generation.request.send_images else []
    return {
        "images": [base64.b64encode(image).decode() for image in sent],
        "parameters": generation.sent.echo(generation.version),
        "info": json.dumps(_info(generation, results, has_grid=grid is not None)),
    }


def headers(generation: Generation, results: Sequence[JobResult]) -> dict[str, str]:
    """Of the answer."""
    own = [warning for result in results for warning in result.warnings]
    return warnings_header([*generation.warnings, *own])


def warnings_header(warnings: Sequence[str]) -> dict[str, str]:
    """`X-Warnings`: what was asked for and left out, each once, as a JSON array in ASCII."""
    return {"X-Warnings": json.dumps(list(dict.fromkeys(warnings)))} if warnings else {}


def timestamp(generation: Generation) -> str:
    """When it began, in local time, as the wire has it."""
    return generation.started.strftime("%Y%m%d%H%M%S")


def _info(generation: Generation, results: Sequence[JobResult], *, has_grid: bool) -> dict[str, Any]:
    """32 keys, in this order since v1.7.0. A grid has the first picture's infotext."""
    request, images = generation.request, generation.images
    infotexts = [result.infotext for result in results]
    first = images[0] if images else 0
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt for _ in images],
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt for _ in images],
        "seed": generation.seed_of(first),
        "all_seeds": [generation.seed_of(image) for image in images],
        "subseed": generation.subseed + first,
        "all_subseeds": [generation.subseed + image for image in images],
        "subseed_strength": request.subseed_strength,
        "width": request.width,
        "height": request.height,
        "sampler_name": generation.sampling.name,
        "cfg_scale": request.cfg_scale,
        "steps": request.steps,
        "batch_size": generation.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": generation.checkpoint.name,
        "sd_model_hash": checkpoints.short_hash(generation.checkpoint),
        "sd_vae_name": next((result.vae for result in results if result.vae), None),
        "sd_vae_hash": next((result.vae_hash for result in results if result.vae), None),
        "seed_resize_from_w": request.seed_resize_from_w,
        "seed_resize_from_h": request.seed_resize_from_h,
        "denoising_strength": request.denoising_strength,
        "extra_generation_params": _extra_params(generation) | _of_replicas(results),
        "index_of_first_image": int(has_grid),
        "infotexts": infotexts[:1] + infotexts if has_grid else infotexts,
        "styles": request.styles or [],
        "job_timestamp": timestamp(generation),
        "clip_skip": generation.clip_skip,
        "is_using_inpainting_conditioning": any(result.inpainting for result in results),
        "version": generation.version,
    }


def _infotext(generation: Generation, image: int) -> str:
    request, sampling, second = generation.request, generation.sampling, generation.second
    width, height = second.first if second else (request.width, request.height)
    strength = second.hires.denoising_strength if second else request.denoising_strength
    delta = generation.eta_noise_seed_delta
    delta_counts = any(samplers.uses_ensd(sampler) and eta for sampler, eta in generation.passes)
    pairs = {
        "Steps": request.steps,
        "Sampler": sampling.name,
        "Schedule type": sampling.schedule_label,
        "CFG scale": request.cfg_scale,
        "Seed": generation.seed_of(image),
        "Size": f"{width}x{height}",
        "Model hash": checkpoints.short_hash(generation.checkpoint),
        "Model": generation.checkpoint.name,
        **_variation(generation, image),
        "Denoising strength": strength if generation.version == "v1.7.0" else None,
        "Clip skip": generation.clip_skip if generation.clip_skip > 1 else None,
        "ENSD": delta if delta and delta_counts else None,
        "RNG": None if generation.randn_source == "GPU" else generation.randn_source,
        "Tiling": True if generation.tiling else None,
        **_extra_params(generation),
        "Version": generation.version,
    }
    return infotext(request.prompt, request.negative_prompt, pairs)


def _variation(generation: Generation, image: int) -> dict[str, Any]:
    """What the noise was made of besides the seed."""
    request = generation.request
    width, height = request.seed_resize_from_w, request.seed_resize_from_h
    varied = request.subseed_strength != 0
    return {
        "Variation seed": generation.subseed + image if varied else None,
        "Variation seed strength": request.subseed_strength if varied else None,
        "Seed resize from": f"{width}x{height}" if width > 0 and height > 0 else None,
    }


def _of_replicas(results: Sequence[JobResult]) -> dict[str, str]:
    """Which only replicas know; one prompt has the same in all pictures."""
    if not results:
        return {}
    first = results[0]
    told = {"Lora hashes": first.lora_hashes, "TI hashes": first.embedding_hashes, "Quality": first.quality}
    return {key: value for key, value in told.items() if value}


def _extra_params(generation: Generation) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if generation.sampling.schedule_label not in (None, "Automatic"):
        extra["Schedule type"] = generation.sampling.schedule_label
    if generation.discard_next_to_last_sigma:
        extra["Discard penultimate sigma"] = True
    for sampler, eta in generation.passes:
        key, default = ETA.get(sampler, ("", eta))
        if eta != default:
            extra[key] = eta
    request, second = generation.request, generation.second
    if second and isinstance(request, Txt2ImgRequest):
        extra |= hires.params(request, second, generation.sampling, generation.version)
    if generation.init:
        extra |= _img2img_params(generation)
    if generation.refining:
        extra |= generation.refining.params(hires=second is not None)
    return extra | _prompt_params(generation)


def _prompt_params(generation: Generation) -> dict[str, Any]:
    """How the prompts were read, where they hold what is read in another way."""
    texts = [getattr(generation.request, field, "") for field in prompts.FIELDS]
    marks = ("(", "[", "\\", "BREAK") if generation.emphasis == "None" else ("(", "[")
    params: dict[str, Any] = {}
    if generation.emphasis != "Original" and any(mark in text for text in texts for mark in marks):
        params["Emphasis"] = generation.emphasis
    if generation.old_scheduling and any("[" in text for text in texts):
        params["Old prompt editing timelines"] = True
    return params


def _img2img_params(generation: Generation) -> dict[str, Any]:
    """What v1.8 and later say about the picture and the mask."""
    request, init = generation.request, generation.init[0]
    assert isinstance(request, Img2ImgRequest)
    params: dict[str, Any] = {}
    if generation.version != "v1.7.0":
        params["Denoising strength"] = request.denoising_strength
        if mask := init.mask:
            blur_x, blur_y = mask_blur(request)
            params |= {
                "Mask mode": "Inpaint not masked" if mask.invert else None,
                "Mask blur": blur_x if blur_x == blur_y else f"{blur_x}, {blur_y}",
                "Inpaint area": "Only masked" if mask.only_masked else None,
                "Masked area padding": mask.padding if mask.only_masked else None,
                "Masked content": None if mask.content == "original" else mask.content,
            }
    params["Noise multiplier"] = None if init.noise_multiplier == 1 else init.noise_multiplier
    return {key: value for key, value in params.items() if value is not None}
