"""Wire -> fully resolved jobs, results -> wire. The only place that knows both vocabularies."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from engine.protocol import Checkpoint, Job, JobResult, Unavailable
from ingress import checkpoints
from ingress.errors import InvalidRequest, validation_message
from ingress.infotext import infotext
from ingress.limits import check_limits, check_supported
from ingress.schemas import samplers
from ingress.schemas.sdapi import OverrideSettings, Txt2ImgRequest
from ingress.settings import CompatVersion, Settings

RANDOM_SEEDS = 4294967294
"""A seed of -1 becomes one of 0 … 4294967293."""

ETA: Mapping[str, tuple[str, float]] = MappingProxyType(
    {"Euler a": ("Eta", 1.0), "DPM++ 2M SDE": ("Eta", 1.0), "DDIM": ("Eta DDIM", 0.0)}
)
"""The samplers that use eta: its key in the infotext, where it is written unless it has this default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Txt2Img:
    """A txt2img request with everything decided that the client left open."""

    request: Txt2ImgRequest
    version: CompatVersion
    checkpoint: Checkpoint
    sampling: samplers.Sampling
    seed: int
    subseed: int
    eta: float
    eta_noise_seed_delta: int
    clip_skip: int
    started: datetime

    @property
    def images(self) -> range:
        return range(self.request.batch_size * self.request.n_iter)


def resolve(
    request: Txt2ImgRequest,
    available: Sequence[Checkpoint],
    settings: Settings,
    random: Random,
    now: datetime,
) -> Txt2Img:
    """Decide what the client left open. `now` is local time.

    Raises `InvalidRequest`, `NotFound` and `SamplerNotFound`, all of them about the request.
    """
    overrides = _overrides(request)
    check_limits(request, settings.limits)
    check_supported(request, overrides)
    field = "sampler_name" if request.sampler_name else "sampler_index"
    sampling = samplers.resolve(
        getattr(request, field) or "Euler", request.scheduler, settings.compat_version, field
    )
    default_eta = ETA.get(sampling.sampler, ("", 0.0))[1]
    return Txt2Img(
        request=request,
        version=settings.compat_version,
        checkpoint=_checkpoint(request, overrides, available),
        sampling=sampling,
        seed=random.randrange(RANDOM_SEEDS) if request.seed == -1 else request.seed,
        subseed=random.randrange(RANDOM_SEEDS) if request.subseed == -1 else request.subseed,
        eta=default_eta if request.eta is None else request.eta,
        eta_noise_seed_delta=overrides.eta_noise_seed_delta,
        clip_skip=overrides.CLIP_stop_at_last_layers or settings.clip_skip,
        started=now,
    )


def _overrides(request: Txt2ImgRequest) -> OverrideSettings:
    try:
        return OverrideSettings.model_validate(request.override_settings or {})
    except ValidationError as error:
        raise InvalidRequest(validation_message(error.errors(), "override_settings")) from None


def _checkpoint(
    request: Txt2ImgRequest, overrides: OverrideSettings, available: Sequence[Checkpoint]
) -> Checkpoint:
    if not available:
        raise Unavailable("No checkpoint is configured")
    if request.model:
        return checkpoints.find(request.model, available, "model")
    if overrides.sd_model_checkpoint:
        field = "override_settings.sd_model_checkpoint"
        return checkpoints.find(overrides.sd_model_checkpoint, available, field)
    return available[0]


def jobs(txt2img: Txt2Img, random: Random) -> list[Job]:
    """One job per image; `random` draws their ids."""
    request = txt2img.request
    return [
        Job(
            id=f"{random.getrandbits(128):032x}",
            checkpoint=txt2img.checkpoint.name,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=txt2img.seed + image,
            width=request.width,
            height=request.height,
            steps=request.steps,
            guidance_scale=request.cfg_scale,
            sampler=txt2img.sampling.sampler,
            schedule=txt2img.sampling.schedule,
            eta=txt2img.eta,
            s_churn=request.s_churn or 0.0,
            s_tmin=request.s_tmin or 0.0,
            s_tmax=request.s_tmax or math.inf,
            s_noise=1.0 if request.s_noise is None else request.s_noise,
            eta_noise_seed_delta=txt2img.eta_noise_seed_delta,
            clip_skip=txt2img.clip_skip,
            infotext=_infotext(txt2img, image),
        )
        for image in txt2img.images
    ]


def response(txt2img: Txt2Img, results: Sequence[JobResult]) -> dict[str, Any]:
    """The wire's answer; `results` in the order of the jobs."""
    sent = results if txt2img.request.send_images else []
    return {
        "images": [base64.b64encode(result.png).decode() for result in sent],
        "parameters": txt2img.request.echo(txt2img.version),
        "info": json.dumps(_info(txt2img)),
    }


def _info(txt2img: Txt2Img) -> dict[str, Any]:
    """32 keys, in this order since v1.7.0."""
    request, images = txt2img.request, txt2img.images
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt for _ in images],
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt for _ in images],
        "seed": txt2img.seed,
        "all_seeds": [txt2img.seed + image for image in images],
        "subseed": txt2img.subseed,
        "all_subseeds": [txt2img.subseed + image for image in images],
        "subseed_strength": request.subseed_strength,
        "width": request.width,
        "height": request.height,
        "sampler_name": txt2img.sampling.name,
        "cfg_scale": request.cfg_scale,
        "steps": request.steps,
        "batch_size": request.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": txt2img.checkpoint.name,
        "sd_model_hash": checkpoints.short_hash(txt2img.checkpoint),
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": request.seed_resize_from_w,
        "seed_resize_from_h": request.seed_resize_from_h,
        "denoising_strength": request.denoising_strength,
        "extra_generation_params": _extra_params(txt2img),
        "index_of_first_image": 0,
        "infotexts": [_infotext(txt2img, image) for image in images],
        "styles": request.styles or [],
        "job_timestamp": txt2img.started.strftime("%Y%m%d%H%M%S"),
        "clip_skip": txt2img.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": txt2img.version,
    }


def _infotext(txt2img: Txt2Img, image: int) -> str:
    request, sampling = txt2img.request, txt2img.sampling
    delta = txt2img.eta_noise_seed_delta
    pairs = {
        "Steps": request.steps,
        "Sampler": sampling.name,
        "Schedule type": sampling.schedule_label,
        "CFG scale": request.cfg_scale,
        "Seed": txt2img.seed + image,
        "Size": f"{request.width}x{request.height}",
        "Model hash": checkpoints.short_hash(txt2img.checkpoint),
        "Model": txt2img.checkpoint.name,
        "Denoising strength": request.denoising_strength if txt2img.version == "v1.7.0" else None,
        "Clip skip": txt2img.clip_skip if txt2img.clip_skip > 1 else None,
        "ENSD": delta if delta and sampling.sampler == "Euler a" and txt2img.eta else None,
        **_extra_params(txt2img),
        "Version": txt2img.version,
    }
    return infotext(request.prompt, request.negative_prompt, pairs)


def _extra_params(txt2img: Txt2Img) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if txt2img.sampling.schedule_label not in (None, "Automatic"):
        extra["Schedule type"] = txt2img.sampling.schedule_label
    key, default = ETA.get(txt2img.sampling.sampler, ("", txt2img.eta))
    if txt2img.eta != default:
        extra[key] = txt2img.eta
    return extra
