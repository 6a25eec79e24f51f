"""How much of the engine's time is the models': `python -m benchmarks.engine_overhead`.

Runs jobs of mixed steps, samplers and guidance through the bare engine and reports the time inside the
UNet's forward call divided by wall time, for the demo checkpoint and for a model of Stable Diffusion 1.5's
full size with random weights. Wall time includes the VAE, which is no overhead: so also the UNet's share of
the evaluate steps alone, and the share of all three models together.
"""

import argparse
import math
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tqdm import tqdm
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from benchmarks.machine import RESULTS, machine
from engine.checkpoint import DTYPES, LoadedCheckpoint, assemble, load_checkpoint
from engine.engine import Engine
from engine.families import sd1
from engine.families.family import CLIP_L, VAE, Modules
from engine.protocol import Job, StepStats

SAMPLERS = ("Euler", "Euler a", "Heun", "DPM++ 2M", "DPM++ 2M SDE", "DDIM")


def full_size() -> Modules:
    """SD 1.5's architecture with random weights."""
    text_encoder = CLIPTextModel(CLIPTextConfig(**CLIP_L))
    return UNet2DConditionModel(**sd1.UNET), AutoencoderKL(**VAE), text_encoder


def jobs(count: int, size: int, longest: int) -> list[Job]:
    return [
        Job(
            id=str(i),
            checkpoint="bench",
            prompt=f"a red circle number {i}",
            negative_prompt="blue",
            seed=i,
            width=size,
            height=size,
            steps=max(2, longest - i % 4),
            guidance_scale=[1.0, 5.0, 7.0][i % 3],
            sampler=SAMPLERS[i % len(SAMPLERS)],
            schedule="karras",
            eta=0.0,
            s_churn=0.0,
            s_tmin=0.0,
            s_tmax=math.inf,
            s_noise=1.0,
            eta_noise_seed_delta=0,
            clip_skip=1,
            infotext="",
        )
        for i in range(count)
    ]


class Timed:
    """Counts the seconds inside a module's method, to the end of the device's work."""

    def __init__(self, module: Any, method: str = "forward") -> None:
        self.seconds = 0.0
        forward = getattr(module, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = forward(*args, **kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - began
            return result

        setattr(module, method, timed)


def measure(name: str, checkpoint: LoadedCheckpoint, work: list[Job], max_rows: int) -> str:
    steps: list[StepStats] = []
    modules = checkpoint.modules
    warm = Engine(checkpoint, max_rows=max_rows)
    warm.add(work[1])
    while len(warm):
        warm.step()
    unet, *others = Timed(modules[0]), Timed(modules[1], "decode"), Timed(modules[2])
    engine = Engine(checkpoint, max_rows=max_rows, on_step=steps.append)
    began = time.perf_counter()
    for job in work:
        engine.add(job)
    with tqdm(desc=name, unit="step") as bar:
        while len(engine):
            engine.step()
            bar.update()
    wall = time.perf_counter() - began
    calls = [s for s in steps if s.operation == "evaluate"]
    denoising = sum(s.seconds for s in calls)
    models = unet.seconds + sum(other.seconds for other in others)
    rows = sum(s.rows for s in calls) / len(calls)
    return (
        f"| {name} | {len(work)} | {len(calls)} | {rows:.1f} | {unet.seconds / wall:.3f} "
        f"| {unet.seconds / denoising:.3f} | {models / wall:.3f} "
        f"| {1e3 * (denoising - unet.seconds) / len(calls):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("models/demo.safetensors"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--full-size", type=int, default=256, help="pixels")
    parser.add_argument("--full-steps", type=int, default=6)
    args = parser.parse_args()
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    demo = load_checkpoint(args.demo, device=args.device, dtype=args.dtype)
    full = assemble(*full_size(), device=device, dtype=dtype)
    table = [
        f"# Engine overhead, {date.today()}, {args.device}, {args.dtype}",
        "",
        machine(),
        "",
        "| model | jobs | calls | mean rows | UNet / wall | UNet / evaluate steps | all models / wall "
        "| ms per call outside the UNet |",
        "|---|---|---|---|---|---|---|---|",
        measure("demo, 256 px", demo, jobs(args.jobs, 256, 20), 32),
        measure(
            f"SD 1.5 full size, random weights, {args.full_size} px",
            full,
            jobs(4, args.full_size, args.full_steps),
            8,
        ),
    ]
    text = "\n".join(table) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"engine-overhead-{args.device}-{args.dtype}-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
