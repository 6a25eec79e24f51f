"""What the classes of quality give up, and what for: `python -m benchmarks.quality`.

Draws the same jobs exactly and in each class, all at once, and compares the pictures: the peak
signal-to-noise ratio of each to its exact one. The classes take turns; the fastest round of each counts, on a
CPU in CPU-seconds. There fp8 has no time: it is not for CPUs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.engine_overhead import jobs
from benchmarks.machine import RESULTS, machine
from benchmarks.strict import draw
from engine.checkpoint import DTYPES, LoadedCheckpoint, load_checkpoint
from engine.protocol import CheckpointError, Job
from engine.quality import EXACT, Quality, quality_of

PROMPTS = (
    "a large red circle on a blue background",
    "a small white heart at the top on a green background",
    "a red circle and a blue square",
    "a medium purple star on a yellow background",
    "a large black cross on a white background",
    "an orange ring on the left on a gray background",
)
"""What the demo checkpoint can draw."""
CLASSES = (EXACT, quality_of("fp8"), *(quality_of("deepcache", interval) for interval in (2, 3, 5)))


def work(samplers: Sequence[str], size: int, steps: int) -> list[Job]:
    """Every prompt with every sampler, all of them guided."""
    pairs = [(prompt, sampler) for prompt in PROMPTS for sampler in samplers]
    plain = jobs(len(pairs), size, steps)
    return [
        replace(job, prompt=prompt, negative_prompt="", sampler=sampler, steps=steps, guidance_scale=5.0)
        for job, (prompt, sampler) in zip(plain, pairs, strict=True)
    ]


def psnr(picture: bytes, exact: bytes) -> float:
    """In dB; infinite where they are equal."""
    difference = np.frombuffer(picture, np.uint8).astype(float) - np.frombuffer(exact, np.uint8)
    error = float(np.square(difference).mean())
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def loaded(args: argparse.Namespace) -> dict[Quality, LoadedCheckpoint]:
    """In each class that this device can."""
    checkpoints = {}
    for quality in CLASSES:
        try:
            checkpoints[quality] = load_checkpoint(
                args.checkpoint, device=args.device, dtype=args.dtype, quality=quality
            )
        except CheckpointError as error:
            print(error.message)
    return checkpoints


def compare(work: Sequence[Job], args: argparse.Namespace) -> list[str]:
    checkpoints = loaded(args)
    rounds = [
        {quality: draw(checkpoint, work, args.rows) for quality, checkpoint in checkpoints.items()}
        for _ in tqdm(range(args.rounds))
    ]
    fastest = {quality: min(each[quality][0] for each in rounds) for quality in checkpoints}
    pictures = {quality: rounds[0][quality][1] for quality in checkpoints}
    lines = []
    for quality, checkpoint in checkpoints.items():
        ratios = [psnr(picture, pictures[EXACT][id_]) for id_, picture in pictures[quality].items()]
        timed = quality.name != "fp8" or args.device != "cpu"
        seconds = f"{fastest[quality]:.2f} | {fastest[quality] / fastest[EXACT]:.2f}" if timed else "— | —"
        near = "— | —" if quality is EXACT else f"{median(ratios):.1f} | {min(ratios):.1f}"
        lines.append(
            f"| {quality.shown or quality.name} | {checkpoint.bytes / 1e6:.1f} | {seconds} | {near} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("models/demo.safetensors"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samplers", nargs="+", default=["Euler", "DPM++ 2M"])
    args = parser.parse_args()
    drawn = work(args.samplers, args.size, args.steps)
    table = [
        f"# Classes of quality, {date.today()}, {args.device}, {args.dtype}, {args.rows} rows",
        "",
        machine(),
        "",
        f"{args.checkpoint.stem}, {len(drawn)} guided jobs at once, {args.size} px, {args.steps} steps, "
        f"{' and '.join(args.samplers)}.",
        "",
        "| class | MB of weights | seconds | of exact's | median PSNR, dB | worst |",
        "|---|---|---|---|---|---|",
        *compare(drawn, args),
    ]
    text = "\n".join(table) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"quality-{args.device}-{args.dtype}-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
