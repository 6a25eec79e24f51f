"""What calls cost, for simulations: `python -m benchmarks.costs` measures it on this machine.

Runs jobs through the bare engine, so many at once, and keeps the median seconds of its steps by operation,
size and model rows. On a GPU: `--model full --size 512 --device cuda --dtype float16`.
"""

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from benchmarks.engine_overhead import jobs
from benchmarks.machine import RESULTS, machine
from benchmarks.models import MODELS
from benchmarks.workloads import SHAPES
from engine.checkpoint import DTYPES, load_checkpoint
from engine.engine import Engine
from engine.protocol import StepStats

AT_ONCE = (1, 2, 4, 8, 16)
"""Guided jobs whose steps are measured together."""
STEPS = 4


@dataclass(frozen=True)
class CallCosts:
    """Seconds of a call by key and model rows: linear between those given, and beyond them at the last slope.

    Keys are `encode`, a size such as `512x768`, and `decode 512x768`. `size` is the side of a usual picture
    in pixels, `max_rows` the most model rows of an evaluation.
    """

    about: str
    size: int
    max_rows: int
    seconds: Mapping[str, Mapping[int, float]]

    def __call__(self, key: str, rows: int) -> float:
        return self._by_rows[key][rows]

    @cached_property
    def _by_rows(self) -> Mapping[str, Sequence[float]]:
        most = 2 * self.max_rows + 1
        return {key: [line(known, rows) for rows in range(most)] for key, known in self.seconds.items()}


def line(known: Mapping[int, float], rows: int) -> float:
    """Fewer rows than any given take what those take; with one number given, each row takes the same."""
    points = sorted(known.items())
    if rows <= points[0][0]:
        return points[0][1]
    if len(points) == 1:
        return points[0][1] * rows / points[0][0]
    (below, low), (above, high) = next(
        (pair for pair in pairwise(points) if rows <= pair[1][0]), (points[-2], points[-1])
    )
    return low + (high - low) * (rows - below) / (above - below)


def assumed_h200() -> CallCosts:
    """SD 1.5 on one H200, as nobody has measured it yet.

    A component model: 62 ms for an evaluation of 32 rows of 512 px, which is 5.5 times the throughput of one
    guided job alone; 20 steps and the VAE make 12 pictures a second. Larger sizes go by their GFLOP a row.
    """
    evaluation = {"512x512": 803, "512x768": 1295, "768x512": 1295, "768x768": 2148}
    decoding = {"512x512": 2515, "512x768": 3773, "768x512": 3773, "768x768": 5754}
    seconds = {"encode": {1: 0.010, 64: 0.0113}}
    for size, work in evaluation.items():
        seconds[size] = {rows: 0.0186 + 0.001357 * work / 803 * rows for rows in (1, 32)}
    for size, work in decoding.items():
        seconds[f"decode {size}"] = {rows: 0.003 + 0.0055 * work / 2515 * rows for rows in (1, 4)}
    return CallCosts("assumed, not measured: SD 1.5 on one H200", 512, 32, seconds)


def read(path: Path) -> CallCosts:
    """What `main` has written."""
    told = json.loads(path.read_text())
    seconds = {key: {int(rows): s for rows, s in known.items()} for key, known in told["seconds"].items()}
    return CallCosts(told["about"], told["size"], told["max_rows"], seconds)


def measure(
    engine: Engine, steps: list[StepStats], size: tuple[int, int]
) -> Mapping[str, Mapping[int, float]]:
    """Medians of the steps that `engine` reports to `steps`, for pictures of this width and height."""
    seconds: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    name = f"{size[0]}x{size[1]}"
    keys = {"encode": "encode", "evaluate": name, "decode": f"decode {name}"}
    for at_once in AT_ONCE:
        for warm in (True, False):
            steps.clear()
            for job in jobs(at_once, size[0], STEPS):
                guided = replace(job, height=size[1], steps=STEPS, guidance_scale=7.0, sampler="Euler")
                engine.add(replace(guided, prompt=f"{job.prompt} {size} {at_once} {warm}"))
            while len(engine):
                engine.step()
            for step in [] if warm else steps:
                seconds[keys[step.operation]][step.rows].append(step.seconds)
    return {
        key: {rows: statistics.median(each) for rows, each in sorted(known.items())}
        for key, known in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="stand-in")
    parser.add_argument("--size", type=int, help="side of a usual picture; the model's own unless given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = MODELS[args.model](Path(folder))
        checkpoint = load_checkpoint(model.path, device=args.device, dtype=args.dtype)
    side = args.size or model.size
    seconds: dict[str, Mapping[int, float]] = {}
    for width, height in tqdm(SHAPES, desc=model.name, unit="size"):
        steps: list[StepStats] = []
        engine = Engine(checkpoint, max_rows=2 * max(AT_ONCE), on_step=steps.append)
        seconds |= measure(engine, steps, (width * side // 2, height * side // 2))
    about = f"measured, {date.today()}: {model.about}, {args.device}, {args.dtype}; {machine()}"
    costs = CallCosts(about, side, 2 * max(AT_ONCE), seconds)
    path = args.out / f"call-costs-{args.model}-{args.device}-{args.dtype}.json"
    path.write_text(json.dumps(asdict(costs), indent=1) + "\n")
    print(f"{path}\n{about}")
    for key, known in seconds.items():
        print(f"{key}: " + ", ".join(f"{rows} rows {1e3 * s:.1f} ms" for rows, s in known.items()))


if __name__ == "__main__":
    main()
