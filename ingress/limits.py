"""What a request may ask for: within the operator's limits, and of the features that there are."""

from typing import Any

from ingress.errors import InvalidRequest, shown
from ingress.schemas.sdapi import OverrideSettings, Txt2ImgRequest
from ingress.settings import Limits

LAST_SEED = 2**63 - 1


def check_limits(request: Txt2ImgRequest, limits: Limits) -> None:
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
    ):
        value = getattr(request, field)
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{field}: {value} is not allowed. Allowed: {low} to {high}.")
    _check_totals(request, limits)


def _check_totals(request: Txt2ImgRequest, limits: Limits) -> None:
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
    for field in ("prompt", "negative_prompt"):
        length = len(getattr(request, field))
        if length > limits.max_prompt_chars:
            raise InvalidRequest(
                f"{field}: {length} characters are not allowed. Allowed: up to {limits.max_prompt_chars}."
            )
    for field in ("seed", "subseed"):
        if getattr(request, field) > LAST_SEED - images:
            raise InvalidRequest(f"{field}: the last image's would not fit in 64 bits.")


def check_supported(request: Txt2ImgRequest, overrides: OverrideSettings) -> None:
    """Raise `InvalidRequest` for the first field that asks for what this version does not do.

    Nothing that would change the picture is dropped silently.
    """
    for field, asked in (
        ("enable_hr", request.enable_hr),
        ("firstphase_width", request.firstphase_width != 0),
        ("firstphase_height", request.firstphase_height != 0),
        ("subseed_strength", request.subseed_strength != 0),
        ("seed_resize_from_h", min(request.seed_resize_from_h, request.seed_resize_from_w) > 0),
        ("tiling", request.tiling),
        ("restore_faces", request.restore_faces),
        ("refiner_checkpoint", (request.refiner_checkpoint or "none").casefold() != "none"),
        ("s_min_uncond", (request.s_min_uncond or 0) > 0),
        ("script_name", request.script_name),
        ("save_images", request.save_images),
        ("infotext", request.infotext),
    ):
        if asked:
            _refuse(field, getattr(request, field))
    for name, script in request.alwayson_scripts.items():
        if not _does_nothing(script):
            _refuse("alwayson_scripts", name)
    if (overrides.sd_vae or "none").casefold() not in ("none", "automatic"):
        _refuse("override_settings.sd_vae", overrides.sd_vae)
    if (overrides.samples_format or "png").casefold() != "png":
        _refuse("override_settings.samples_format", overrides.samples_format)
    if overrides.tiling:
        _refuse("override_settings.tiling", overrides.tiling)


def _refuse(field: str, value: object) -> None:
    raise InvalidRequest(f"{field}: {shown(value)} asks for a feature that this version does not have.")


def _does_nothing(script: Any) -> bool:
    """Clients mention scripts that they do not use: no args, or all of them false."""
    args = script.get("args") if isinstance(script, dict) else script
    return args is None or (isinstance(args, list) and not any(args))
