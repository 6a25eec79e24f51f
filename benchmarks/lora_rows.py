"""What LoRAs per row cost: `python -m benchmarks.lora_rows`.

Times one evaluation of a UNet with random weights, side by side, whose rows have no LoRA, all the same one,
or several among them, and the loading of such a file. One call of each kind after the other, round by round,
so that a change of the machine's load meets all of them; the fastest and the median of the rounds are told.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from benchmarks.machine import RESULTS, machine
from engine.checkpoint import DTYPES
from engine.conditioning import Cond
from engine.denoiser import Denoiser
from engine.families import sd1
from engine.families.family import CLIP_L
from engine.lora.file import Lora, layers
from engine.lora.layers import Weighted
from engine.lora.store import LoraSettings, LoraStore
from engine.schedules import scaled_linear

ATTENTION = ".attentions."
"""What common LoRAs change: the layers of the transformer blocks."""


def write_lora(path: Path, unet: nn.Module, rank: int, deviation: float = 1 / 32) -> None:
    """A random LoRA of the UNet's attention, in kohya's layout, as float16; `deviation` is of its numbers."""
    tensors: dict[str, Tensor] = {}
    for name, layer in unet.named_modules():
        if ATTENTION in name and isinstance(layer, nn.Linear | nn.Conv2d):
            out, into, *kernel = layer.weight.shape
            key = f"lora_unet_{name.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = (torch.randn(rank, into, *kernel) * deviation).half()
            tensors[f"{key}.lora_up.weight"] = (
                torch.randn(out, rank, *(1 for _ in kernel)) * deviation
            ).half()
    save_file(tensors, path)


def loaded(
    unet: nn.Module, rank: int, count: int, device: torch.device, dtype: torch.dtype
) -> tuple[list[Lora], str]:
    """LoRAs of the UNet, and how long they took to load."""
    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(**CLIP_L))
    known = layers(unet, text_encoder)
    found, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            write_lora(Path(folder) / f"{i}.safetensors", unet, rank)
        size = (Path(folder) / "0.safetensors").stat().st_size
        store = LoraStore(LoraSettings(folder=Path(folder)), known, device=device, dtype=dtype)
        for i in range(count):
            began = time.perf_counter()
            lora = store.get(str(i))
            seconds.append(time.perf_counter() - began)
            assert lora is not None
            found.append(lora)
    return found, f"Loading a file of {size / 2**20:.0f} MiB: {min(seconds):.2f} s at best of {count}."


def cases(loras: Sequence[Lora], rows: int) -> dict[str, list[list[Weighted]]]:
    """Each row's LoRAs, by what the case shows."""
    mixed = [[] if i % 2 else [(loras[i // 2 % len(loras)], 0.8)] for i in range(rows)]
    return {
        "none": [[] for _ in range(rows)],
        "one row of all has one": [[(loras[0], 0.8)], *([] for _ in range(rows - 1))],
        "all rows the same one": [[(loras[0], 0.8)] for _ in range(rows)],
        "every second row one of its own": mixed,
        "every row one of its own": [[(loras[i % len(loras)], 0.8)] for i in range(rows)],
        "every row all": [[(lora, 0.5) for lora in loras] for _ in range(rows)],
    }


@torch.inference_mode()
def rounds(calls: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after a first one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in tqdm(range(count + 1), unit="round"):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--rows", type=int, default=4, help="unguided rows of one call")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--loras", type=int, default=4, help="different ones")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    unet = UNet2DConditionModel(**sd1.UNET).to(device, dtype).eval().requires_grad_(False)
    loras, loading = loaded(unet, args.rank, args.loras, device, dtype)
    denoiser = Denoiser(unet, scaled_linear())
    side = args.size // 8
    x = list(torch.randn(args.rows, 4, side, side, device=device))
    contexts = torch.randn(args.rows, 77, 768, device=device, dtype=dtype)
    conds = [[(Cond(context), 1.0)] for context in contexts]

    def call(rows: list[list[Weighted]]) -> Callable[[], object]:
        return lambda: denoiser(
            x=x,
            sigma=[3.0] * args.rows,
            conds=conds,
            uncond=[None] * args.rows,
            guidance_scale=[1.0] * args.rows,
            loras=rows,
        )

    seconds = rounds({name: call(rows) for name, rows in cases(loras, args.rows).items()}, args.rounds)
    plain = min(seconds["none"])
    table = [
        f"# LoRAs per row, {date.today()}, {args.device}, {args.dtype}",
        "",
        machine(),
        "",
        f"SD 1.5's UNet with random weights, {args.rows} rows of {args.size} px, {args.loras} LoRAs of rank "
        f"{args.rank} on all attention layers, {args.rounds} rounds. {loading}",
        "",
        "| rows | fastest, ms | median, ms | against none |",
        "|---|---|---|---|",
        *(
            f"| {name} | {1e3 * min(s):.0f} | {1e3 * statistics.median(s):.0f} | {min(s) / plain - 1:+.1%} |"
            for name, s in seconds.items()
        ),
    ]
    text = "\n".join(table) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"lora-rows-{args.device}-{args.dtype}-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
