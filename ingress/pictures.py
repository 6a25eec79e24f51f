"""Pictures that clients send, to what img2img jobs start from. Files are checked by their headers alone."""

import base64
import io
import re

from PIL import Image, UnidentifiedImageError

from engine.protocol import PICTURE_FORMATS, InitImage, Mask
from ingress.errors import InvalidRequest
from ingress.schemas.sdapi import Img2ImgRequest
from ingress.settings import Limits

RESIZE_MODES = ("stretch", "crop", "fill", "latent")
MASKED_CONTENTS = ("fill", "original", "latent noise", "latent nothing")
"""What the wire counts from 0."""

_DATA_URI = re.compile(r"data:image/[^,]*,")
_URL = re.compile(r"https?://", re.IGNORECASE)


def init_images(request: Img2ImgRequest, limits: Limits, *, exact_steps: bool) -> tuple[InitImage, ...]:
    """One for all of the request's images, or one for each of a batch. Raises `InvalidRequest`."""
    sent = request.init_images or []
    if not 1 <= len(sent) <= max(1, request.batch_size):
        raise InvalidRequest(
            f"init_images: {len(sent)} pictures are not allowed. Allowed: 1, or one for each of the "
            f"batch_size ({request.batch_size})."
        )
    noise = request.initial_noise_multiplier
    return tuple(
        InitImage(
            image=picture(text, f"init_images[{i}]", limits),
            denoising_strength=request.denoising_strength,
            exact_steps=exact_steps,
            resize_mode=RESIZE_MODES[request.resize_mode],
            noise_multiplier=1.0 if noise is None else noise,
            mask=_mask(request, limits),
        )
        for i, text in enumerate(sent)
    )


def _mask(request: Img2ImgRequest, limits: Limits) -> Mask | None:
    if not request.mask:
        return None
    blur_x, blur_y = mask_blur(request)
    return Mask(
        image=picture(request.mask, "mask", limits),
        blur_x=blur_x,
        blur_y=blur_y,
        invert=request.inpainting_mask_invert != 0,
        content=MASKED_CONTENTS[request.inpainting_fill],
        only_masked=request.inpaint_full_res,
        padding=request.inpaint_full_res_padding,
        soft=not request.mask_round,
    )


def mask_blur(request: Img2ImgRequest) -> tuple[int, int]:
    """Across and down, pixels."""
    if request.mask_blur is not None:
        return request.mask_blur, request.mask_blur
    return request.mask_blur_x, request.mask_blur_y


def picture(text: str, field: str, limits: Limits) -> bytes:
    """The file behind base64 or a data URI; it is not decoded here.

    Raises `InvalidRequest` for what is no picture, and for one of more than `limits.max_image_pixels`.
    """
    if _URL.match(text):
        raise InvalidRequest(f"{field}: pictures are not fetched from addresses. Send them in base64.")
    uri = _DATA_URI.match(text)
    try:
        data = base64.b64decode(text[uri.end() if uri else 0 :], validate=False)
    except ValueError:
        raise InvalidRequest(f"{field}: not valid base64.") from None
    width, height = _size(data, field)
    if width * height > limits.max_image_pixels:
        raise InvalidRequest(
            f"{field}: {width} × {height} pixels are not allowed. Allowed: up to {limits.max_image_pixels}."
        )
    return data


def _size(data: bytes, field: str) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as opened:
            return opened.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InvalidRequest(
            f"{field}: not a picture that can be read. Allowed: {', '.join(PICTURE_FORMATS)}, in base64."
        ) from None
