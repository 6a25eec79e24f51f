"""The bodies of `/sdapi/v1/*`. Requests are coerced as AUTOMATIC1111 does, and a little more leniently."""

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ingress.settings import CompatVersion

MAX_NESTING = 32
"""Of objects and lists inside one field."""
MAX_VALUES = 10_000
"""On one level of nesting inside one field: looking at each of them costs everybody's time."""

NEWER_FIELDS = frozenset(
    {"scheduler", "firstpass_image", "hr_scheduler", "force_task_id", "mask_round", "infotext"}
)
"""Fields that v1.7.0 does not know, and so does not echo."""


def _integer(value: object) -> int:
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, float) and math.isfinite(value):
        value = int(value)
    if not isinstance(value, int):
        raise ValueError("must be an integer")
    if not -(2**63) <= value < 2**63:
        raise ValueError("must be an integer of 64 bits")
    return int(value)


def _parsed(text: str) -> int | float | None:
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return None


def _number(value: object) -> object:
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("is out of range")
    return value


def _text(value: object) -> object:
    return str(value) if isinstance(value, int | float) else value


def _lower(value: object) -> object:
    return value.casefold() if isinstance(value, str) else value


def _object(value: object) -> object:
    return {} if value == [] else value


Integer = Annotated[int, BeforeValidator(_integer)]
"""20, 20.7, "20", "20.7" and true are integers."""
Number = Annotated[float, BeforeValidator(_number)]
"""7, 7.0, "7" and true are numbers; NaN and infinities are not."""
Text = Annotated[str, BeforeValidator(_text)]
"""5 is a text."""
Object = Annotated[dict[str, Any], BeforeValidator(_object)]
"""An empty list is an empty object: PHP cannot tell them apart."""


class LenientModel(BaseModel):
    """A JSON object as A1111 reads it: unknown keys are ignored, null means not given.

    What JSON or UTF-8 cannot carry back (non-finite numbers, lone surrogates) is refused here, by name, at
    any depth: a request may be echoed.
    """

    model_config = ConfigDict(
        frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _what_was_given(cls, body: object) -> object:
        if not isinstance(body, dict):
            raise ValueError("the body must be a JSON object, sent as application/json")
        given = {name: body[name] for name in cls.model_fields if body.get(name) is not None}
        for name, value in given.items():
            _refuse_what_json_cannot_carry(name, value)
        return given


def _refuse_what_json_cannot_carry(name: str, value: object) -> None:
    values = [value]
    for _ in range(MAX_NESTING + 1):
        for one in values:
            _check_scalar(name, one)
        containers = [one for one in values if isinstance(one, dict | list)]
        if sum(map(len, containers)) > MAX_VALUES:
            raise ValueError(f"{name}: more than {MAX_VALUES} values")
        values = [child for one in containers for child in _children(one)]
        if not values:
            return
    raise ValueError(f"{name}: nested deeper than {MAX_NESTING} levels")


def _check_scalar(name: str, value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: {value} is not allowed, only finite numbers are")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}: the text is not valid Unicode") from None


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, dict) else value


class CommonFields(LenientModel):
    """What txt2img and img2img share: the union of all versions' fields, in the order of A1111's echo."""

    prompt: Text = ""
    negative_prompt: Text = ""
    styles: list[Text] | None = None
    """Names of `GET /sdapi/v1/prompt-styles`, applied in order to the prompt and the negative prompt."""
    seed: Integer = -1
    """Of the first image; each further one counts up. -1: random."""
    subseed: Integer = -1
    subseed_strength: Number = 0
    seed_resize_from_h: Integer = -1
    seed_resize_from_w: Integer = -1
    sampler_name: Text | None = None
    """One of `GET /sdapi/v1/samplers`, in any version's spelling."""
    scheduler: Text | None = None
    """One of `GET /sdapi/v1/schedulers`. A schedule within `sampler_name` wins."""
    batch_size: Integer = 1
    n_iter: Integer = 1
    """The request makes `batch_size` × `n_iter` images."""
    steps: Integer = 50
    cfg_scale: Number = 7.0
    width: Integer = 512
    """Pixels; the picture has the next smaller multiple of 8."""
    height: Integer = 512
    """Pixels; the picture has the next smaller multiple of 8."""
    restore_faces: bool | None = None
    tiling: bool | None = None
    """Whether the picture's edges fit one another."""
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    eta: Number | None = None
    denoising_strength: Number | None = None
    s_min_uncond: Number | None = None
    s_churn: Number | None = None
    s_tmax: Number | None = None
    s_tmin: Number | None = None
    s_noise: Number | None = None
    override_settings: Object | None = None
    """`sd_model_checkpoint`, `CLIP_stop_at_last_layers`, `eta_noise_seed_delta`, `emphasis`,
    `enable_prompt_comments`, `use_old_scheduling`, `sd_vae`, `tiling`, `hires_fix_refiner_pass`,
    `refiner_switch_by_sample_steps`, `samples_format`, `jpeg_quality`, `webp_lossless`, `enable_pnginfo`,
    `return_grid`, for this request alone."""
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: Text | None = None
    """The checkpoint that takes over on the way. The replicas must be configured for it."""
    refiner_switch_at: Number | None = None
    """0 to 1: the share of the way before it does."""
    disable_extra_networks: bool = False
    firstpass_image: Text | None = None
    comments: Object | None = None

    def echo(self, version: CompatVersion) -> dict[str, Any]:
        """The answer's `parameters`: the request after coercion, with the fields of that version."""
        hidden = {"model"} | (NEWER_FIELDS if version == "v1.7.0" else set())
        return {name: getattr(self, name) for name in type(self).model_fields if name not in hidden}


