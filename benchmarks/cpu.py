"""What choices for CPU replicas are worth: `python -m benchmarks.cpu`.

Attention: a call of the launch-bound stand-in's UNet with diffusers' own attention layers and with ours, turn
by turn, in CPU-seconds of one thread. Tokens: the same with prompts of 77 tokens, and filled up to 80 with a
mask. Teams: a call of the demo checkpoint's UNet in a thread of its own, as
a replica makes it, where the thread that loaded it computes with all cores as well, or with one CPU thread,
each in a process of its own. The fastest and the median of the calls are told.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, machine
from benchmarks.models import DEMO, stand_in
from engine.attention import make_lean, make_stock
from engine.checkpoint import load_checkpoint
from engine.denoiser import CPU_TOKENS, Denoiser

PROMPT = 77
"""Tokens."""


def caller(denoiser: Denoiser, rows: int, side: int, tokens: int = PROMPT) -> Callable[[], object]:
    """A call of the UNet on random latents of `side`² positions. Tokens beyond a prompt's are masked."""
    unet: Any = denoiser.unet
    x, context = torch.randn(rows, 4, side, side), torch.randn(rows, tokens, unet.config.cross_attention_dim)
    timesteps = torch.full((rows,), 500.0)
    mask = (torch.arange(tokens) < PROMPT).expand(rows, tokens) if tokens > PROMPT else None
    return lambda: unet(x, timesteps, encoder_hidden_states=context, encoder_attention_mask=mask)


@torch.inference_mode()
def times(call: Callable[[], object], count: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of each call, after two that are not counted."""
    seconds = []
    for _ in range(count + 2):
        began = clock()
        call()
        seconds.append(clock() - began)
    return seconds[2:]


def small_denoiser() -> Denoiser:
    """The stand-in's."""
    with tempfile.TemporaryDirectory() as folder:
        return load_checkpoint(stand_in(Path(folder)).path, device="cpu").denoiser


def tokens(rows: int, rounds: int) -> str:
    torch.set_num_threads(1)
    denoiser = small_denoiser()
    calls = [caller(denoiser, rows, 8, count) for count in (PROMPT, -(-PROMPT // CPU_TOKENS) * CPU_TOKENS)]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for case, call in enumerate(calls):
            seconds[case] += times(call, 10, time.process_time)
    return line(f"tokens, {rows} rows", ["as they are", "filled up"], seconds)


def attention(rows: int, rounds: int) -> str:
    torch.set_num_threads(1)
    denoiser = small_denoiser()
    call = caller(denoiser, rows, 8)
    seconds: dict[str, list[float]] = {"diffusers": [], "ours": []}
    for _ in range(rounds):
        for name, prepare in (("diffusers", make_stock), ("ours", make_lean)):
            prepare(denoiser.unet)
            seconds[name] += times(call, 10, time.process_time)
    return line(f"attention, {rows} rows", list(seconds), list(seconds.values()))


def in_a_thread(loading_threads: int, count: int, result: "multiprocessing.Queue[list[float]]") -> None:
    """Load with so many CPU threads, compute once there, then call from a thread that has all cores."""
    torch.set_num_threads(loading_threads)
    call = caller(load_checkpoint(DEMO, device="cpu").denoiser, 8, 32)
    times(call, 1, time.perf_counter)

    def work() -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        result.put(times(call, count, time.perf_counter))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def teams(rounds: int) -> str:
    spawn = multiprocessing.get_context("spawn")
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for case, threads in enumerate((os.cpu_count() or 1, 1)):
            result = spawn.Queue()
            process = spawn.Process(target=in_a_thread, args=(threads, 10, result))
            process.start()
            seconds[case] += result.get()
            process.join()
    return line(f"teams, {os.cpu_count()} cores", ["two teams", "one team"], seconds)


def line(name: str, cases: Sequence[str], seconds: Sequence[Sequence[float]]) -> str:
    fastest, median = ([1e3 * of(each) for each in seconds] for of in (min, statistics.median))
    return (
        f"| {name} | {cases[0]} | {fastest[0]:.1f} | {median[0]:.1f} | {cases[1]} | {fastest[1]:.1f} "
        f"| {median[1]:.1f} | {fastest[1] / fastest[0]:.2f} | {median[1] / median[0]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    table = [
        f"# CPU replicas, {date.today()}",
        "",
        machine(),
        "",
        "| what | before | fastest ms | median ms | now | fastest ms | median ms | ratio | of medians |",
        "|---|---|---|---|---|---|---|---|---|",
        teams(args.rounds),
        *(attention(rows, args.rounds) for rows in (2, 32)),
        *(tokens(rows, args.rounds) for rows in (2, 32)),
    ]
    text = "\n".join(table) + "\n"
    (RESULTS / f"cpu-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
