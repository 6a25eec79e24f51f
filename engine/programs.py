"""What makes a picture, as straight-line programs over operations: rows are instances of these."""

from collections.abc import Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from engine.enlarge import enlarged
from engine.ops import Decode, EncodeImage, Operation, Picture
from engine.passes import Pass, Sampled
from engine.prepared import Model, Prepared
from engine.protocol import LATENT_UPSCALERS, Interrupted, Job
from engine.upscalers.resize import upscale_latent

Program = Generator[Operation, Any, Picture]


def draw(job: Job, prepared: Prepared) -> Program:
    """The program of a job.

    Raises InvalidJob at its first step, before any work, where the job asks for the impossible.
    """
    if job.init is not None:
        return img2img(job, prepared)
    return txt2img(job, prepared) if job.hires is None else hires_fix(job, prepared)


def txt2img(job: Job, prepared: Prepared) -> Program:
    x, _ = yield from _first_pass(Pass.of(job, prepared.first))
    return (yield from _decoded(x, job, prepared.first))


def _decoded(
    x: Tensor, job: Job, models: Sequence[Model], remaining: int = 0
) -> Generator[Operation, Any, Picture]:
    decoder = models[0].checkpoint.decoder
    picture: Picture = yield Decode(decoder=decoder, x=x, remaining=remaining, tiling=job.tiling)
    return picture


def _first_pass(only: Pass) -> Generator[Operation, Any, Sampled]:
    """From noise alone."""
    conditionings = yield from only.encode()
    noise = only.noise()
    x = noise.initial * only.sampler.initial_scale(only.sigmas[0])
    return (yield from only.sample(x, noise, conditionings))


def hires_fix(job: Job, prepared: Prepared) -> Program:
    """A small picture first, enlarged, then the last sampling steps once more at the larger size.

    The small one is all, where it is interrupted before there is an estimate of the larger one.
    """
    assert job.hires is not None
    hires = job.hires
    second = Pass.of(
        job.second_pass(),
        prepared.second,
        strength=hires.denoising_strength,
        exact_steps=True,
        before=job.steps,
    )
    after = second.evaluations if hires.denoising_strength else 0
    x, whole = yield from _first_pass(Pass.of(job, prepared.first, after=after))
    if whole:
        with suppress(Interrupted):
            return (yield from _second_pass(x, second, job, prepared, after))
    return (yield from _decoded(x, job, prepared.first))


def _second_pass(x: Tensor, second: Pass, job: Job, prepared: Prepared, evaluations: int) -> Program:
    """From the latent of the first one. Without evaluations it only enlarges."""
    x = yield from _enlarged(x, job, prepared, evaluations)
    if evaluations:
        conditionings = yield from second.encode()
        noise = second.noise()
        x, _ = yield from second.sample(x + noise.initial * second.sigmas[0], noise, conditionings)
    return (yield from _decoded(x, job, prepared.second))


def _enlarged(x: Tensor, job: Job, prepared: Prepared, remaining: int) -> Generator[Operation, Any, Tensor]:
    """The first pass' latent at the size of the second, by way of a picture where the upscaler needs one."""
    assert job.hires is not None
    hires = job.hires
    width, height = hires.upscaled_width // 8, hires.upscaled_height // 8
    if hires.upscaler in LATENT_UPSCALERS:
        x = upscale_latent(x, (width, height), hires.upscaler)
    else:
        pixels = yield from _decoded(x, job, prepared.first, remaining)
        by, size = prepared.upscaler or hires.upscaler, (8 * width, 8 * height)
        pixels = yield from enlarged(pixels, size, by, device=x.device, remaining=remaining)
        encoder = prepared.second[0].checkpoint.encoder
        x = yield EncodeImage(encoder=encoder, pixels=pixels, remaining=remaining, tiling=job.tiling)
    return _middle(x, hires.height // 8, hires.width // 8)


def _middle(x: Tensor, height: int, width: int) -> Tensor:
    """(4, h, w), cut to (4, height, width)."""
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]


def img2img(job: Job, prepared: Prepared) -> Program:
    """The last sampling steps, from a given picture; where it has a mask, inside that alone."""
    assert job.init is not None
    assert prepared.canvas is not None
    init, canvas, checkpoint = job.init, prepared.canvas, prepared.first[0].checkpoint
    only = Pass.of(job, prepared.first, strength=init.denoising_strength, exact_steps=init.exact_steps)
    conditionings = yield from only.encode(canvas)
    noise = only.noise()
    given = yield EncodeImage(
        encoder=checkpoint.encoder, pixels=canvas.pixels, remaining=only.remaining, tiling=job.tiling
    )
    given = _of_size(given, noise.initial)
    inside = None
    if canvas.repaint is not None and init.mask is not None:
        repaint = torch.from_numpy(canvas.repaint).to(checkpoint.device)
        given = _content(given, repaint, noise.initial, init.mask.content)
        inside = partial(_blended, repaint, given)
    x = given + noise.initial * (only.sigmas[0] * init.noise_multiplier)
    x, _ = yield from only.sample(x, noise, conditionings, inside)
    return (yield from _decoded(x, job, prepared.first))


def _blended(repaint: Tensor, given: Tensor, x: Tensor) -> Tensor:
    """`given`, and x where it is to be repainted."""
    return repaint * x + (1 - repaint) * given


def _content(given: Tensor, repaint: Tensor, noise: Tensor, content: str) -> Tensor:
    """What the masked part starts from, in the latent."""
    match content:
        case "latent noise":
            return (1 - repaint) * given + repaint * noise
        case "latent nothing":
            return (1 - repaint) * given
    return given  # what is filled was filled in the picture


def _of_size(latent: Tensor, like: Tensor) -> Tensor:
    if latent.shape == like.shape:
        return latent
    return interpolate(latent[None], like.shape[1:], mode="bilinear")[0]
