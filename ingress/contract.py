"""What of A1111's API is honoured, accepted without effect, or refused: each route, field and option.

The tests prove every line against the application, and that there is a line for everything. `docs/api.md` is
made of this by `python -m tools.api`. A new route, field or option is a new line.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from ingress.errors import ANSWERS
from ingress.routes import absent, lists, machines
from ingress.schemas.images import ExtraBatchRequest, ExtraSingleRequest
from ingress.schemas.sdapi import Img2ImgRequest, LenientModel, OverrideSettings, Txt2ImgRequest

State = Literal["honoured", "ignored", "refused"]
HONOURED: Final = "honoured"
"""It does what A1111 does."""
IGNORED: Final = "ignored"
"""It is accepted and changes nothing; where that may surprise, the header `X-Warnings` says so."""
REFUSED: Final = "refused"
"""It is answered with an error that names it."""

WHITE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAADUlEQVR42mP4z8SADAEPcQEOdvOI0AAAAABJRU5ErkJggg=="
BLACK = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAAC0lEQVR42mNgQAUAABAAAaoZ+IIAAAAASUVORK5CYII="
"""Pictures, 8 × 8."""


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path; `note` says what is answered, and `body` is one that is, with `status`."""

    method: str
    path: str
    state: State
    note: str
    body: Any = None
    status: int = 200


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request's body and a value, `sample`, that shows its state where it is sent with `given`.

    Without a `note` the request's own description of the field is one. `afterwards`: it shows in the caller's
    next request.
    """

    name: str
    state: State
    sample: Any
    note: str = ""
    given: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    afterwards: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What a route takes: a body that is taken, to which the fields are added, and what reads it."""

    model: type[LenientModel]
    base: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields that each of `routes` takes; or, with `within`, the object of that name in the body."""

    title: str
    routes: tuple[str, ...]
    fields: tuple[Field, ...]
    within: str = ""


def _refused(refusal: absent.Refusal) -> Route:
    status = ANSWERS[refusal.error].status
    return Route(refusal.method, refusal.path, REFUSED, f"{status}: {refusal.text}", status=status)


def _sentence(warning: str) -> str:
    return f"{warning[0].upper()}{warning[1:]}."


SDAPI: Final = (
    Route("POST", "/txt2img", HONOURED, "Pictures from a prompt.", {}),
    Route(
        "POST", "/img2img", HONOURED, "Pictures from a prompt and a picture, or a part of it.",
        {"init_images": [WHITE]},
    ),
    Route("POST", "/extra-single-image", HONOURED, "A picture enlarged.", {"image": WHITE}),
    Route("POST", "/extra-batch-images", HONOURED, "Pictures enlarged.", {"imageList": [{"data": WHITE}]}),
    Route("POST", "/png-info", HONOURED, "What a picture's file says of it.", {"image": WHITE}),
    Route(
        "POST", "/interrogate", HONOURED,
        "What is in a picture, in words, by BLIP where one is configured, else 501; no deepdanbooru.",
        {"image": WHITE},
    ),
    Route("GET", "/progress", HONOURED, "How far the caller's requests are."),
    Route("POST", "/interrupt", HONOURED, "End the caller's requests, with the pictures as they are."),
    Route("POST", "/skip", HONOURED, "End the pictures that are drawn now."),
    Route("GET", "/options", HONOURED, "All of the version's options, as they are for the caller."),
    Route(
        "POST", "/options", HONOURED,
        "Change them, for the caller alone. Those that are not known are named in `X-Warnings`.",
        {"CLIP_stop_at_last_layers": 1},
    ),
    Route("GET", "/cmd-flags", HONOURED, "Some flags as they would be; none of the service's own secrets."),
    Route("GET", "/samplers", HONOURED, "The configured version's; all versions' names are understood."),
    Route("GET", "/schedulers", HONOURED, "Noise schedules."),
    Route("GET", "/upscalers", HONOURED, "What enlarges pictures."),
    Route("GET", "/latent-upscale-modes", HONOURED, "What enlarges latents."),
    Route(
        "GET", "/sd-models", HONOURED,
        "Checkpoints, the default first, the others by name; `filename` is relative, `name` is `model_name`.",
    ),
    Route("GET", "/sd-vae", HONOURED, "VAEs."),
    Route("GET", "/realesrgan-models", HONOURED, "Real-ESRGAN's networks that are there."),
    Route("GET", "/prompt-styles", HONOURED, "Styles."),
    Route("GET", "/embeddings", HONOURED, "Textual-inversion embeddings."),
    Route("GET", "/loras", HONOURED, "LoRAs."),
    Route("GET", "/scripts", HONOURED, "Those that are there; request fields do what they do."),
    Route("GET", "/script-info", HONOURED, "The same; they take no args."),
    *(Route("GET", f"/{name}", HONOURED, f"`[]`. {note}") for name, note in lists.EMPTY.items()),
    Route(
        "GET", "/memory", HONOURED,
        "Bytes: the gateway's machine, and all replicas' GPUs together; `cuda` is an error where none is.",
    ),
    Route("POST", "/refresh-loras", HONOURED, "Every replica looks for new files."),
    Route("POST", "/refresh-embeddings", HONOURED, "Every replica looks for new files."),
    Route("POST", "/refresh-vae", HONOURED, "Every replica looks for new files."),
    Route("POST", "/refresh-checkpoints", IGNORED, _sentence(lists.CHECKPOINTS_STAY)),
    Route("POST", "/unload-checkpoint", IGNORED, _sentence(machines.WEIGHTS_STAY)),
    Route("POST", "/reload-checkpoint", IGNORED, _sentence(machines.WEIGHTS_STAY)),
    *map(_refused, absent.SDAPI),
)  # fmt: skip
"""Under `/sdapi/v1` and `/v1/sdapi/v1`."""

BESIDE: Final = (
    Route("POST", "/internal/progress", HONOURED, "How far one request is.", {"id_task": "task(1)"}),
    Route("GET", "/internal/ping", HONOURED, "`{}`"),
    Route("GET", "/internal/pending-tasks", HONOURED, "The caller's requests that wait."),
    *(Route("GET", path, HONOURED, f"`{json.dumps(answer)}`") for path, answer in absent.ANSWERS.items()),
    *map(_refused, absent.ROOT),
)
"""Under `/` and `/v1`: extensions' routes, and the web interface's."""

OWN: Final = (
    Route("GET", "/", HONOURED, "The service's name; no key is needed."),
    Route("HEAD", "/", HONOURED, "The same without its body."),
    Route("GET", "/health/live", HONOURED, "The process answers; no key is needed."),
    Route("GET", "/health/ready", HONOURED, "Some checkpoint takes jobs, or 503; no key is needed."),
    Route("GET", "/metrics", HONOURED, "Prometheus' text format."),
    Route("GET", "/docs", HONOURED, "The API, browsable, by Swagger UI."),
    Route("GET", "/redoc", HONOURED, "The same, by ReDoc."),
    Route("GET", "/openapi.json", HONOURED, "The API's schema."),
    Route(
        "POST", "/v1/jobs", HONOURED, "A body of `txt2img` or `img2img`, drawn later, and surely.", {}, 202
    ),
    Route("GET", "/v1/jobs", HONOURED, "The caller's jobs, the newest first, by pages."),
    Route("GET", "/v1/jobs/{id}", HONOURED, "What has become of one."),
    Route("DELETE", "/v1/jobs/{id}", HONOURED, "Abort one, or delete its pictures.", status=204),
    Route("GET", "/v1/jobs/{id}/results/{number:int}", HONOURED, "One of its pictures."),
    Route("GET", "/v1/jobs/{id}/events", HONOURED, "Follow one by server-sent events."),
)
"""This service's."""

