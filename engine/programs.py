"""What makes a picture, as straight-line programs over operations: rows are instances of these."""

from collections.abc import Generator, Sequence
from typing import Any

from torch import Tensor

from engine.checkpoint import LoadedCheckpoint
from engine.noise import Noise
from engine.ops import Decode, Encode, Evaluate, Operation, Picture
from engine.prompts import parse
from engine.protocol import InvalidJob, Job
from engine.samplers import SAMPLERS, Evaluations, Sampler, Settings
from engine.schedules import SCHEDULES, TRAIN_STEPS, NoiseLevels, ddim

Program = Generator[Operation, Any, Picture]


def txt2img(job: Job, checkpoint: LoadedCheckpoint) -> Program:
    """Raises InvalidJob at its first step, before any work, where the job asks for the impossible."""
    sampler = _sampler(job)
    sigmas = _sigmas(job, sampler, checkpoint.denoiser.levels)
    evaluations = sampler.evaluations(sigmas)
    prompts = [parse(job.prompt)]
    if job.guidance_scale != 1.0:
        prompts.append(parse(job.negative_prompt, negative=True))

    cond, *uncond = yield Encode(prompts=prompts, clip_skip=job.clip_skip, remaining=evaluations)
    shape = (4, job.height // 8, job.width // 8)
    noise = Noise(job.seed, shape, checkpoint.device, seed_delta=job.eta_noise_seed_delta)
    x = noise.initial * sigmas[0]
    evaluating = sampler.run(x, sigmas, noise.step, _settings(job))
    x = yield from _guided(evaluating, cond, uncond[0] if uncond else None, job.guidance_scale, evaluations)
    picture: Picture = yield Decode(x=x)
    return picture


def _guided(
    evaluating: Evaluations,
    cond: Tensor,
    uncond: Tensor | None,
    guidance_scale: float,
    evaluations: int,
) -> Generator[Operation, Tensor, Tensor]:
    """A sampler's (x, σ) as operations of this row, to its finished latent."""
    try:
        x, sigma = next(evaluating)
        for remaining in range(evaluations, -1, -1):
            denoised = yield Evaluate(
                x=x,
                sigma=sigma,
                cond=cond,
                uncond=uncond,
                guidance_scale=guidance_scale,
                remaining=remaining,
            )
            x, sigma = evaluating.send(denoised)
    except StopIteration as finished:
        latent: Tensor = finished.value
        return latent
    raise AssertionError("a sampler made more evaluations than it said")


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
