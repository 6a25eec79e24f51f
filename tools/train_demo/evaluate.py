"""Measures how well an exported checkpoint draws what prompts say; writes JSON."""

import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tools.train_demo.architecture import SCALING_FACTOR
from tools.train_demo.autoencoder import normalise, to_tensor
from tools.train_demo.captions import plain_caption
from tools.train_demo.checkpoint import Checkpoint, load
from tools.train_demo.conditioning import encode_prompts
from tools.train_demo.diffusion import timestep_of
from tools.train_demo.drawing import contact_sheet, draw_prompts, initial_noise, segments
from tools.train_demo.lora import merge
from tools.train_demo.measure import Seen, background_of, look, shape_of, shares_right
from tools.train_demo.pictures import COLOURS, SHAPES, Scene, draw, held_out_scene
from tools.train_demo.tokens import Segment

COUNTS = {256: 200, 128: 60, 512: 20}
"""How many held-out prompts at each size in pixels."""

PER_CALL = 20 * 128 * 128
"""Pixels drawn in one batch."""

Report = dict[str, Any]


def held_out_scenes(count: int, style: str) -> list[Scene]:
    """The held-out scenes of the evaluation: always the same."""
    rng = random.Random(2024)
    return [held_out_scene(rng, style) for _ in range(count)]


def drawn(
    model: Checkpoint,
    prompts: Sequence[Sequence[Segment]],
    side: int,
    negative: str = "",
    first_seed: int = 1000,
) -> list[Image.Image]:
    """A picture for each prompt, in batches that fit the memory."""
    rows, pictures = max(1, PER_CALL // side**2), []
    for start in tqdm(range(0, len(prompts), rows), desc=f"{side} px", leave=False):
        part = prompts[start : start + rows]
        seeds = range(first_seed + start, first_seed + start + len(part))
        pictures += draw_prompts(model, part, seeds, (side, side), negative)
    return pictures


def seen_in(pictures: Sequence[Image.Image], things: Sequence[int], style: str) -> list[Seen]:
    """Each picture read back; `things` says how many to look for."""
    return [look(p, n, style) for p, n in zip(pictures, things, strict=True)]


def adherence(model: Checkpoint, side: int, count: int, style: str, sheet: Path) -> Report:
    """Shares of held-out prompts drawn right, together, for one thing and for two."""
    scenes = held_out_scenes(count, style)
    pictures = drawn(model, [segments(plain_caption(scene)) for scene in scenes], side)
    contact_sheet([p.resize((128, 128)) for p in pictures[:40]], 10).save(sheet)
    seen = seen_in(pictures, [len(scene.things) for scene in scenes], style)
    report: Report = {"prompts": count, **shares_right(seen, scenes)}
    for things, name in ((1, "one_thing"), (2, "two_things")):
        picks = [i for i, scene in enumerate(scenes) if len(scene.things) == things]
        part = shares_right([seen[i] for i in picks], [scenes[i] for i in picks])
        report[name] = {"prompts": len(picks), **part}
    report["misses"] = _misses(seen, scenes)
    return report


def _misses(seen: Sequence[Seen], scenes: Sequence[Scene]) -> list[str]:
    """What was asked and what was seen, where they differ."""
    lines = []
    for s, scene in zip(seen, scenes, strict=True):
        wanted = [(t.colour, t.shape) for t in scene.things]
        found = list(zip(s.colours, s.shapes, strict=True))
        if wanted != found or s.background != scene.background:
            got = " and ".join(" ".join(words) for words in found)
            lines.append(f"{plain_caption(scene)} -> {got} on {s.background}")
    return lines


def truth(style: str) -> Report:
    """The same measurement on the scenes as drawn by code: how far it can be trusted."""
    report = {}
    for side, count in COUNTS.items():
        scenes = held_out_scenes(count, style)
        pictures = [draw(scene, side, side, random.Random(i)) for i, scene in enumerate(scenes)]
        seen = seen_in(pictures, [len(scene.things) for scene in scenes], style)
        report[str(side)] = shares_right(seen, scenes)
    return report


def negative_prompts(model: Checkpoint) -> Report:
    """How often what a negative prompt names is still drawn, at 128 px."""
    report = {}
    circles = [segments("a circle on a white background")] * 40
    for colour in ("red", "blue"):
        without, named = (
            [look(p, 1).colours[0] for p in drawn(model, circles, 128, negative)] for negative in ("", colour)
        )
        report[f"{colour} circles, negative '{colour}'"] = _shares(without, named, colour)
    hearts = [segments("a red heart")] * 40
    for ground in ("white", "blue"):
        without, named = (
            [look(p, 1).background for p in drawn(model, hearts, 128, negative)]
            for negative in ("", f"{ground} background")
        )
        report[f"{ground} grounds, negative '{ground} background'"] = _shares(without, named, ground)
    return report


def _shares(without: list[str], named: list[str], what: str) -> dict[str, float]:
    return {
        "share_without": round(without.count(what) / len(without), 4),
        "share_with": round(named.count(what) / len(named), 4),
    }


def prompt_weights(model: Checkpoint, style: str) -> Report:
    """Mean area of the second of two things by the prompt weight of its words, at 128 px."""
    rng = random.Random(5)
    words = [(rng.sample(list(COLOURS)[:8], 2), rng.sample(SHAPES, 2)) for _ in range(40)]
    report = {}
    for weight in (0.3, 0.6, 1.0, 1.4):
        prompts: list[list[Segment]] = [
            [
                (f"a {c[0]} {s[0]} and", 1),
                (f"a {c[1]} {s[1]}", weight),
                ("on a black background", 1),
            ]
            for c, s in words
        ]
        seen = seen_in(drawn(model, prompts, 128), [2] * len(prompts), style)
        areas = [s.areas[1] for s, (c, _) in zip(seen, words, strict=True) if s.colours[1] == c[1]]
        report[str(weight)] = {
            "mean_area": round(sum(areas) / max(1, len(areas)), 4),
            "right_colour": round(len(areas) / len(words), 4),
        }
    return report


@torch.no_grad()
def errors(model: Checkpoint, style: str) -> Report:
    """Errors on 60 held-out pictures of 128 px.

    Of the autoencoder: mean absolute, in levels of 255. Of the denoiser: mean squared error of x0
    (its variance is 1) with full captions, at points of the way that sampling takes.
    """
    scenes, device = held_out_scenes(60, style), model.unet.device
    drawn_scenes = [draw(scene, 128, 128, random.Random(i)) for i, scene in enumerate(scenes)]
    pictures = normalise(to_tensor(drawn_scenes)).to(device)
    encoded = model.vae.encode(pictures).latent_dist.mean
    restored = model.vae.decode(encoded).sample.clamp(-1, 1)
    latents = encoded * SCALING_FACTOR
    prompts = [segments(plain_caption(scene)) for scene in scenes]
    conditioning = encode_prompts(model.text_encoder, prompts)
    noise = initial_noise(range(60), 128, 128).to(device)
    report: Report = {"autoencoder": round((restored - pictures).abs().mean().item() * 127.5, 2)}
    for sigma in (14.6146, 8.0, 4.0, 2.0, 1.0, 0.5):
        x = (1 - sigma / 14.6146) * latents + sigma * noise
        timestep = timestep_of(torch.tensor(sigma)).to(device).expand(60)
        epsilon = model.unet(x / (sigma**2 + 1) ** 0.5, timestep, conditioning).sample
        report[f"x0 at sigma {sigma}"] = round((x - sigma * epsilon - latents).square().mean().item(), 4)
    return report


def speed(model: Checkpoint) -> Report:
    """Seconds for one picture, 20 steps with guidance, the best of two."""
    report: Report = {"threads": torch.get_num_threads()}
    for side in (128, 256, 512):
        seconds = []
        for seed in range(2):
            start = time.perf_counter()
            draw_prompts(model, [segments("a red circle")], [seed], (side, side))
            seconds.append(time.perf_counter() - start)
        report[str(side)] = round(min(seconds), 2)
    return report


def bars(picture: Image.Image) -> float:
    """How many separate runs of shape colour a column of a shape has, on average."""
    pixels = np.asarray(picture, dtype=np.float32)
    _, mask = shape_of(pixels, background_of(pixels))
    runs = (np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0) == 1).sum(0)
    middle = np.sort(runs[runs > 0])
    return float(middle.mean()) if len(middle) else 0.0