ROUTES: Final[Mapping[tuple[str, ...], tuple[Route, ...]]] = MappingProxyType(
    {("/sdapi/v1", "/v1/sdapi/v1"): SDAPI, ("", "/v1"): BESIDE, ("",): OWN}
)
"""By where they are."""

_PROMPTS: Final = {"prompt": "a lighthouse", "seed": 7, "subseed": 9}
_PICTURE: Final = {"init_images": [WHITE]}
_MASK: Final = {"mask": WHITE}
_HIRES: Final = {"enable_hr": True}
_FIRST: Final = {"firstphase_width": 128, "firstphase_height": 128}
_REFINER: Final = {"refiner_checkpoint": "majicmixRealistic_v7"}
_UNIT: Final = {"enabled": True, "module": "canny", "model": "control_v11p_sd15_canny"}

_SAVED: Final = {"save_images": True, "batch_size": 2}
_BOX: Final = {"resize_mode": 1}

COMMON: Final = (
    Field("prompt", HONOURED, "a boat", "Emphasis, BREAK, AND, schedules, `<lora:…>`, embeddings."),
    Field("negative_prompt", HONOURED, "fog"),
    Field("styles", HONOURED, ["ink"]),
    Field("seed", HONOURED, 8),
    Field("subseed", HONOURED, 10, given={"subseed_strength": 0.5}),
    Field("subseed_strength", HONOURED, 0.5),
    Field("seed_resize_from_h", HONOURED, 256, given={"seed_resize_from_w": 256}),
    Field("seed_resize_from_w", HONOURED, 256, given={"seed_resize_from_h": 256}),
    Field("sampler_name", HONOURED, "Heun"),
    Field("scheduler", HONOURED, "karras"),
    Field("batch_size", HONOURED, 2),
    Field("n_iter", HONOURED, 2),
    Field("steps", HONOURED, 9),
    Field("cfg_scale", HONOURED, 5.0),
    Field("width", HONOURED, 320),
    Field("height", HONOURED, 320),
    Field("restore_faces", REFUSED, True, "There is no face restoration; false is accepted."),
    Field("tiling", HONOURED, True),
    Field("do_not_save_samples", IGNORED, True, "`save_images` alone decides."),
    Field("do_not_save_grid", IGNORED, True, "`save_images` alone decides."),
    Field("eta", HONOURED, 0.5, given={"sampler_name": "Euler a"}),
    Field("s_min_uncond", REFUSED, 1.0, "Every evaluation is guided; 0 is accepted."),
    Field("s_churn", HONOURED, 0.5),
    Field("s_tmax", HONOURED, 10.0, "0 is no bound."),
    Field("s_tmin", HONOURED, 0.1),
    Field("s_noise", HONOURED, 1.1),
    Field("override_settings", HONOURED, {"CLIP_stop_at_last_layers": 2}, "See the options below."),
    Field(
        "override_settings_restore_afterwards", HONOURED, False,
        "false: the caller's options are as the overrides from then on, for the caller alone.",
        given={"override_settings": {"CLIP_stop_at_last_layers": 2}}, afterwards=True,
    ),
    Field("refiner_checkpoint", HONOURED, "majicmixRealistic_v7"),
    Field("refiner_switch_at", HONOURED, 0.8, given=_REFINER),
    Field("disable_extra_networks", HONOURED, True, "`<lora:…>` is then left out."),
    Field("firstpass_image", IGNORED, "x", "A1111's own, not for clients."),
    Field("comments", IGNORED, {"a": "b"}, "A1111 overwrites it."),
    Field("force_task_id", HONOURED, "task(1)", "The request's name, in the header `X-Task-Id`."),
    Field("sampler_index", HONOURED, "Heun"),
    Field("script_name", REFUSED, "x/y/z plot", "No selectable script is here; what does the same is named."),
    Field("script_args", IGNORED, [1], "Only a script would read them."),
    Field("send_images", HONOURED, False),
    Field(
        "save_images", HONOURED, True,
        "Where the service has a `save_dir`, else it is refused. Of several pictures a grid comes first.",
        given={"batch_size": 2},
    ),
    Field(
        "alwayson_scripts", REFUSED, {"ControlNet": {"args": [_UNIT]}},
        "Scripts that are not here, unless their args leave them off: ControlNet, ADetailer, ReActor, roop, "
        "AnimateDiff, self attention guidance, soft inpainting. Names that nobody knows.",
    ),
    Field(
        "alwayson_scripts", IGNORED, {"ADetailer": {"args": [False, {"ad_model": "face_yolov8n.pt"}]}},
        "Args that leave a script off.",
    ),
    Field(
        "alwayson_scripts", IGNORED, {"refiner": {"args": [True, "x", 0.8]}},
        "refiner, sampler, seed, comments, extra options, hypertile: the request's fields count, not args.",
    ),
    Field(
        "infotext", HONOURED, "a boat\nSteps: 9, Sampler: Heun, CFG scale: 5, Seed: 8",
        "What is left open is as this says; never the checkpoint, and in img2img no prompt.",
    ),
    Field("model", HONOURED, "majicmixRealistic_v7"),
)  # fmt: skip

