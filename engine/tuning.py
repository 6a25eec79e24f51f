"""A checkpoint made fast on its device: attention's kernels, numbers of rows, compiled code, recordings.

All of it before the first job. The pictures are the same, but for rounding.
"""

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from engine.attention import attention_layers, make_lean
from engine.checkpoint import LoadedCheckpoint
from engine.compiled import Compiled
from engine.conditioning import Cond
from engine.graphs import CudaRecorder, Graphs, Recorder, Rerunning
from engine.kernels import Kind, choose, kernels
from engine.profiles import Profiles
from engine.protocol import CheckpointError
from engine.row_counts import RowCounts, candidates, worthwhile
from engine.unet import Call, evaluate

REPEATS = 3
CALLS_TO_RECORD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningSettings:
    """How. `row_counts` empty: measured. `pictures`, (width, height), empty: the size that the UNet is for.

    `compile` is a mode of torch.compile; None: nothing is compiled. `most_graphs` bounds the recordings of a
    checkpoint. `folder` keeps what was measured; None: it is measured at every start.
    """

    attention: str = "auto"
    graphs: bool = True
    compile: str | None = None
    max_rows: int = 16
    row_counts: tuple[int, ...] = ()
    pictures: Sequence[tuple[int, int]] = ()
    most_graphs: int = 64
    folder: Path | None = None


class Tuner:
    """For one replica: its own checkpoint is tuned, others of the same architecture then have what it has."""

    def __init__(self, settings: TuningSettings, device: torch.device) -> None:
        self._settings = settings
        self._profiles = Profiles(settings.folder)
        self._recorder: Recorder = Rerunning()
        if settings.graphs and device.type == "cuda":
            self._recorder = CudaRecorder(device)
        self._compiled = Compiled(settings.compile) if settings.compile else None
        self._own: LoadedCheckpoint | None = None
        self._choice: Mapping[Kind, str] = {}

    @torch.inference_mode()
    def tune(self, checkpoint: LoadedCheckpoint) -> None:
        """Takes seconds, and with `compile` minutes; in the thread that will run the checkpoint.

        Raises CheckpointError for a kernel that there is not.
        """
        if self._settings.attention not in ("auto", *kernels()):
            raise CheckpointError(f"attention: {self._settings.attention} is not installed")
        self._choice = self._chosen(checkpoint)
        make_lean(checkpoint.modules[0], self._choice)
        if self._settings.graphs or self._compiled:
            pictures = self._settings.pictures or [_own_size(checkpoint)]
            counts = RowCounts({_area(size): self._row_counts(checkpoint, size) for size in pictures})
            self._replay(checkpoint, counts)
            with self._compiled.compiling() if self._compiled else nullcontext():
                for width, height in pictures:
                    for rows in counts.of(_area((width, height))):
                        call_for(checkpoint, rows, width, height, times=CALLS_TO_RECORD)
        self._own = checkpoint

    def share(self, checkpoint: LoadedCheckpoint) -> None:
        """What the tuned checkpoint has, for another one; without effect where the architecture differs.

        Compiles and measures nothing. Any thread may ask, before the checkpoint's first call.
        """
        own = self._own
        if own is None or not own.kind.same_modules(checkpoint.kind):
            return
        make_lean(checkpoint.modules[0], self._choice)
        if own.denoiser.row_counts:
            self._replay(checkpoint, own.denoiser.row_counts)

    def _replay(self, checkpoint: LoadedCheckpoint, counts: RowCounts) -> None:
        denoiser = checkpoint.denoiser
        call: Call = partial(self._compiled or evaluate, denoiser.unet)
        denoiser.call = Graphs(call, self._recorder, counts, most=self._settings.most_graphs)
        denoiser.row_counts = counts

    def _chosen(self, checkpoint: LoadedCheckpoint) -> dict[Kind, str]:
        """Kept, so that it is the same after the next start, and a job's picture with it."""
        unet, name = checkpoint.modules[0], self._settings.attention
        key = {**_key(checkpoint), "measured": "attention", "name": name, "kernels": sorted(kernels())}
        weight = next(unet.parameters())
        kept = self._profiles.get(
            key, lambda: [[*kind, own] for kind, own in choose(attention_layers(unet), weight, name).items()]
        )
        return {(width, crossed): own for width, crossed, own in kept}

    def _row_counts(self, checkpoint: LoadedCheckpoint, size: tuple[int, int]) -> tuple[int, ...]:
        if self._settings.row_counts:
            return self._settings.row_counts
        key = {
            **_key(checkpoint),
            "measured": "seconds of a call, by rows",
            "attention": [[*kind, name] for kind, name in self._choice.items()],
            "picture": size,
            "graphs": self._settings.graphs,
            "max_rows": self._settings.max_rows,
        }
        seconds = self._profiles.get(key, lambda: self._seconds(checkpoint, size))
        return worthwhile({int(rows): taken for rows, taken in seconds.items()})

    def _seconds(self, checkpoint: LoadedCheckpoint, size: tuple[int, int]) -> dict[int, float]:
        """Of calls as they will be made, but for compiling: that would be done for every candidate.

        Ends where memory does.
        """
        counts = candidates(self._settings.max_rows)
        plain = checkpoint.denoiser.plain()
        plain.call = Graphs(plain.call, self._recorder, RowCounts({_area(size): tuple(counts)}))
        trial = replace(checkpoint, denoiser=plain)
        seconds: dict[int, float] = {}
        for rows in counts:
            try:
                call_for(trial, rows, *size, times=CALLS_TO_RECORD)
                seconds[rows] = statistics.median(call_for(trial, rows, *size) for _ in range(REPEATS))
            except torch.OutOfMemoryError:
                if not seconds:
                    raise
                break
        if checkpoint.device.type == "cuda":
            torch.cuda.empty_cache()
        return seconds


