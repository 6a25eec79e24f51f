"""The field `infotext`: what a client leaves open is as the infotext of a picture says."""

from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from engine.protocol import AtelierError
from ingress.errors import InvalidRequest, SamplerNotFound, listed, shown, validation_message
from ingress.infotext import DEFAULTS, PROMPTS, older, read
from ingress.schemas import samplers
from ingress.schemas.sdapi import GenerationRequest, LenientModel, OverrideSettings, Txt2ImgRequest
from ingress.settings import Settings, Style

MAX_CHARS = 2**16
"""Of an infotext. Those of our own pictures, with the longest prompts, are shorter."""

_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "Steps": "steps",
        "Sampler": "sampler_name",
        "Schedule type": "scheduler",
        "Seed": "seed",
        "Variation seed": "subseed",
        "Variation seed strength": "subseed_strength",
        "Seed resize from-1": "seed_resize_from_w",
        "Seed resize from-2": "seed_resize_from_h",
        "Refiner": "refiner_checkpoint",
        "Refiner switch at": "refiner_switch_at",
        # Options, which are known here as the request's fields alone.
        "NGMS": "s_min_uncond",
        "Noise multiplier": "initial_noise_multiplier",
        "Sigma churn": "s_churn",
        "Sigma tmin": "s_tmin",
        "Sigma tmax": "s_tmax",
        "Sigma noise": "s_noise",
    }
)
"""Key -> request field, of both routes."""

_TXT2IMG_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        **{key: field for field, key in PROMPTS.items()},
        "Styles array": "styles",
        "CFG scale": "cfg_scale",
        "Size-1": "width",
        "Size-2": "height",
        "Batch size": "batch_size",
        "Denoising strength": "denoising_strength",
        "Hires upscale": "hr_scale",
        "Hires upscaler": "hr_upscaler",
        "Hires steps": "hr_second_pass_steps",
        "Hires resize-1": "hr_resize_x",
        "Hires resize-2": "hr_resize_y",
        "Hires checkpoint": "hr_checkpoint_name",
        "Hires sampler": "hr_sampler_name",
        "Hires schedule type": "hr_scheduler",
    }
)

_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "Clip skip": "CLIP_stop_at_last_layers",
        "ENSD": "eta_noise_seed_delta",
        "RNG": "randn_source",
        "VAE": "sd_vae",
        "Tiling": "tiling",
        "Emphasis": "emphasis",
        "Old prompt editing timelines": "use_old_scheduling",
        "Discard penultimate sigma": "always_discard_next_to_last_sigma",
        "SGM noise multiplier": "sgm_noise_multiplier",
        "Eta": "eta_ancestral",
        "Eta DDIM": "eta_ddim",
        "Schedule min sigma": "sigma_min",
        "Schedule max sigma": "sigma_max",
        "Schedule rho": "rho",
        "Beta schedule alpha": "beta_dist_alpha",
        "Beta schedule beta": "beta_dist_beta",
        "Hires refiner": "hires_fix_refiner_pass",
        "Refiner switch by sampling steps": "refiner_switch_by_sample_steps",
    }
)
"""Key -> option in `override_settings`."""

_WRITTEN_OPTIONS = frozenset({*_OPTIONS.values(), "enable_emphasis", "enable_prompt_comments"})
"""Options that an infotext tells of, be it by saying nothing: those of whoever sends it do not count."""

_SIZES = ("Size", "Hires resize", "Seed resize from")

_HARMLESS = frozenset(
    {
        "Model", "Model hash", "VAE hash", "Lora hashes", "TI hashes", "Version", "User", "Batch pos",
        "Init image hash", "Mask mode", "Mask blur", "Inpaint area", "Masked area padding", "Masked content",
        "Downcast alphas_cumprod", "Pad conds", "Pad conds v0", "Quality",
    }
)  # fmt: skip
"""Keys of which nothing is filled in, and nobody is warned of it."""

_KNOWN = frozenset({*_FIELDS, *_TXT2IMG_FIELDS, *_OPTIONS, *_SIZES, *_HARMLESS})

_NEWER_NAMES: Mapping[str, str] = MappingProxyType(
    {"sampler_index": "sampler_name", "enable_emphasis": "emphasis"}
)


@dataclass(frozen=True, slots=True)
class Replay:
    """A request with what its infotext filled in; `keys` says from which key each of these fields came.

    `overlay` is what counts beside it of the options that the caller has set.
    """

    request: GenerationRequest
    overlay: Mapping[str, Any]
    keys: Mapping[str, str]
    warnings: tuple[str, ...]

    def explained(self, error: AtelierError) -> AtelierError:
        """An error about a request, whose message begins with a field: if it was filled in, about its key."""
        field, _, rest = error.message.partition(": ")
        return InvalidRequest(f"infotext.{self.keys[field]}: {rest}") if field in self.keys else error