TXT2IMG: Final = (
    Field(
        "denoising_strength", HONOURED, 0.4, "Of the second pass; 0.75 where it is left open.", given=_HIRES
    ),
    Field("enable_hr", HONOURED, True, "A second pass, larger."),
    Field("firstphase_width", HONOURED, 256, given=_HIRES | _FIRST),
    Field("firstphase_height", HONOURED, 256, given=_HIRES | _FIRST),
    Field("hr_scale", HONOURED, 1.5, given=_HIRES),
    Field("hr_upscaler", HONOURED, "Lanczos", given=_HIRES),
    Field("hr_second_pass_steps", HONOURED, 9, given=_HIRES),
    Field("hr_resize_x", HONOURED, 768, given=_HIRES),
    Field("hr_resize_y", HONOURED, 768, given=_HIRES),
    Field("hr_checkpoint_name", HONOURED, "majicmixRealistic_v7", given=_HIRES),
    Field("hr_sampler_name", HONOURED, "Heun", given=_HIRES),
    Field("hr_scheduler", HONOURED, "karras", given=_HIRES),
    Field("hr_prompt", HONOURED, "a boat", given=_HIRES),
    Field("hr_negative_prompt", HONOURED, "fog", given=_HIRES),
)

IMG2IMG: Final = (
    Field("init_images", HONOURED, [BLACK]),
    Field("denoising_strength", HONOURED, 0.4),
    Field("resize_mode", HONOURED, 1),
    Field("image_cfg_scale", IGNORED, 1.5, "For instruct-pix2pix checkpoints, which cannot be loaded here."),
    Field("mask", HONOURED, BLACK),
    Field("mask_blur_x", HONOURED, 8, given=_MASK),
    Field("mask_blur_y", HONOURED, 8, given=_MASK),
    Field("mask_blur", HONOURED, 8, given=_MASK),
    Field("mask_round", HONOURED, False, "false: the mask is soft in the latent too.", given=_MASK),
    Field("inpainting_fill", HONOURED, 1, given=_MASK),
    Field("inpaint_full_res", HONOURED, False, given=_MASK),
    Field("inpaint_full_res_padding", HONOURED, 8, "Pixels around the masked part.", given=_MASK),
    Field("inpainting_mask_invert", HONOURED, 1, "1: what is black is made anew.", given=_MASK),
    Field("initial_noise_multiplier", HONOURED, 1.1),
    Field("latent_mask", IGNORED, "x", "A1111's own, not for clients."),
    Field("include_init_images", HONOURED, True),
)

