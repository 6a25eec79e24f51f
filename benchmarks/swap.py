"""What a change of checkpoint costs: `python -m benchmarks.swap`.

Writes two files of Stable Diffusion 1.5's full size with random weights, as float16, and times loading one
into new modules and swapping one into modules that are loaded; from the page cache and not; with its SHA-256
known and not. One of each kind after the other, round by round, so that a change of the machine's load meets
all of them; the fastest and the median of the rounds are told, beside what was predicted.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.engine_overhead import full_size
from benchmarks.machine import RESULTS, machine
from engine.checkpoint import load_checkpoint, swap_checkpoint
from engine.weights import Digests
from tools.ldm_layout import export_ldm

PREDICTED: Mapping[str, Mapping[str, float]] = {
    "a process of its own": {"float16": 10.0, "bfloat16": 11.0},
    "load, from the disk": {"float16": 5.0, "bfloat16": 5.5},
    "load": {"float16": 1.9, "bfloat16": 2.6},
    "load, digest known": {"float16": 1.0, "bfloat16": 1.9},
    "swap, from the disk": {"float16": 4.5, "bfloat16": 5.0},
    "swap": {"float16": 1.5, "bfloat16": 2.0},
    "swap, digest known": {"float16": 0.45, "bfloat16": 1.5},
}
"""Seconds on two cores of an EPYC, written down before the first run."""

ALONE = """
import sys
from pathlib import Path
from engine.checkpoint import load_checkpoint
load_checkpoint(Path(sys.argv[1]), device=sys.argv[2], dtype=sys.argv[3])
"""


@dataclass(frozen=True)
class Timing:
    """Seconds of one kind of change; `cpu` of all cores together, at best."""

    change: str
    dtype: str
    predicted: float
    fastest: float
    median: float
    cpu: float


def write_files(folder: Path) -> list[Path]:
    """Two files of the same architecture and different weights, on the disk."""
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        paths.append(folder / f"{seed}.safetensors")
        export_ldm(paths[-1], *full_size())
    os.sync()
    return paths


def uncache(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cache(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(2**24):
            pass


def changes(
    files: Sequence[Path], device: str, dtype: str
) -> Iterator[tuple[str, Callable[[Path], None], Callable[[], object]]]:
    """Kinds of change: name, what has to be done to both files before it, the change."""
    known, order = Digests(), cycle(files)
    for path in files:
        loaded = load_checkpoint(path, device=device, dtype=dtype, digests=known)

    def load(digests: Digests | None = None) -> None:
        load_checkpoint(files[0], device=device, dtype=dtype, digests=digests)

    def swap(digests: Digests | None = None) -> None:
        nonlocal loaded
        loaded = swap_checkpoint(loaded, next(order), digests=digests)

    def alone() -> None:
        subprocess.run([sys.executable, "-c", ALONE, str(files[0]), device, dtype], check=True)

    yield "a process of its own", cache, alone
    for name, change in (("load", load), ("swap", swap)):
        yield f"{name}, from the disk", uncache, change
        yield name, cache, change
        yield f"{name}, digest known", cache, partial(change, known)


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def measure(files: Sequence[Path], device: str, dtype: str, rounds: int) -> list[Timing]:
    kinds = list(changes(files, device, dtype))
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in kinds}
    cpu: dict[str, list[float]] = {name: [] for name, _, _ in kinds}
    for _ in tqdm(range(rounds), desc=dtype, unit="round"):
        for name, before, change in kinds:
            for path in files:
                before(path)
            gc.collect()
            began, spent = time.perf_counter(), cpu_seconds()
            change()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
            cpu[name].append(cpu_seconds() - spent)
    return [
        Timing(name, dtype, PREDICTED[name][dtype], min(each), statistics.median(each), min(cpu[name]))
        for name, each in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder))
        size = files[0].stat().st_size
        measured = [measure(files, args.device, dtype, args.rounds) for dtype in ("float16", "bfloat16")]
    timings = [timing for each in measured for timing in each]
    table = [
        f"# Change of checkpoint, {date.today()}, {args.device}",
        "",
        machine(),
        "",
        f"SD 1.5 at full size, random weights, a float16 file of {size / 1e9:.2f} GB, {args.rounds} rounds. "
        "From the page cache unless it says otherwise; behind the disk there may be a host's cache.",
        "",
        "| change | dtype | predicted, s | fastest, s | median, s | CPU, s |",
        "|---|---|---|---|---|---|",
        *(
            f"| {t.change} | {t.dtype} | {t.predicted:.2g} | {t.fastest:.2f} | {t.median:.2f} | {t.cpu:.2f} |"
            for t in timings
        ),
    ]
    text = "\n".join(table) + "\n"
    RESULTS.mkdir(exist_ok=True)
    name = f"swap-{args.device}-{date.today()}"
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps([asdict(t) for t in timings], indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
