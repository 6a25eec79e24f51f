"""Draws the pictures of `docs/gallery.md` with a running service: `python -m tools.gallery URL KEY`.

The service must offer the demo checkpoints, as `make serve` does. Each picture is one request, as any client
would send it; the page shows the request beside the picture.
"""

import argparse
import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image, ImageDraw

DOCS = Path(__file__).resolve().parents[1] / "docs"
IMAGES = DOCS / "images" / "gallery"

COMMON: Mapping[str, Any] = {
    "steps": 20,
    "cfg_scale": 5,
    "width": 256,
    "height": 256,
    "sampler_name": "DPM++ 2M Karras",
    "seed": 1,
}

INTRODUCTION = """# Gallery

Drawn by the demo checkpoint, which knows coloured shapes on flat backgrounds and nothing else
([its card](../models/README.md)), by `python -m tools.gallery URL KEY` on the service that `make serve`
starts. Every request also has `{common}`. Where base64 belongs, the name of a picture stands for its file.
"""


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One request. `init_images` and `mask` name earlier exhibits, or the mask below."""

    name: str
    about: str
    body: Mapping[str, Any]

    @property
    def route(self) -> str:
        return "img2img" if "init_images" in self.body else "txt2img"


WHITE = "on a white background"
HEART = "a large blue heart on a yellow background"
SECTIONS: Mapping[str, tuple[Exhibit, ...]] = {
    "Prompts": (
        Exhibit("plain", "A prompt.", {"prompt": f"a large green circle {WHITE}"}),
        Exhibit("weak", "Less weight.", {"prompt": f"a red circle and a (blue star:0.6) {WHITE}"}),
        Exhibit("strong", "More weight.", {"prompt": f"a red circle and a (blue star:1.4) {WHITE}"}),
        Exhibit("free", "No ground is named: white, as most it has seen.", {"prompt": "a red heart"}),
        Exhibit(
            "negative",
            "A negative prompt takes the ground away.",
            {"prompt": "a red heart", "negative_prompt": "white background"},
        ),
        Exhibit(
            "edited",
            "Red until step 10, then blue: the colour is decided late.",
            {"prompt": f"a [red:blue:0.5] circle {WHITE}"},
        ),
        Exhibit(
            "edited-shape",
            "A circle until step 2, then a star: the shape is decided early.",
            {"prompt": f"a red [circle:star:0.1] {WHITE}"},
        ),
        Exhibit("and", "Two prompts at once.", {"prompt": "a red circle AND a yellow background"}),
    ),
    "LoRA and another checkpoint": (
        Exhibit("filled", "Without.", {"prompt": HEART}),
        Exhibit(
            "striped",
            "With a LoRA.",
            {"prompt": "a large blue heart on a yellow background <lora:striped:1>"},
        ),
        Exhibit(
            "hollow",
            "With another.",
            {"prompt": "a large blue heart on a yellow background <lora:hollow:1>"},
        ),
        Exhibit(
            "refined",
            "The checkpoint of outlines takes over after six steps.",
            {"prompt": HEART, "refiner_checkpoint": "demo-outline", "refiner_switch_at": 0.3},
        ),
        Exhibit(
            "outline",
            "By another checkpoint.",
            {"prompt": HEART, "model": "demo-outline"},
        ),
    ),
    "From a picture": tuple(
        Exhibit(
            f"img2img-{strength}",
            f"Denoising strength {strength}.",
            {
                "prompt": "a large red star on a yellow background",
                "init_images": ["plain"],
                "denoising_strength": strength,
            },
        )
        for strength in (0.2, 0.5, 0.8)
    ),
    "Inpainting": (
        Exhibit(
            "inpainted",
            "The circle becomes a star; outside of the mask no pixel changes.",
            {
                "prompt": f"a large green star {WHITE}",
                "init_images": ["plain"],
                "mask": "mask",
                "denoising_strength": 1,
                "inpainting_fill": 0,
                "inpaint_full_res": False,
            },
        ),
        Exhibit(
            "only-masked",
            "The masked part alone, drawn at full size and put back.",
            {
                "prompt": f"a small orange heart {WHITE}",
                "init_images": ["plain"],
                "mask": "corner",
                "denoising_strength": 1,
                "inpainting_fill": 2,
                "inpaint_full_res": True,
                "inpaint_full_res_padding": 16,
            },
        ),
    ),
    "Hires fix": (
        Exhibit(
            "small",
            "The first pass alone.",
            {"prompt": "a blue star on a yellow background", "width": 128, "height": 128},
        ),
        Exhibit(
            "hires",
            "From 128 to 512 pixels.",
            {
                "prompt": "a blue star on a yellow background",
                "width": 128,
                "height": 128,
                "enable_hr": True,
                "hr_scale": 4,
                "hr_upscaler": "Lanczos",
                "hr_second_pass_steps": 12,
                "denoising_strength": 0.4,
            },
        ),
    ),
}


def mask(box: tuple[int, int, int, int]) -> Image.Image:
    picture = Image.new("L", (256, 256))
    ImageDraw.Draw(picture).rectangle(box, fill=255)
    return picture


def encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def request(exhibit: Exhibit, drawn: Mapping[str, Image.Image]) -> dict[str, Any]:
    body = {**COMMON, **exhibit.body}
    if "init_images" in body:
        body["init_images"] = [encoded(drawn[name]) for name in body["init_images"]]
    if "mask" in body:
        body["mask"] = encoded(drawn[body["mask"]])
    return body


def page() -> str:
    lines = [INTRODUCTION.format(common=json.dumps(COMMON))]
    for title, exhibits in SECTIONS.items():
        lines += [f"## {title}", "", "| | | |", "|---|---|---|"]
        for exhibit in exhibits:
            body = json.dumps(exhibit.body)[1:-1].replace("|", "\\|")
            picture = f'<img src="images/gallery/{exhibit.name}.png" width="160">'
            lines.append(f"| {picture} | {exhibit.about} | `{exhibit.route}`: `{body}` |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("key")
    args = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    drawn = {"mask": mask((40, 40, 215, 215)), "corner": mask((8, 8, 71, 71))}
    with httpx2.Client(headers={"Authorization": f"Bearer {args.key}"}, timeout=300) as client:
        for exhibit in (each for exhibits in SECTIONS.values() for each in exhibits):
            answer = client.post(f"{args.url}/sdapi/v1/{exhibit.route}", json=request(exhibit, drawn))
            answer.raise_for_status()
            data = base64.b64decode(answer.json()["images"][0])
            (IMAGES / f"{exhibit.name}.png").write_bytes(data)
            drawn[exhibit.name] = Image.open(io.BytesIO(data))
            print(exhibit.name)
    (DOCS / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
