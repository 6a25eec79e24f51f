"""What rows do between two calls of a UNet, each on tensors or all together: `python -m benchmarks.updates`.

Sixteen rows, each of another sampler, walk 20 Karras levels side by side, on one thread of the CPU; what a
UNet would answer is random. Both ways take turns, with noise that is there already and with noise that is
drawn; the median step of all rounds is told.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.machine import RESULTS, machine
from engine.noise import Noise
from engine.samplers import SAMPLERS, Sampler, Settings
from engine.samplers.combination import Combination, computed
from engine.samplers.walk import Walk, walk
from engine.schedules import scaled_linear

ROWS = [sampler for sampler in SAMPLERS.values() if not sampler.adaptive][:16]
STEPS = 20
MEASURED = slice(4, 14)
"""The steps at which no sampler is at its beginning or end."""
LEVELS = scaled_linear()

Way = Callable[[Sampler, Tensor, Sequence[float], Callable[[float, float], Tensor], Settings], Walk]
Step = tuple[float, float]
"""Milliseconds from the answers to the next latents, and milliseconds of what is done while a UNet runs."""


def on_tensors(
    sampler: Sampler, x: Tensor, sigmas: Sequence[float], noise: Callable[[float, float], Tensor], s: Settings
) -> Walk:
    """A sampler with operations of its own, whose noise is drawn when it asks for it."""
    evaluating = sampler.run(x, sigmas, lambda *step: noise(*step).to(x.device), s)
    latent, sigma = next(evaluating)
    while True:
        assert isinstance(latent, Tensor)
        denoised = yield Combination.of(latent), sigma, lambda: None
        latent, sigma = evaluating.send(denoised)


WAYS: Mapping[str, Way] = {"each on tensors": on_tensors, "together": walk}


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations on tensors, but for those that only make views."""

    count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def begun(way: Way, side: int, device: torch.device, *, drawn: bool) -> list[Walk]:
    walks = []
    for seed, sampler in enumerate(ROWS):
        noise = Noise(seed, (4, side, side), device)
        sigmas = sampler.sigmas("karras", LEVELS, STEPS)
        step_noise = sampler.step_noise(noise, sigmas)
        there = noise.step(1.0, 0.0).to(device)
        x = noise.initial * sampler.initial_scale(sigmas[0])
        walks.append(
            way(sampler, x, sigmas, step_noise if drawn else lambda *_, n=there: n, Settings(eta=1.0))
        )
    return walks


def stepped(walks: Sequence[Walk], answers: Sequence[Any]) -> tuple[list[Tensor], Step]:
    """All rows' next latents; at first the rows are sent None."""
    began = time.perf_counter()
    asked = [walking.send(answer) for walking, answer in zip(walks, answers, strict=True)]
    latents = computed([x for x, _, _ in asked])
    if latents[0].is_cuda:
        torch.cuda.synchronize()
    there = time.perf_counter()
    for _, _, meanwhile in asked:
        meanwhile()
    return latents, (1e3 * (there - began), 1e3 * (time.perf_counter() - there))


def answers(latents: Sequence[Tensor]) -> list[Tensor]:
    shapes = [(2, *x.shape) if row.needs_uncond else x.shape for row, x in zip(ROWS, latents, strict=True)]
    return [torch.randn(shape).to(latents[0].device) for shape in shapes]


def run(way: Way, side: int, device: torch.device, *, drawn: bool) -> list[Step]:
    walks = begun(way, side, device, drawn=drawn)
    latents, _ = stepped(walks, [None] * len(walks))
    steps = []
    for _ in range(MEASURED.stop):
        latents, step = stepped(walks, answers(latents))
        steps.append(step)
    return steps[MEASURED]


def operations(way: Way, side: int, device: torch.device) -> float:
    """A step, with noise that is there already."""
    walks = begun(way, side, device, drawn=False)
    latents, _ = stepped(walks, [None] * len(walks))
    counts: list[int] = []
    for _ in range(MEASURED.stop):
        sent = answers(latents)
        with Counting() as counting:  # type: ignore[no-untyped-call]
            latents, _ = stepped(walks, sent)
        counts.append(counting.count)
    return statistics.mean(counts[MEASURED])


@torch.inference_mode()
def rows(side: int, device: torch.device, rounds: int) -> list[str]:
    """Of the table."""
    found: dict[tuple[str, bool], list[Step]] = {
        (name, drawn): [] for name in WAYS for drawn in (False, True)
    }
    for _ in range(rounds):
        for (name, drawn), steps in found.items():
            steps += run(WAYS[name], side, device, drawn=drawn)
    lines = []
    for name, way in WAYS.items():
        update = statistics.median(between for between, _ in found[name, False])
        between, during = (statistics.median(times) for times in zip(*found[name, True], strict=True))
        lines.append(
            f"| {side}×{side} | {name} | {operations(way, side, device):.0f} | {update:.2f} "
            f"| {between:.1f} | {during:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    table = [
        f"# Updates of 16 rows, {date.today()}, {args.device}",
        "",
        "| latent | rows | operations a step | ms between calls, noise given | ms between calls, noise drawn "
        "| ms of drawing during a call |",
        "|---|---|---|---|---|---|",
    ]
    for side in (8, 64, 128):
        table += rows(side, device, args.rounds)
    text = "\n".join([*table, "", machine()]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"updates-{args.device}-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