class Txt2ImgRequest(CommonFields):
    enable_hr: bool = False
    firstphase_width: Integer = 0
    firstphase_height: Integer = 0
    hr_scale: Number = 2.0
    hr_upscaler: Text | None = None
    hr_second_pass_steps: Integer = 0
    hr_resize_x: Integer = 0
    hr_resize_y: Integer = 0
    hr_checkpoint_name: Text | None = None
    hr_sampler_name: Text | None = None
    hr_scheduler: Text | None = None
    hr_prompt: Text = ""
    hr_negative_prompt: Text = ""
    force_task_id: Text | None = None
    sampler_index: Text = "Euler"
    """The older name of `sampler_name`, used when that is empty."""
    script_name: Text | None = None
    script_args: list[Any] = []
    send_images: bool = True
    save_images: bool = False
    alwayson_scripts: Object = {}
    infotext: Text | None = None
    """A picture's: what is not given in this request is taken from it, but for the checkpoint."""

    model: Text | None = None
    """The checkpoint by name, title, file name or hash. Empty: the default one. Not echoed."""


class Img2ImgRequest(CommonFields):
    denoising_strength: Number = 0.75
    """How much of the given picture is made anew: 0 almost nothing, 1 all of it."""
    init_images: list[Text] | None = None
    """Pictures in base64, with or without `data:image/…;base64,`. One for all images, or one for each."""
    resize_mode: Integer = 0
    """0 stretches the picture, 1 crops it, 2 fills its borders, 3 stretches its latent."""
    image_cfg_scale: Number | None = None
    mask: Text | None = None
    """A picture in base64: white, or opaque where it has an alpha channel, is made anew."""
    mask_blur_x: Integer = 4
    mask_blur_y: Integer = 4
    mask_blur: Integer | None = None
    """Instead of both of the former. Pixels."""
    mask_round: bool = True
    inpainting_fill: Integer = 0
    """What the masked part starts from: 0 its surroundings, 1 the picture, 2 noise, 3 nothing."""
    inpaint_full_res: bool = True
    """Draw the masked part alone, at `width` × `height`; the answer has the picture's own size."""
    inpaint_full_res_padding: Integer = 0
    inpainting_mask_invert: Integer = 0
    initial_noise_multiplier: Number | None = None
    latent_mask: Text | None = None
    force_task_id: Text | None = None
    sampler_index: Text = "Euler"
    """The older name of `sampler_name`, used when that is empty."""
    include_init_images: bool = False
    """Whether `parameters` repeats the pictures."""
    script_name: Text | None = None
    script_args: list[Any] = []
    send_images: bool = True
    save_images: bool = False
    alwayson_scripts: Object = {}
    infotext: Text | None = None
    """A picture's: of what is not given in this request, the steps, sampler, schedule, seeds, refiner and
    options are taken from it."""

    model: Text | None = None
    """The checkpoint by name, title, file name or hash. Empty: the default one. Not echoed."""

    def echo(self, version: CompatVersion) -> dict[str, Any]:
        """52 keys for v1.7.0, 57 for v1.10.1; the pictures only if they are asked for."""
        parameters = super().echo(version)
        return parameters if self.include_init_images else parameters | {"init_images": None, "mask": None}


GenerationRequest = Txt2ImgRequest | Img2ImgRequest