OPTIONS: Final = (
    Field("sd_model_checkpoint", HONOURED, "majicmixRealistic_v7", "By name, title, file name or hash."),
    Field("CLIP_stop_at_last_layers", HONOURED, 2),
    Field("eta_noise_seed_delta", HONOURED, 31337),
    Field("sd_vae", HONOURED, "kl.safetensors"),
    Field("samples_format", HONOURED, "jpg", "Of the answer too: png, jpg, jpeg or webp."),
    Field("jpeg_quality", HONOURED, 90, given={"override_settings": {"samples_format": "jpg"}}),
    Field("webp_lossless", HONOURED, True, given={"override_settings": {"samples_format": "webp"}}),
    Field("enable_pnginfo", HONOURED, False),
    Field("samples_save", HONOURED, False, "Whether `save_images` saves them.", given=_SAVED),
    Field("grid_save", HONOURED, False, "Whether `save_images` saves a grid too.", given=_SAVED),
    Field("return_grid", HONOURED, False, given=_SAVED),
    Field("tiling", HONOURED, True),
    Field("randn_source", HONOURED, "NV"),
    Field("always_discard_next_to_last_sigma", HONOURED, True),
    Field("eta_ancestral", HONOURED, 0.5, given={"sampler_name": "Euler a"}),
    Field("eta_ddim", HONOURED, 0.5, given={"sampler_name": "DDIM"}),
    Field("emphasis", HONOURED, "No norm"),
    Field("enable_emphasis", HONOURED, False),
    Field("enable_prompt_comments", HONOURED, False, given={"prompt": "a boat # at night"}),
    Field("use_old_scheduling", HONOURED, True),
    Field("hires_fix_refiner_pass", HONOURED, "first pass", given=_HIRES | _REFINER),
    Field("refiner_switch_by_sample_steps", HONOURED, True, given=_REFINER),
    *(
        Field(name, REFUSED, sample, "Has but its default value here.")
        for name, sample in {
            "sigma_min": 0.1,
            "sigma_max": 10.0,
            "rho": 5.0,
            "sgm_noise_multiplier": True,
            "k_sched_type": "karras",
            "beta_dist_alpha": 0.5,
            "beta_dist_beta": 0.5,
            "uni_pc_variant": "bh2",
            "uni_pc_skip_type": "logSNR",
            "uni_pc_order": 2,
            "uni_pc_lower_order_final": False,
            "sd_noise_schedule": "Zero Terminal SNR",
            "skip_early_cond": 0.1,
            "s_min_uncond": 1.0,
            "comma_padding_backtrack": 10,
            "extra_networks_default_multiplier": 0.5,
            "token_merging_ratio": 0.5,
            "token_merging_ratio_img2img": 0.5,
            "token_merging_ratio_hr": 0.5,
            "pad_cond_uncond": True,
            "pad_cond_uncond_v0": True,
            "use_old_emphasis_implementation": True,
            "use_old_karras_scheduler_sigmas": True,
            "use_old_hires_fix_width_height": True,
            "sdxl_crop_top": 64,
            "sdxl_crop_left": 64,
            "sdxl_refiner_low_aesthetic_score": 5.0,
            "sdxl_refiner_high_aesthetic_score": 7.0,
            "sdxl_clip_l_skip": True,
            "inpainting_mask_weight": 0.5,
            "initial_noise_multiplier": 1.1,
            "img2img_extra_noise": 0.1,
            "img2img_color_correction": True,
            "img2img_background_color": "#000000",
            "upscaler_for_img2img": "R-ESRGAN 4x+",
            "overlay_inpaint": False,
            "face_restoration": True,
            "sd_hypernetwork": "anime",
            "sd_lora": "ink",
            "s_churn": 0.5,
            "s_tmin": 0.1,
            "s_tmax": 10.0,
            "s_noise": 1.1,
            "s_min_uncond_all": True,
            "ddim_discretize": "quad",
            "enable_quantization": True,
            "no_dpmpp_sde_batch_determinism": True,
            "dont_fix_second_order_samplers_schedule": True,
            "hires_fix_use_firstpass_conds": True,
            "use_downcasted_alpha_bar": True,
            "sd_vae_encode_method": "TAESD",
            "sd_vae_decode_method": "TAESD",
        }.items()
    ),
    Field("filter_nsfw", IGNORED, True, "So is every option that is not known; `X-Warnings` names it."),
    Field("show_progress_every_n_steps", IGNORED, 3, "So is every other option of A1111's."),
)

