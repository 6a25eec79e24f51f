"""The hires fix: from its request fields to the second pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.protocol import Checkpoint, Hires, Refiner
from ingress import checkpoints
from ingress.errors import InvalidRequest, shown
from ingress.limits import check_range
from ingress.schemas import samplers
from ingress.schemas.sdapi import Txt2ImgRequest
from ingress.settings import CompatVersion, Limits, Settings

MAX_SCALE = 8
MAX_UPSCALER_CHARS = 255
"""As long as a file's name may be."""
DENOISING_STRENGTH = 0.75
"""Of a request that leaves it open; the original fails there."""

SAME = ("use same sampler", "use same scheduler", "use same checkpoint")
"""What user interfaces send for "not given"."""

Size = tuple[int, int]
"""Width, height."""


@dataclass(frozen=True, slots=True)
class SecondPass:
    """The second pass, how its sampler is called, the size of the first, and its own checkpoint, if any."""

    hires: Hires
    sampling: samplers.Sampling
    first: Size
    checkpoint: Checkpoint | None


def second_pass(
    request: Txt2ImgRequest,
    settings: Settings,
    first: Checkpoint,
    available: Sequence[Checkpoint],
    refiner: Refiner | None,
    eta_of: Callable[[str], float],
) -> SecondPass:
    """Of a request with `enable_hr`, whose first pass has the checkpoint `first`.

    Raises `InvalidRequest`, `NotFound` and `SamplerNotFound`.
    """
    limits = settings.limits
    for field, low, high in (
        ("hr_scale", 0.1, MAX_SCALE),
        ("hr_resize_x", 0, limits.max_side),
        ("hr_resize_y", 0, limits.max_side),
        ("hr_second_pass_steps", 0, limits.max_steps),
    ):
        check_range(field, getattr(request, field), low, high)
    check_upscaler("hr_upscaler", request.hr_upscaler)
    small, upscaled, target = _sizes(request, limits)
    checkpoint = _checkpoint(request, first, available)
    sampling = _sampling(request, settings.compat_version)
    strength = request.denoising_strength
    hires = Hires(
        checkpoint=(checkpoint or first).name,
        upscaler=request.hr_upscaler or "Latent",
        upscaled_width=upscaled[0],
        upscaled_height=upscaled[1],
        width=target[0],
        height=target[1],
        steps=request.hr_second_pass_steps or request.steps,
        denoising_strength=DENOISING_STRENGTH if strength is None else strength,
        sampler=sampling.sampler,
        schedule=sampling.schedule,
        eta=eta_of(sampling.sampler),
        prompt=request.hr_prompt or request.prompt,
        negative_prompt=request.hr_negative_prompt or request.negative_prompt,
        refiner=refiner,
    )
    return SecondPass(hires, sampling, small, checkpoint)


def _checkpoint(
    request: Txt2ImgRequest, first: Checkpoint, available: Sequence[Checkpoint]
) -> Checkpoint | None:
    """None where it is the first pass's."""
    name = given(request.hr_checkpoint_name)
    found = checkpoints.find_like(name, available, "hr_checkpoint_name") if name else first
    return None if found.name == first.name else found


def _sizes(request: Txt2ImgRequest, limits: Limits) -> tuple[Size, Size, Size]:
    """Of the first pass, of the enlarged picture, and of what is kept of that."""
    width, height = request.width, request.height
    x, y = _resize(request)
    if _older_sizes(request):
        width, height = request.firstphase_width, request.firstphase_height
    if min(width, height) < limits.min_side:
        raise InvalidRequest(
            f"firstphase_width × firstphase_height: {width} × {height} is not allowed. Allowed: at least "
            f"{limits.min_side} each, or 0 and 0."
        )
    upscaled, target = _upscaled(width, height, x, y, request.hr_scale)
    field = "hr_resize_x × hr_resize_y" if x or y else "hr_scale"
    _check(upscaled, field, limits)
    return (width, height), upscaled, target


def _older_sizes(request: Txt2ImgRequest) -> bool:
    """Old clients give the size of the first pass; width and height are then the second one's."""
    return bool(request.firstphase_width or request.firstphase_height)


def _resize(request: Txt2ImgRequest) -> Size:
    """The size that is asked for, 0 and 0 where a scale is."""
    older = _older_sizes(request)
    return (request.width, request.height) if older else (request.hr_resize_x, request.hr_resize_y)


def _upscaled(width: int, height: int, x: int, y: int, scale: float) -> tuple[Size, Size]:
    """The enlarged size and the part of it that is kept; a side of 0 follows from the aspect."""
    if not x and not y:
        x, y = int(width * scale), int(height * scale)
        return (x, y), (x, y)
    if not y:
        return (x, x * height // width), (x, x * height // width)
    if not x:
        return (y * width // height, y), (y * width // height, y)
    if width * y < height * x:
        return (x, x * height // width), (x, y)
    return (y * width // height, y), (x, y)


def _check(size: Size, field: str, limits: Limits) -> None:
    too_large = max(size) > limits.max_side or size[0] * size[1] > limits.max_pixels
    if too_large or min(size) < limits.min_side:
        raise InvalidRequest(
            f"{field}: a picture of {size[0]} × {size[1]} is not allowed. Allowed: sides from "
            f"{limits.min_side} to {limits.max_side}, {limits.max_pixels} pixels in all."
        )


def _sampling(request: Txt2ImgRequest, version: CompatVersion) -> samplers.Sampling:
    name, scheduler = given(request.hr_sampler_name), given(request.hr_scheduler)
    field = "hr_sampler_name"
    if not name:
        field = "sampler_name" if request.sampler_name else "sampler_index"
        name = getattr(request, field) or "Euler"
    return samplers.resolve(name, scheduler or request.scheduler, version, field)


def given(name: str | None) -> str | None:
    """None for the ways to say "the same as before"."""
    return None if not name or name.casefold() in SAME else name


def check_upscaler(field: str, name: str | None) -> None:
    """Which files there are the replicas know, who refuse a name that is none."""
    if name and len(name) > MAX_UPSCALER_CHARS:
        raise InvalidRequest(f"{field}: {shown(name)} is too long. Allowed: {MAX_UPSCALER_CHARS} characters.")


def params(
    request: Txt2ImgRequest, second: SecondPass, main: samplers.Sampling, version: CompatVersion
) -> dict[str, Any]:
    """What the infotext says of the second pass, where a pair of None says nothing; `main` is the first's."""
    x, y = _resize(request)
    sampling, newer = second.sampling, version != "v1.7.0"
    same_schedule = sampling.schedule_label == main.schedule_label
    return {
        **({"Denoising strength": second.hires.denoising_strength} if newer else {}),
        "Hires checkpoint": checkpoints.short_title(second.checkpoint) if second.checkpoint else None,
        "Hires sampler": None if sampling.name == main.name else sampling.name,
        "Hires prompt": _other(request.hr_prompt, request.prompt, version),
        "Hires negative prompt": _other(request.hr_negative_prompt, request.negative_prompt, version),
        **({"Hires schedule type": None if same_schedule else sampling.schedule_label} if newer else {}),
        "Hires upscale": None if x or y else request.hr_scale,
        "Hires resize": f"{x}x{y}" if x or y else None,
        "Hires steps": request.hr_second_pass_steps or None,
        "Hires upscaler": request.hr_upscaler,
    }


def _other(text: str, main: str, version: CompatVersion) -> str | None:
    """v1.7.0 writes a prompt that was given, later versions one that differs."""
    return None if not text or (version != "v1.7.0" and text == main) else text