class FixedOptions(LenientModel):
    """Options that would change the picture and have but one value here, the original's default."""

    sigma_min: Number = 0
    sigma_max: Number = 0
    rho: Number = 0
    sgm_noise_multiplier: bool = False
    k_sched_type: Text = "Automatic"
    beta_dist_alpha: Number = 0.6
    beta_dist_beta: Number = 0.6
    uni_pc_variant: Text = "bh1"
    uni_pc_skip_type: Text = "time_uniform"
    uni_pc_order: Integer = 3
    uni_pc_lower_order_final: bool = True
    sd_noise_schedule: Text = "Default"
    skip_early_cond: Number = 0
    s_min_uncond: Number = 0
    comma_padding_backtrack: Number = 20
    extra_networks_default_multiplier: Number = 1
    token_merging_ratio: Number = 0
    token_merging_ratio_img2img: Number = 0
    token_merging_ratio_hr: Number = 0
    pad_cond_uncond: bool = False
    pad_cond_uncond_v0: bool = False
    use_old_emphasis_implementation: bool = False
    use_old_karras_scheduler_sigmas: bool = False
    use_old_hires_fix_width_height: bool = False
    sdxl_crop_top: Number = 0
    sdxl_crop_left: Number = 0
    sdxl_refiner_low_aesthetic_score: Number = 2.5
    sdxl_refiner_high_aesthetic_score: Number = 6
    sdxl_clip_l_skip: bool = False
    inpainting_mask_weight: Number = 1
    initial_noise_multiplier: Number = 1
    img2img_extra_noise: Number = 0
    img2img_color_correction: bool = False
    img2img_background_color: Text = "#ffffff"
    upscaler_for_img2img: Text | None = None
    overlay_inpaint: bool = True
    face_restoration: bool = False
    sd_hypernetwork: Text = "None"
    sd_lora: Text = "None"
    s_churn: Number = 0
    s_tmin: Number = 0
    s_tmax: Number = 0
    s_noise: Number = 1
    s_min_uncond_all: bool = False
    ddim_discretize: Text = "uniform"
    enable_quantization: bool = False
    no_dpmpp_sde_batch_determinism: bool = False
    dont_fix_second_order_samplers_schedule: bool = False
    hires_fix_use_firstpass_conds: bool = False
    use_downcasted_alpha_bar: bool = False
    sd_vae_encode_method: Text = "Full"
    sd_vae_decode_method: Text = "Full"


class OverrideSettings(FixedOptions):
    """The options that make another picture. Others have no effect."""

    sd_model_checkpoint: Text | None = None
    CLIP_stop_at_last_layers: Annotated[Integer, Field(ge=1, le=12)] | None = None
    eta_noise_seed_delta: Annotated[Integer, Field(ge=-(2**32), le=2**32)] = 0
    sd_vae: Annotated[Text, Field(max_length=255)] | None = None
    """One of `GET /sdapi/v1/sd-vae`, None or Automatic. An unknown name is a warning."""
    samples_format: Annotated[Literal["png", "jpg", "jpeg", "webp"], BeforeValidator(_lower)] | None = None
    jpeg_quality: Annotated[Integer, Field(ge=1, le=100)] = 80
    """Of WebP files too."""
    webp_lossless: bool = False
    enable_pnginfo: bool = True
    """Whether files carry their infotext."""
    samples_save: bool = True
    grid_save: bool = True
    return_grid: bool = True
    """Whether saved pictures, if there are several, come with a grid of all of them in front."""
    tiling: bool = False
    randn_source: Literal["GPU", "CPU", "NV"] | None = None
    """Whose noise: NV and GPU are an NVIDIA GPU's, on whatever device. Not given: CPU."""
    always_discard_next_to_last_sigma: bool = False
    eta_ancestral: Annotated[Number, Field(ge=0, le=1)] = 1.0
    eta_ddim: Annotated[Number, Field(ge=0, le=1)] = 0.0
    img2img_fix_steps: bool = False
    emphasis: Literal["Original", "No norm", "Ignore", "None"] | None = None
    enable_emphasis: bool = True
    """v1.7.0's way to say `emphasis` Original or None."""
    enable_prompt_comments: bool | None = None
    use_old_scheduling: bool = False
    hires_fix_refiner_pass: Literal["first pass", "second pass", "both passes"] = "second pass"
    refiner_switch_by_sample_steps: bool = False


class GenerationResponse(BaseModel):
    images: list[str]
    """Files in base64, PNG unless `samples_format` says otherwise, each with its infotext: in the text chunk
    `parameters`, or in EXIF's UserComment. A grid of all of them comes first where they are saved."""
    parameters: dict[str, Any]
    info: str
    """A JSON object, as a string."""