IMG2IMG_OPTIONS: Final = (
    Field("img2img_fix_steps", HONOURED, True, "All of `steps` are made, whatever the denoising strength."),
)

EXTRAS: Final = (
    Field("resize_mode", HONOURED, 1),
    Field("show_extras_results", HONOURED, False),
    Field("gfpgan_visibility", REFUSED, 0.5, "There is no face restoration; 0 is accepted."),
    Field("codeformer_visibility", REFUSED, 0.5, "There is no face restoration; 0 is accepted."),
    Field("codeformer_weight", IGNORED, 0.5, "There is no face restoration."),
    Field("upscaling_resize", HONOURED, 4, "0.1 to 8; sides are multiples of 8."),
    Field("upscaling_resize_w", HONOURED, 96, given=_BOX),
    Field("upscaling_resize_h", HONOURED, 96, given=_BOX),
    Field("upscaling_crop", HONOURED, False, given=_BOX),
    Field("upscaler_1", HONOURED, "Nearest"),
    Field("upscaler_2", HONOURED, "Nearest", given={"extras_upscaler_2_visibility": 0.5}),
    Field("extras_upscaler_2_visibility", HONOURED, 0.5, given={"upscaler_2": "Nearest"}),
    Field("upscale_first", IGNORED, True, "A1111 does nothing with it any more."),
    Field("override_settings", HONOURED, {"samples_format": "webp"}),
)