def replay(
    request: GenerationRequest, settings: Settings, overlay: Mapping[str, Any] = MappingProxyType({})
) -> Replay:
    """The request with its open fields filled in. Raises `InvalidRequest`, naming `infotext` and the key."""
    text = request.infotext
    if not text:
        return Replay(request, overlay, {}, ())
    if len(text) > MAX_CHARS:
        raise InvalidRequest(f"infotext: {len(text)} characters are not allowed. Allowed: up to {MAX_CHARS}.")
    given = _with_newer_names(request.model_fields_set)
    for_txt2img = isinstance(request, Txt2ImgRequest)
    fields = {**_FIELDS, **_TXT2IMG_FIELDS} if for_txt2img else _FIELDS
    wanted = {key: field for key, field in fields.items() if field not in given}
    said = _said(text, settings.styles if "Styles array" in wanted else ())
    said |= _schedules_of_bare_names(said, wanted, settings)
    _check_sizes(said, wanted)
    keys = {field: key for key, field in wanted.items() if key in said}
    filled = _coerced(type(request), said, keys)
    if for_txt2img and "enable_hr" not in given and _tells_of_a_second_pass(said):
        filled["enable_hr"] = True
    options = _options(request, said, settings, [filled.get(field, "") for field in PROMPTS])
    if options:
        filled["override_settings"] = (request.override_settings or {}) | options
    keys |= {f"override_settings.{name}": key for key, name in _OPTIONS.items() if name in options}
    left = {name: value for name, value in overlay.items() if name not in _WRITTEN_OPTIONS}
    return Replay(request.model_copy(update=filled), left, keys, _warnings(said))


def _said(text: str, styles: Sequence[Style]) -> dict[str, Any]:
    """What the text says itself: what it leaves out stays open. But an operator's clip skip is not its."""
    values = read(text, styles)
    return {key: value for key, value in values.items() if value != DEFAULTS.get(key) or key == "Clip skip"}


def _with_newer_names(given: Iterable[str]) -> set[str]:
    return {name for each in given for name in (each, _NEWER_NAMES.get(each, each))}


def _schedules_of_bare_names(
    said: Mapping[str, Any], wanted: Container[str], settings: Settings
) -> dict[str, str]:
    """Before v1.9 a sampler's name alone meant other noise schedules than since."""
    if settings.compat_version == "v1.7.0" or not older(said, 1, 9):
        return {}
    schedules = {}
    for sampler, schedule in (("Sampler", "Schedule type"), ("Hires sampler", "Hires schedule type")):
        if sampler in wanted and sampler in said and schedule not in said:
            with suppress(SamplerNotFound):
                meant = samplers.resolve(said[sampler], None, "v1.7.0", sampler).schedule
                schedules[schedule] = samplers.LABELS[meant]
    return schedules


def _check_sizes(said: Mapping[str, Any], wanted: Container[str]) -> None:
    for key in _SIZES:
        if key in said and f"{key}-1" in wanted:
            raise InvalidRequest(
                f"infotext.{key}: {shown(said[key])} is not allowed. Allowed: width and height, as 512x768."
            )


def _tells_of_a_second_pass(said: Mapping[str, Any]) -> bool:
    return "Denoising strength" in said and any(
        key in said for key in ("Hires upscale", "Hires upscaler", "Hires resize-1")
    )


def _coerced(model: type[LenientModel], said: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """The values of these fields of the model, `keys` by field, as if a client had sent them."""
    try:
        values = model.model_validate({field: said[key] for field, key in keys.items()})
    except ValidationError as invalid:
        errors = [
            {**error, "loc": [keys.get(str(part), part) for part in error["loc"]]}
            for error in invalid.errors()
        ]
        raise InvalidRequest(validation_message(errors, "infotext")) from None
    return {field: getattr(values, field) for field in keys if field in model.model_fields}


def _options(
    request: GenerationRequest, said: Mapping[str, Any], settings: Settings, texts: Iterable[str]
) -> dict[str, Any]:
    """Those that the client left open, where they are not what they would be anyway."""
    overrides = request.override_settings or {}
    given = _with_newer_names(name for name, value in overrides.items() if value is not None)
    keys = {name: key for key, name in _OPTIONS.items() if key in said and name not in given}
    options = _coerced(OverrideSettings, said, keys)
    if "enable_prompt_comments" not in given and any("#" in text for text in texts):
        # Comments are removed before an infotext is written: this is none.
        options["enable_prompt_comments"] = False
    anyway = {name: field.default for name, field in OverrideSettings.model_fields.items()} | {
        "CLIP_stop_at_last_layers": settings.clip_skip,
        "emphasis": "Original",
        "enable_prompt_comments": settings.compat_version != "v1.7.0",
        "refiner_switch_by_sample_steps": settings.compat_version == "v1.7.0",
    }
    return {name: value for name, value in options.items() if value != anyway[name]}


def _warnings(said: Iterable[str]) -> tuple[str, ...]:
    unknown = [key for key in said if key not in _KNOWN]
    return (f"infotext: {listed(unknown)} not known, and left out",) if unknown else ()
