"""What strict mode costs: `python -m benchmarks.strict`.

Draws the same jobs, of mixed samplers and guidance, as usual and strictly, where they share no call. The two
take turns; the fastest round of each counts, on a CPU in CPU-seconds. Also tells how many of the pictures
are, bit for bit, those drawn alone; and whether calls of a fixed shape would do instead.
"""

import argparse
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.engine_overhead import full_size, jobs
from benchmarks.machine import RESULTS, machine
from engine.checkpoint import DTYPES, LoadedCheckpoint, assemble, load_checkpoint, make_strict
from engine.engine import Engine
from engine.protocol import Job


def draw(checkpoint: LoadedCheckpoint, work: Sequence[Job], rows: int) -> tuple[float, dict[str, bytes]]:
    """Seconds, on a CPU those of its threads together, and each job's picture."""
    clock = time.process_time if checkpoint.device.type == "cpu" else time.perf_counter
    engine = Engine(checkpoint, max_rows=rows)
    pictures: dict[str, bytes] = {}
    began = clock()
    for job in work:
        engine.add(job)
    while len(engine):
        for done in engine.step():
            assert isinstance(done.outcome, np.ndarray), done.outcome
            pictures[done.row.job.id] = done.outcome.tobytes()
    return clock() - began, pictures


def compare(
    name: str, both: Sequence[LoadedCheckpoint], work: Sequence[Job], args: argparse.Namespace
) -> str:
    """A line of the table. `both`: as usual, and strictly."""
    fastest, equal = [], []
    rounds = [[draw(each, work, args.rows) for each in both] for _ in tqdm(range(args.rounds), desc=name)]
    for mode, checkpoint in enumerate(both):
        fastest.append(min(each[mode][0] for each in rounds))
        together = rounds[0][mode][1]
        alone = {
            id_: picture for job in work for id_, picture in draw(checkpoint, [job], args.rows)[1].items()
        }
        equal.append(sum(together[id_] == alone[id_] for id_ in together))
    return (
        f"| {name} | {len(work)} | {fastest[0]:.2f} | {fastest[1]:.2f} | {fastest[1] / fastest[0]:.2f} "
        f"| {equal[0]} | {equal[1]} |"
    )


@torch.inference_mode()
def place_counts(checkpoint: LoadedCheckpoint, rows: int, side: int) -> bool:
    """Whether a row's bits depend on its place in a call of always the same shape."""
    denoiser, generator = checkpoint.denoiser, torch.Generator().manual_seed(0)
    conds = checkpoint.conditioner([((f"a red circle {row}", 1.0),) for row in range(rows)], 1)
    x = list(torch.randn(rows, 4, side // 8, side // 8, generator=generator).to(checkpoint.device))

    def call(order: Sequence[int]) -> list[torch.Tensor]:
        return denoiser(
            x=[x[row] for row in order],
            sigma=[1.0 + row for row in order],
            conds=[[(conds[row], 1.0)] for row in order],
            uncond=[None] * rows,
            guidance_scale=[1.0] * rows,
        )

    before, after = call(range(rows)), call([*range(1, rows), 0])
    return not all(torch.equal(a, b) for a, b in zip([*before[1:], before[0]], after, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("models/demo.safetensors"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128, help="pixels; of the full-size model half of it")
    parser.add_argument("--steps", type=int, default=8, help="of the full-size model a quarter")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    table = [
        f"# Strict mode, {date.today()}, {args.device}, {args.dtype}, {args.rows} rows",
        "",
        machine(),
        "",
        "| model | jobs at once | seconds | strictly | ratio | bits as alone | strictly |",
        "|---|---|---|---|---|---|---|",
    ]
    demo = [load_checkpoint(args.demo, device=args.device, dtype=args.dtype) for _ in range(2)]
    modules = full_size()
    full = [assemble(*modules, device=device, dtype=dtype) for _ in range(2)]
    for checkpoints in (demo, full):
        make_strict(checkpoints[1])
    small = [jobs(count, args.size, args.steps) for count in (1, 4, 9)]
    large = [jobs(count, args.size // 2, args.steps // 4) for count in (1, 4)]
    table += [compare("demo", demo, work, args) for work in small]
    table += [compare("SD 1.5, random weights", full, work, args) for work in large]
    places = ", ".join(
        f"{'yes' if place_counts(demo[0], args.rows, side) else 'no'} at {side} px" for side in (64, 128, 256)
    )
    table += [
        "",
        f"Whether a row's last bits depend on its place in a call of {args.rows} rows, demo: {places}.",
    ]
    text = "\n".join(table) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"strict-{args.device}-{args.dtype}-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
