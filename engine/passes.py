"""One run of a sampler, as operations: what every program is made of."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from engine.conditioning import Cond
from engine.deepcache import turns
from engine.images import Canvas, latent_pixels
from engine.noise import Noise
from engine.ops import Encode, EncodeImage, Estimate, Evaluate, Operation
from engine.prepared import Model
from engine.prompts import Plan, Prompt, Timeline, parse, parse_negative
from engine.protocol import NOISE_SOURCES, Interrupted, InvalidJob, Job
from engine.samplers import SAMPLERS, Sampler, Settings
from engine.samplers.walk import walk
from engine.schedules import TRAIN_STEPS

MID_GREY = 127.5
FULL = 0.999
"""The most denoising strength that counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """A pass' prompts as one model is conditioned on them, by text: the prompt's, and the negative one's."""

    model: Model
    positive: Plan
    negative: Plan | None
    positives: Mapping[Prompt, Cond]
    negatives: Mapping[Prompt, Cond]

    def conds(self, evaluation: int) -> list[tuple[Cond, float]]:
        return [(self.positives[part.at(evaluation)], part.weight) for part in self.positive.parts]

    def uncond(self, evaluation: int) -> Cond | None:
        return None if self.negative is None else self.negatives[self.negative.parts[0].at(evaluation)]


