"""What a step's Brownian noise costs, ours and torchsde's side by side: `python -m benchmarks.brownian`.

Walks 20 Karras levels with the noise of an image, drawn as the engine draws it and by torchsde's
`BrownianTree`, on one thread, in turns; the median step of all rounds is told.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from itertools import pairwise

import torch
import torchsde

from benchmarks.machine import RESULTS, machine
from engine.noise import Noise
from engine.protocol import NOISE_SOURCES
from engine.schedules import karras, scaled_linear

CPU = torch.device("cpu")

StepNoise = Callable[[float, float], torch.Tensor]
Shape = tuple[int, int, int]


def engines(source: str, shape: Shape, low: float, high: float) -> StepNoise:
    return Noise(1, shape, CPU, source=source).brownian(low, high)


def torchsdes(shape: Shape, low: float, high: float) -> StepNoise:
    tree = torchsde.BrownianTree(torch.tensor(low), torch.zeros(shape), torch.tensor(high), entropy=1)
    return lambda sigma, sigma_next: -tree(sigma_next, sigma) / math.sqrt(sigma - sigma_next)


def rounds(shape: Shape, sigmas: Sequence[float], count: int) -> dict[str, list[float]]:
    """Seconds of each step, by whose noise it is."""
    low, high = sigmas[-1], sigmas[0]
    makers: dict[str, Callable[[], StepNoise]] = {
        f"ours, {source}": partial(engines, source, shape, low, high) for source in NOISE_SOURCES
    }
    makers["torchsde"] = partial(torchsdes, shape, low, high)
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(count):
        for name, make in makers.items():
            noise = make()
            for sigma, sigma_next in pairwise(sigmas):
                began = time.perf_counter()
                noise(sigma, sigma_next)
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sigmas = karras(scaled_linear(), 20)[:-1]
    table = [f"# Brownian noise, {date.today()}", "", "| latent | source | ms a step |", "|---|---|---|"]
    for shape in ((4, 64, 64), (4, 128, 128)):
        size = "×".join(map(str, shape))
        for name, seconds in rounds(shape, sigmas, args.rounds).items():
            table.append(f"| {size} | {name} | {1e3 * statistics.median(seconds):.1f} |")
    text = "\n".join([*table, "", machine()]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"brownian-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
