"""What a request may ask for: within the operator's limits, and of the features that there are."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ingress.errors import InvalidRequest, shown
from ingress.schemas.sdapi import FixedOptions, GenerationRequest, OverrideSettings
from ingress.settings import Limits

LAST_SEED = 2**63 - 1

MAX_MASK_BLUR = 256
"""Pixels."""


UNSUPPORTED: Mapping[str, Callable[[Any], object]] = MappingProxyType(
    {
        "restore_faces": bool,
        "s_min_uncond": lambda value: (value or 0) > 0,
    }
)
"""Fields of what this version does not do, and whether a value asks for it."""


def check_limits(request: GenerationRequest, limits: Limits) -> None:
    """Raise `InvalidRequest` for the first field that is out of its range."""
    for field, low, high in (
        ("width", limits.min_side, limits.max_side),
        ("height", limits.min_side, limits.max_side),
        ("steps", 1, limits.max_steps),
        ("batch_size", 1, limits.max_images),
        ("n_iter", 1, limits.max_images),
        ("cfg_scale", 0, limits.max_cfg_scale),
        ("eta", 0, 1),
        ("denoising_strength", 0, 1),
        ("s_churn", 0, 1000),
        ("s_tmin", 0, 1000),
        ("s_tmax", 0, 1000),
        ("s_noise", 0, 10),
        ("subseed_strength", 0, 1),
        ("resize_mode", 0, 3),
        ("mask_blur_x", 0, MAX_MASK_BLUR),
        ("mask_blur_y", 0, MAX_MASK_BLUR),
        ("mask_blur", 0, MAX_MASK_BLUR),
        ("inpainting_fill", 0, 3),
        ("inpaint_full_res_padding", 0, limits.max_side),
        ("initial_noise_multiplier", 0, 10),
    ):
        check_range(field, getattr(request, field, None), low, high)
    for field in ("seed_resize_from_w", "seed_resize_from_h"):
        size = getattr(request, field)
        check_range(field, size if size > 0 else None, 8, limits.max_side)
    _check_totals(request, limits)


def check_range(field: str, value: float | None, low: float, high: float) -> None:
    """Raise `InvalidRequest` for a value that is given and out of its range."""
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{field}: {value} is not allowed. Allowed: {low} to {high}.")


def _check_totals(request: GenerationRequest, limits: Limits) -> None:
    images = request.batch_size * request.n_iter
    if images > limits.max_images:
        raise InvalidRequest(
            f"batch_size × n_iter: {images} images are not allowed. Allowed: 1 to {limits.max_images}."
        )
    pixels = request.width * request.height
    if pixels > limits.max_pixels:
        raise InvalidRequest(
            f"width × height: {pixels} pixels are not allowed. Allowed: up to {limits.max_pixels}."
        )
    for field in ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt"):
        length = len(getattr(request, field, ""))
        if length > limits.max_prompt_chars:
            raise InvalidRequest(
                f"{field}: {length} characters are not allowed. Allowed: up to {limits.max_prompt_chars}."
            )
    for field in ("seed", "subseed"):
        if getattr(request, field) > LAST_SEED - images:
            raise InvalidRequest(f"{field}: the last image's would not fit in 64 bits.")


def check_supported(request: GenerationRequest, overrides: OverrideSettings, *, saves: bool) -> None:
    """Raise `InvalidRequest` for the first field that asks for what this version does not do.

    Nothing that would change the picture is dropped silently. `saves`: there is a place to save pictures in.
    """
    if request.save_images and not saves:
        _refuse("save_images", True)
    for field, asks in UNSUPPORTED.items():
        value = getattr(request, field, None)
        if asks(value):
            _refuse(field, value)
    check_options(overrides, "override_settings")


def check_options(options: OverrideSettings, field: str = "") -> None:
    """Raise `InvalidRequest` for the first option, of `field`, that asks for what is not done here."""
    prefix = f"{field}." if field else ""
    for option, fixed in FixedOptions.model_fields.items():
        if getattr(options, option) != fixed.default:
            _refuse(f"{prefix}{option}", getattr(options, option))


def _refuse(field: str, value: object) -> None:
    raise InvalidRequest(f"{field}: {shown(value)} asks for a feature that this version does not have.")