def call_for(checkpoint: LoadedCheckpoint, rows: int, width: int, height: int, *, times: int = 1) -> float:
    """The seconds of so many evaluations of so many rows, to their end."""
    (cond,) = checkpoint.conditioner([(("", 1.0),)], 1)
    example, x = _example(checkpoint, cond, width, height)
    _wait(checkpoint.device)
    began = time.perf_counter()
    for _ in range(times):
        checkpoint.denoiser(
            x=[x] * rows,
            sigma=[1.0] * rows,
            conds=[[(example, 1.0)]] * rows,
            uncond=[None] * rows,
            guidance_scale=[1.0] * rows,
        )
    _wait(checkpoint.device)
    return time.perf_counter() - began


def _example(checkpoint: LoadedCheckpoint, cond: Cond, width: int, height: int) -> tuple[Cond, torch.Tensor]:
    """What a row of this checkpoint has, and its latent."""
    kind = checkpoint.kind
    made = torch.Generator().manual_seed(0)
    x = torch.randn(4, height // 8, width // 8, generator=made).to(checkpoint.device)
    beside = x.new_zeros(5, height // 8, width // 8) if kind.inpainting else None
    score, _ = kind.family.aesthetic_scores or (None, None)
    return replace(cond, beside=beside, aesthetic_score=score), x


def _key(checkpoint: LoadedCheckpoint) -> dict[str, Any]:
    config = json.dumps(cast(Any, checkpoint.modules[0]).config, sort_keys=True, default=str)
    cuda = checkpoint.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(checkpoint.device) if cuda else platform.processor(),
        "torch": torch.__version__,
        "architecture": hashlib.sha256(config.encode()).hexdigest(),
        "dtype": str(checkpoint.denoiser.dtype),
    }


def _own_size(checkpoint: LoadedCheckpoint) -> tuple[int, int]:
    side = 8 * int(cast(Any, checkpoint.modules[0]).config.sample_size)
    return side, side


def _area(size: tuple[int, int]) -> int:
    """Of the latent."""
    return size[0] * size[1] // 64


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