class Sampled(NamedTuple):
    """The finished latent (4, h, w) of a pass, or the latest estimate of it: then it is not `whole`."""

    x: Tensor
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A job's settings, all of them checked, and the noise levels that they come to.

    `schedule` holds all levels, `sigmas` the last ones of them, which are walked. `after`: evaluations of the
    passes that follow. Without a `negative` there is no uncond. `models` are the pass' own and, where the job
    has a refiner, that.
    """

    job: Job
    sampler: Sampler
    schedule: Sequence[float]
    sigmas: Sequence[float]
    positive: Plan
    negative: Plan | None
    models: Sequence[Model]
    after: int = 0

    @classmethod
    def of(
        cls,
        job: Job,
        models: Sequence[Model],
        *,
        strength: float | None = None,
        exact_steps: bool = False,
        before: int = 0,
        after: int = 0,
    ) -> Self:
        """`strength`: of a pass that begins with a picture. `before`: sampling steps of the pass before.

        Raises InvalidJob where the job asks for the impossible.
        """
        sampler = _sampler(job)
        schedule, sigmas = _levels(job, sampler, models[0], strength, exact_steps)
        positive, negative = _prompts(job, sampler, models, before)
        return cls(
            job=job,
            sampler=sampler,
            schedule=schedule,
            sigmas=sigmas,
            positive=positive,
            negative=negative,
            models=models,
            after=after,
        )

    @property
    def evaluations(self) -> int:
        """Of this pass: exact, but for samplers that find out as they go."""
        return self.sampler.evaluations(self.sigmas)

    @property
    def remaining(self) -> int:
        """Evaluations of this pass and of those after it."""
        return self.evaluations + self.after

    def noise(self) -> Noise:
        shape = (4, self.job.height // 8, self.job.width // 8)
        return Noise.of(self.job, shape, self.models[0].checkpoint.device)

    def encode(self, canvas: Canvas | None = None) -> Generator[Operation, Any, list[Conditioning]]:
        """For each model, every text that the prompts are at some step, in one operation.

        For a checkpoint that is for inpainting the picture too, without what `canvas` masks, which without a
        mask is all of it.
        """
        conditionings = []
        for model in self.models:
            conditionings.append((yield from self._encode(model, canvas)))  # noqa: PERF401 - it yields
        return conditionings

    def _encode(self, model: Model, canvas: Canvas | None) -> Generator[Operation, Any, Conditioning]:
        negative = self.negative.prompts if self.negative else ()
        prompts = list(dict.fromkeys([*self.positive.prompts, *negative]))
        checkpoint, family = model.checkpoint, model.checkpoint.kind.family
        encoded = yield Encode(
            conditioner=checkpoint.conditioner,
            prompts=prompts,
            clip_skip=self.job.clip_skip,
            keep_mean=self.job.emphasis != "No norm",
            remaining=self.remaining,
            loras=model.loras.text_encoder,
        )
        beside = (yield from self._beside(model, canvas)) if checkpoint.kind.inpainting else None
        wanted, unwanted = family.aesthetic_scores or (None, None)
        zeros = family.zero_empty_negative and not self.job.negative_prompt.strip()
        pairs = list(zip(prompts, encoded, strict=True))
        return Conditioning(
            model=model,
            positive=self.positive,
            negative=self.negative,
            positives={text: replace(cond, beside=beside, aesthetic_score=wanted) for text, cond in pairs},
            negatives={
                text: replace(cond.zeros() if zeros else cond, beside=beside, aesthetic_score=unwanted)
                for text, cond in pairs
                if text in negative
            },
        )

    def _beside(self, model: Model, canvas: Canvas | None) -> Generator[Operation, Any, Tensor]:
        """(5, h, w): the mask at every eighth pixel, and the latent of the picture, mid-grey where masked."""
        mask = np.ones(latent_pixels(self.job.width, self.job.height)[::-1], np.bool_)
        pixels = None
        if canvas is not None and canvas.mask is not None:
            mask, pixels = canvas.mask, canvas.pixels
        grey = np.full((*mask.shape, 3), MID_GREY, np.float32)
        masked = grey if pixels is None else np.where(mask[:, :, None], grey, pixels)
        latent: Tensor = yield EncodeImage(
            encoder=model.checkpoint.encoder,
            pixels=masked,
            remaining=self.remaining,
            tiling=self.job.tiling,
        )
        small = torch.from_numpy(mask[::8, ::8].astype(np.float32)).to(latent.device)
        return torch.cat([small[None], latent])

    def sample(
        self,
        x: Tensor,
        noise: Noise,
        conditionings: Sequence[Conditioning],
        inside: Callable[[Tensor], Tensor] | None = None,
    ) -> Generator[Operation, Tensor, Sampled]:
        """From x at σ_0 to the finished latent; `inside` may change that, and each estimate of it.

        Ends with the latest estimate where it is interrupted. Raises Interrupted if there is none.
        """
        step_noise = self.sampler.step_noise(noise, self.schedule)
        masked = inside or (lambda latent: latent)
        walking = walk(self.sampler, x, self.sigmas, step_noise, _settings(self.job))
        remaining = self.evaluations
        scale = _guidance_scale(self.job, self.sampler)
        done = 0
        conditioning, *refining = conditionings
        turn = turns(conditioning.model.checkpoint.quality.full_every)
        estimate: Estimate | None = None
        try:
            latent, sigma, meanwhile = next(walking)
            while True:
                if refining and self._refines(done, sigma):
                    conditioning = refining.pop()
                    turn = turns(conditioning.model.checkpoint.quality.full_every)
                denoised = yield Evaluate(
                    denoiser=conditioning.model.checkpoint.denoiser,
                    x=latent,
                    sigma=sigma,
                    conds=conditioning.conds(done),
                    uncond=conditioning.uncond(done),
                    guidance_scale=scale,
                    both=self.sampler.needs_uncond,
                    remaining=max(remaining - done, 1) + self.after,
                    loras=conditioning.model.loras.unet,
                    tiling=self.job.tiling,
                    turn=next(turn),
                    estimate=estimate,
                    meanwhile=meanwhile,
                )
                done += 1
                denoised = masked(denoised)
                guided = denoised[0] if self.sampler.needs_uncond else denoised
                estimate = Estimate(guided, self.models[0])
                latent, sigma, meanwhile = walking.send(denoised)
        except StopIteration as finished:
            return Sampled(masked(finished.value))
        except Interrupted:
            if estimate is None:
                raise
            return Sampled(estimate.latent, whole=False)

    def _refines(self, done: int, sigma: float) -> bool:
        """Whether the refiner takes over, before an evaluation at σ with so many done."""
        refiner = self.job.refiner
        assert refiner is not None
        if not refiner.by_timestep:
            return done >= refiner.switch_at * self.evaluations
        timestep = self.models[0].checkpoint.denoiser.levels.timestep(np.array(sigma))
        return bool(1 - timestep / TRAIN_STEPS >= refiner.switch_at)


def _levels(
    job: Job, sampler: Sampler, model: Model, strength: float | None, exact_steps: bool
) -> tuple[list[float], list[float]]:
    """All levels, and those that are walked: the last int(strength · steps) + 1 steps of them.

    With `exact_steps` all of the job's steps, the last ones of a schedule that is as much longer.
    """

    def schedule(steps: int) -> list[float]:
        levels = model.checkpoint.denoiser.levels
        return sampler.sigmas(job.schedule, levels, steps, discard=job.discard_next_to_last_sigma)

    levels = schedule(job.steps)
    if strength is None:
        return levels, levels
    strength = min(strength, FULL)
    if not exact_steps or strength == 0:
        return levels, levels[-(int(strength * job.steps) + 2) :]
    longer = schedule(min(int(job.steps / strength), sampler.max_steps - 1))
    return longer, longer[-(job.steps + 1) :]


def _prompts(job: Job, sampler: Sampler, models: Sequence[Model], before: int) -> tuple[Plan, Plan | None]:
    """No negative one where uncond cancels out: in uncond + Σ scale · weight · (cond − uncond)."""
    per_step = 2 if sampler.second_order else 1
    timeline = Timeline(steps=per_step * job.steps, before=per_step * before, old=job.old_scheduling)
    names = ("hr_prompt", "hr_negative_prompt") if before else ("prompt", "negative_prompt")
    positive = parse(job.prompt, timeline, emphasis=job.emphasis, field=names[0])
    for model in models:
        model.checkpoint.conditioner.check(positive.prompts, names[0])
    scale = _guidance_scale(job, sampler) * sum(part.weight for part in positive.parts)
    if scale == 1.0 and not sampler.needs_uncond:
        return positive, None
    negative = parse_negative(job.negative_prompt, timeline, emphasis=job.emphasis, field=names[1])
    for model in models:
        model.checkpoint.conditioner.check(negative.prompts, names[1])
    return positive, negative


def _sampler(job: Job) -> Sampler:
    if job.sampler not in SAMPLERS:
        raise InvalidJob(f"sampler {job.sampler!r} is not one of {', '.join(SAMPLERS)}")
    if job.noise_source not in NOISE_SOURCES:
        raise InvalidJob(f"noise_source {job.noise_source!r} is not one of {', '.join(NOISE_SOURCES)}")
    if not 0 <= job.eta <= 1:
        raise InvalidJob(f"eta is {job.eta}; it must be between 0 and 1")
    return SAMPLERS[job.sampler]


def _guidance_scale(job: Job, sampler: Sampler) -> float:
    return job.guidance_scale * sampler.guidance_factor


def _settings(job: Job) -> Settings:
    return Settings(
        eta=job.eta,
        s_churn=job.s_churn,
        s_tmin=job.s_tmin,
        s_tmax=job.s_tmax,
        s_noise=job.s_noise,
    )
