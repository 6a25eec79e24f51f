"""What makes a picture, as straight-line programs over operations: rows are instances of these."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from engine.checkpoint import LoadedCheckpoint
from engine.images import Canvas
from engine.noise import Noise
from engine.ops import Decode, Encode, EncodeImage, Evaluate, Operation, Picture
from engine.prompts import parse
from engine.protocol import InvalidJob, Job
from engine.samplers import SAMPLERS, Evaluations, Sampler, Settings
from engine.schedules import SCHEDULES, TRAIN_STEPS, NoiseLevels, ddim

Program = Generator[Operation, Any, Picture]


def draw(job: Job, checkpoint: LoadedCheckpoint, canvas: Canvas | None) -> Program:
    """The program of a job; `canvas` is its given picture, prepared, if it has one.

    Raises InvalidJob at its first step, before any work, where the job asks for the impossible.
    """
    if canvas is None:
        return txt2img(job, checkpoint)
    return img2img(job, checkpoint, canvas)


def txt2img(job: Job, checkpoint: LoadedCheckpoint) -> Program:
    sampler = _sampler(job)
    sigmas = _sigmas(job, sampler, checkpoint.denoiser.levels)
    evaluations = sampler.evaluations(sigmas)
    guidance = yield from _guidance(job, evaluations)
    noise = _noise(job, checkpoint)
    x = noise.initial * sigmas[0]
    x = yield from _guided(sampler.run(x, sigmas, noise.step, _settings(job)), guidance, evaluations)
    picture: Picture = yield Decode(x=x)
    return picture


def img2img(job: Job, checkpoint: LoadedCheckpoint, canvas: Canvas) -> Program:
    """The last of the sampling steps from a given picture: int(strength · steps) + 1 of them."""
    assert job.init is not None
    sampler = _sampler(job)
    kept = int(min(job.init.denoising_strength, 0.999) * job.steps) + 1
    sigmas = _sigmas(job, sampler, checkpoint.denoiser.levels)[-(kept + 1) :]
    evaluations = sampler.evaluations(sigmas)
    guidance = yield from _guidance(job, evaluations)
    noise = _noise(job, checkpoint)
    init = yield EncodeImage(pixels=canvas.pixels, remaining=evaluations)
    init = _of_size(init, noise.initial)
    repaint = None if canvas.repaint is None else torch.from_numpy(canvas.repaint).to(checkpoint.device)
    if repaint is not None and job.init.mask is not None:
        init = _content(init, repaint, noise.initial, job.init.mask.content)
    x = init + noise.initial * (sigmas[0] * job.init.noise_multiplier)
    evaluating = sampler.run(x, sigmas, noise.step, _settings(job))
    if repaint is not None:
        evaluating = _inside(repaint, init, evaluating)
    x = yield from _guided(evaluating, guidance, evaluations)
    picture: Picture = yield Decode(x=x)
    return picture


@dataclass(frozen=True, slots=True)
class Guidance:
    """What evaluations are conditioned on; `uncond` None is guidance 1."""

    cond: Tensor
    uncond: Tensor | None
    scale: float


def _guidance(job: Job, evaluations: int) -> Generator[Operation, Any, Guidance]:
    prompts = [parse(job.prompt)]
    if job.guidance_scale != 1.0:
        prompts.append(parse(job.negative_prompt, negative=True))
    cond, *uncond = yield Encode(prompts=prompts, clip_skip=job.clip_skip, remaining=evaluations)
    return Guidance(cond, uncond[0] if uncond else None, job.guidance_scale)


def _guided(
    evaluating: Evaluations, guidance: Guidance, evaluations: int
) -> Generator[Operation, Tensor, Tensor]:
    """A sampler's (x, σ) as operations of this row, to its finished latent."""
    try:
        x, sigma = next(evaluating)
        for remaining in range(evaluations, -1, -1):
            denoised = yield Evaluate(
                x=x,
                sigma=sigma,
                cond=guidance.cond,
                uncond=guidance.uncond,
                guidance_scale=guidance.scale,
                remaining=remaining,
            )
            x, sigma = evaluating.send(denoised)
    except StopIteration as finished:
        latent: Tensor = finished.value
        return latent
    raise AssertionError("a sampler made more evaluations than it said")


def _inside(repaint: Tensor, init: Tensor, evaluating: Evaluations) -> Evaluations:
    """A sampler that finds, outside of what is to be repainted, that `init` is the clean latent."""

    def blended(x: Tensor) -> Tensor:
        return repaint * x + (1 - repaint) * init

    try:
        x, sigma = next(evaluating)
        while True:
            denoised = yield x, sigma
            x, sigma = evaluating.send(blended(denoised))
    except StopIteration as finished:
        return blended(finished.value)


def _content(init: Tensor, repaint: Tensor, noise: Tensor, content: str) -> Tensor:
    """What the masked part starts from, in the latent."""
    match content:
        case "latent noise":
            return (1 - repaint) * init + repaint * noise
        case "latent nothing":
            return (1 - repaint) * init
    return init  # what is filled was filled in the picture


def _of_size(latent: Tensor, like: Tensor) -> Tensor:
    if latent.shape == like.shape:
        return latent
    return interpolate(latent[None], like.shape[1:], mode="bilinear")[0]


def _noise(job: Job, checkpoint: LoadedCheckpoint) -> Noise:
    shape = (4, job.height // 8, job.width // 8)
    return Noise(job.seed, shape, checkpoint.device, seed_delta=job.eta_noise_seed_delta)


def _sampler(job: Job) -> Sampler:
    if job.sampler not in SAMPLERS:
        raise InvalidJob(f"sampler {job.sampler!r} is not one of {', '.join(SAMPLERS)}")
    return SAMPLERS[job.sampler]


def _sigmas(job: Job, sampler: Sampler, levels: NoiseLevels) -> Sequence[float]:
    if job.steps < 1:
        raise InvalidJob(f"steps is {job.steps}; at least 1 is needed")
    if sampler.walks_timesteps:
        if job.steps > TRAIN_STEPS:
            raise InvalidJob(f"steps is {job.steps}; {job.sampler} has {TRAIN_STEPS} at most")
        return ddim(levels, job.steps)
    if job.schedule not in SCHEDULES:
        raise InvalidJob(f"schedule {job.schedule!r} is not one of {', '.join(SCHEDULES)}")
    return SCHEDULES[job.schedule](levels, job.steps)


def _settings(job: Job) -> Settings:
    return Settings(
        eta=job.eta,
        s_churn=job.s_churn,
        s_tmin=job.s_tmin,
        s_tmax=job.s_tmax,
        s_noise=job.s_noise,
    )
