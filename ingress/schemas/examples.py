"""Requests to begin with, in `/docs`."""

from typing import Final

from fastapi.openapi.models import Example

TXT2IMG_EXAMPLES: Final[dict[str, Example]] = {
    "documented": {
        "summary": "The documented request",
        "value": {
            "model": "majicmixRealistic_v7",
            "sampler_name": "DPM++ 2M SDE Karras",
            "prompt": (
                "((dark theme)), (best quality:1.2), High quality texture, intricate details, "
                "detailed texture, High quality shadow, perspective, ((ultra-detailed)), "
                "distinct_image, (lustrous skin) ((black skirt)), high heel shoes, black "
                "pantyhose, street, brown eye pupil, 20s, blush, glossy lips, perfect body, "
                "lean body, (narrow waist:1.3), large breast, solo focus, ((brown hair)), "
                "(streaked hair), ((long hair)), (big eyes:1.2) (masterpiece), (highly "
                "detailed CG illustration), perspective,\u00a0depth of field"
            ),
            "negative_prompt": (
                "(((stocking, hat, glove, choker, collar, nail polish, necklace))), "
                ",paintings, sketches, (worst quality:2), (low quality:2), (normal quality:2), "
                "lowres, normal quality, ((monochrome)), ((grayscale)), skin spots, acnes, "
                "skin blemishes, age spot,extra fingers,fewer fingers"
            ),
            "steps": 40,
            "cfg_scale": 7,
            "width": 720,
            "height": 960,
        },
    },
    "shortest": {
        "summary": "The default checkpoint, four pictures",
        "value": {"prompt": "a red lighthouse at dusk", "steps": 20, "batch_size": 4},
    },
}

PICTURE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQAQMAAAAlPW0iAAAAaHRFWHRwYXJhbWV0ZXJzAGEgcmVkIHNxdWFyZQpTdGVwczog"
    "MjAsIFNhbXBsZXI6IEV1bGVyLCBDRkcgc2NhbGU6IDcuMCwgU2VlZDogMSwgU2l6ZTogMTZ4MTYsIFZlcnNpb246IHYxLjcu"
    "MCmZqW4AAAADUExURcgeHhaI+J4AAAAMSURBVHjaY2AgDQAAADAAASh0SX0AAAAASUVORK5CYII="
)
"""A PNG file of 16 × 16 red pixels, with an infotext."""

MEADOW = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAABlBMVEWHzusieDLlcT3cAAAAFklEQVR42mNgGAX0AIz/"
    "oQwmhmHFAADsqQEvBT4IWQAAAABJRU5ErkJggg=="
)
IN_THE_SKY = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQAAAACCEkxzAAAAG0lEQVR42mNgoBrg////BwMDE4w7ysDKGGYAAD5eA0bL"
    "kKKRAAAAAElFTkSuQmCC"
)

IMG2IMG_EXAMPLES: Final[dict[str, Example]] = {
    "changed": {
        "summary": "A picture, drawn anew",
        "value": {
            "init_images": [MEADOW],
            "prompt": "a meadow under a blue sky, oil on canvas",
            "denoising_strength": 0.6,
            "steps": 20,
        },
    },
    "inpainted": {
        "summary": "A part of it alone",
        "value": {
            "init_images": [MEADOW],
            "mask": IN_THE_SKY,
            "inpainting_fill": 1,
            "mask_blur": 2,
            "prompt": "a hot-air balloon",
            "steps": 20,
        },
    },
}

PNG_INFO_EXAMPLES: Final[dict[str, Example]] = {
    "drawn": {"summary": "A picture with an infotext", "value": {"image": PICTURE}}
}

EXTRA_SINGLE_EXAMPLES: Final[dict[str, Example]] = {
    "doubled": {
        "summary": "Twice as large, without a network",
        "value": {"image": PICTURE, "upscaler_1": "Lanczos", "upscaling_resize": 2},
    },
    "fitted": {
        "summary": "To a size, cut where the shape is another, as JPEG",
        "value": {
            "image": PICTURE,
            "upscaler_1": "Nearest",
            "resize_mode": 1,
            "upscaling_resize_w": 96,
            "upscaling_resize_h": 64,
            "override_settings": {"samples_format": "jpeg", "jpeg_quality": 90},
        },
    },
}

EXTRA_BATCH_EXAMPLES: Final[dict[str, Example]] = {
    "doubled": {
        "summary": "Two pictures",
        "value": {
            "imageList": [{"data": PICTURE, "name": "first"}, {"data": PICTURE, "name": "second"}],
            "upscaler_1": "Lanczos",
        },
    }
}

INTERROGATE_EXAMPLES: Final[dict[str, Example]] = {
    "described": {"summary": "What is in a picture", "value": {"image": PICTURE, "model": "clip"}}
}

WHICH_ORDER_EXAMPLES: Final[dict[str, Example]] = {
    "one": {"summary": "One order, by its `force_task_id` or `X-Task-Id`", "value": {"id": "my-order"}},
    "all": {"summary": "All of the caller's", "value": {}},
}

INTERNAL_PROGRESS_EXAMPLES: Final[dict[str, Example]] = {
    "one": {"summary": "One order, by its id", "value": {"id_task": "my-order", "live_preview": True}}
}

OPTIONS_EXAMPLES: Final[dict[str, Example]] = {
    "checkpoint": {
        "summary": "Another checkpoint for all further requests, and its clip skip",
        "value": {"sd_model_checkpoint": "majicmixRealistic_v7", "CLIP_stop_at_last_layers": 2},
    }
}

JOB_EXAMPLES: Final[dict[str, Example]] = {
    "drawn": {"summary": "From a prompt", "value": TXT2IMG_EXAMPLES["shortest"]["value"]},
    "changed": {"summary": "From a picture", "value": IMG2IMG_EXAMPLES["changed"]["value"]},
}