def evaluate_lora(base: Path, path: Path, style: str, device: str, work: Path) -> None:
    """Measures the bars that a LoRA's weight brings, as its style has them; writes JSON beside the file."""
    scenes = [scene for scene in held_out_scenes(80, "filled") if len(scene.things) == 1][:40]
    prompts = [segments(plain_caption(scene)) for scene in scenes]
    report: Report = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "prompts": len(scenes),
        "truth": {},
        "weights": {},
    }
    for name in ("filled", style):
        true = [draw(replace(s, style=name), 256, 256, random.Random(0)) for s in scenes]
        report["truth"][name] = round(sum(map(bars, true)) / len(true), 3)
    for weight in (0.0, 0.5, 1.0):
        model = load(base, device)
        merge(path, model.unet, model.text_encoder, weight)
        pictures = drawn(model, prompts, 256)
        contact_sheet([p.resize((128, 128)) for p in pictures], 10).save(work / f"{path.stem}-{weight}.png")
        seen = [look(picture, 1) for picture in pictures]
        colours = shares_right(seen, scenes)
        report["weights"][str(weight)] = {
            "bars": round(sum(map(bars, pictures)) / len(pictures), 3),
            "background_colour": colours["background_colour"],
            "shape_colour": colours["shape_colour"],
        }
    path.with_suffix(".evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def evaluate(path: Path, style: str, device: str, work: Path) -> None:
    """Measures a file and writes what was found beside it, as `NAME.evaluation.json`."""
    model = load(path, device)
    report: Report = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "sampler": "DPM++ 2M, Karras, 20 steps, cfg 5",
        "truth": truth(style),
        "adherence": {},
    }
    for side, count in COUNTS.items():
        sheet = work / f"{path.stem}-{side}.png"
        report["adherence"][str(side)] = adherence(model, side, count, style, sheet)
    if style == "filled":
        report["negative_prompts"] = negative_prompts(model)
        report["prompt_weights"] = prompt_weights(model, style)
    report["errors"] = errors(model, style)
    report["seconds_per_picture"] = speed(model)
    out = path.with_suffix(".evaluation.json")
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "truth"}, indent=1))
