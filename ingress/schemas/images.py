"""The bodies of the routes about given pictures: what is in them, what they say of themselves, enlarging."""

from typing import Any

from pydantic import BaseModel

from ingress.schemas.sdapi import Integer, LenientModel, Number, Object, Text


class PngInfoRequest(LenientModel):
    image: Text = ""
    """A picture in base64, with or without `data:image/…;base64,`."""


class PngInfoResponse(BaseModel):
    info: str
    """The infotext, empty if there is none."""
    items: dict[str, Any]
    """What else the file says."""
    parameters: dict[str, Any]
    """What the infotext says, by its keys, and what is meant where it says nothing."""


class InterrogateRequest(LenientModel):
    image: Text = ""
    """A picture in base64, with or without `data:image/…;base64,`."""
    model: Text = "clip"


class InterrogateResponse(BaseModel):
    caption: str


class ExtrasFields(LenientModel):
    """What extra-single-image and extra-batch-images share."""

    resize_mode: Integer = 0
    """0 enlarges by `upscaling_resize`, 1 to `upscaling_resize_w` × `upscaling_resize_h`."""
    show_extras_results: bool = True
    gfpgan_visibility: Number = 0
    codeformer_visibility: Number = 0
    codeformer_weight: Number = 0
    upscaling_resize: Number = 2
    upscaling_resize_w: Integer = 512
    upscaling_resize_h: Integer = 512
    upscaling_crop: bool = True
    """Whether a picture of another shape covers the size and is cut, or fits into it."""
    upscaler_1: Text = "None"
    """One of `GET /sdapi/v1/upscalers`. None leaves the picture as it is."""
    upscaler_2: Text = "None"
    extras_upscaler_2_visibility: Number = 0
    """0 to 1: how much of the result is by `upscaler_2`."""
    upscale_first: bool = False
    override_settings: Object | None = None
    """`samples_format`, `jpeg_quality`, `webp_lossless`, `enable_pnginfo`, for this request alone."""


class ExtraSingleRequest(ExtrasFields):
    image: Text = ""
    """A picture in base64, with or without `data:image/…;base64,`."""


class ExtraPicture(LenientModel):
    data: Text = ""
    """A picture in base64, with or without `data:image/…;base64,`."""
    image: Text = ""
    """Another name of `data`, which some clients use."""
    name: Text = ""


class ExtraBatchRequest(ExtrasFields):
    imageList: list[ExtraPicture] | None = None
    image_list: list[ExtraPicture] | None = None
    """Another name of `imageList`, which some clients use."""


class ExtraSingleResponse(BaseModel):
    html_info: str
    image: str
    """A picture in base64."""


class ExtraBatchResponse(BaseModel):
    html_info: str
    images: list[str]
    """Pictures in base64."""