EXTRA_SINGLE: Final = (Field("image", HONOURED, BLACK),)

EXTRA_BATCH: Final = (
    Field("imageList", HONOURED, [{"data": BLACK, "name": "a"}], "`name` is not read."),
    Field("image_list", HONOURED, [{"image": BLACK, "name": "a"}]),
)

REQUESTS: Final[Mapping[str, Request]] = MappingProxyType(
    {
        "/txt2img": Request(Txt2ImgRequest, _PROMPTS),
        "/img2img": Request(Img2ImgRequest, _PROMPTS | _PICTURE),
        "/extra-single-image": Request(ExtraSingleRequest, {"image": WHITE, "upscaler_1": "Lanczos"}),
        "/extra-batch-images": Request(
            ExtraBatchRequest, {"image_list": [{"image": WHITE}], "upscaler_1": "Lanczos"}
        ),
    }
)
"""By route, under `/sdapi/v1`."""

WITHIN: Final[Mapping[str, type[LenientModel]]] = MappingProxyType({"override_settings": OverrideSettings})
"""What reads these fields' objects."""

FIELDS: Final = (
    Fields("txt2img and img2img", ("/txt2img", "/img2img"), COMMON),
    Fields("txt2img alone", ("/txt2img",), TXT2IMG),
    Fields("img2img alone", ("/img2img",), IMG2IMG),
    Fields("Options, in `override_settings`", ("/txt2img",), OPTIONS, "override_settings"),
    Fields("Options of img2img alone", ("/img2img",), IMG2IMG_OPTIONS, "override_settings"),
    Fields(
        "extra-single-image and extra-batch-images", ("/extra-single-image", "/extra-batch-images"), EXTRAS
    ),
    Fields("extra-single-image alone", ("/extra-single-image",), EXTRA_SINGLE),
    Fields("extra-batch-images alone", ("/extra-batch-images",), EXTRA_BATCH),
)
