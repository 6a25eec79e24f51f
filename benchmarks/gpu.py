"""What one GPU does with Stable Diffusion 1.5 and SDXL at full size: `python -m benchmarks.gpu`.

Random weights. Needs the engine and its libraries alone, no Ray and no FastAPI. For each model in turn: a
call of the UNet by rows and by the way it is called, pictures per second on mixed traffic beside diffusers'
pipeline behind a lock, and what neighbours do to a picture; what compiles comes last. Results are written
after every measurement, so that a run that is cut short keeps what it has; what no time was left for is
listed. `--tiny --device cpu` runs nearly every line of it on toy models, for no figure: 35 CPU-seconds.
"""

import argparse
import dataclasses
import gc
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines.pipeline import SCHEDULERS
from benchmarks.engine_overhead import jobs
from benchmarks.machine import RESULTS, machine
from benchmarks.models import STAND_IN
from engine.attention import attention_layers, make_lean, make_stock
from engine.checkpoint import DTYPES, LoadedCheckpoint, assemble
from engine.compiled import Compiled
from engine.engine import Engine
from engine.families import sd1, sdxl
from engine.families.family import Family, Kind
from engine.graphs import CudaRecorder, Graphs, Recorder, Rerunning
from engine.kernels import choose
from engine.protocol import Job, StepStats
from engine.row_counts import RowCounts, candidates, worthwhile
from engine.tokenizer import load_tokenizer
from engine.tuning import Tuner, TuningSettings, call_for
from engine.unet import Call, Inputs, evaluate

TRAFFIC_GUIDANCE = (5.0, 7.0, 9.0)
TRAFFIC_SAMPLERS = (("Euler", "uniform"), ("Euler a", "uniform"), ("DPM++ 2M", "karras"), ("DDIM", "uniform"))
TINY_XL: Mapping[str, Mapping[str, Any]] = {
    **STAND_IN,
    "unet": {
        **STAND_IN["unet"],
        "cross_attention_dim": 32 + 16,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
        "transformer_layers_per_block": 1,
    },
    "text_encoder_2": {
        **STAND_IN["text_encoder"],
        "hidden_size": 16,
        "projection_dim": 16,
    },
}


@dataclass(frozen=True)
class Model:
    """`size` is the side of its pictures in pixels, `sizes` what differs from the family's."""

    name: str
    family: Family
    size: int
    sizes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return Kind(family=self.family, sizes=json.dumps(self.sizes))


FULL = (Model("sd15", sd1.FAMILY, 512), Model("sdxl", sdxl.FAMILY, 1024))
TINY = (Model("sd15", sd1.FAMILY, 64, STAND_IN), Model("sdxl", sdxl.FAMILY, 64, TINY_XL))


class Report:
    """Tables of rows, in two files that are written anew with every row."""

    def __init__(self, folder: Path, name: str, about: Mapping[str, Any], seconds: float) -> None:
        self._path = folder / name
        self._about = about
        self._until = time.monotonic() + seconds
        self._tables: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, **row: Any) -> None:
        print(table, row, flush=True)
        self._tables.setdefault(table, []).append(row)
        text = json.dumps({**self._about, **self._tables}, indent=1)
        self._path.with_suffix(".json").write_text(text + "\n")
        self._path.with_suffix(".md").write_text("\n".join(self._markdown()) + "\n")

    def time_for(self, seconds: float, what: str) -> bool:
        """Whether so much is left; if not, that is a result too."""
        left = self._until - time.monotonic()
        if left < seconds:
            self.add("left out", what=what)
        return left >= seconds

    def __getitem__(self, table: str) -> list[dict[str, Any]]:
        return self._tables.get(table, [])

    def _markdown(self) -> Iterator[str]:
        yield f"# One GPU, {self._about['date']}, {self._about['device']}"
        yield ""
        yield from (f"{name}: {value}  " for name, value in self._about.items())
        for table, rows in self._tables.items():
            names = list(rows[0])
            yield from (
                "",
                f"## {table.capitalize()}",
                "",
                f"| {' | '.join(names)} |",
                "|---" * len(names) + "|",
            )
            yield from (f"| {' | '.join(_told(row.get(name)) for name in names)} |" for row in rows)


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Scale:
    """How much is measured: at most so many rows, pictures of so many steps, and another's neighbours."""

    rows: int
    pictures: int
    steps: Sequence[int]
    neighbours: int
    compiled_rows: Sequence[int]
    matmul: int


FULL_SCALE = Scale(
    rows=64, pictures=24, steps=(8, 20, 30), neighbours=7, compiled_rows=(2, 8, 16), matmul=8192
)
TINY_SCALE = Scale(rows=4, pictures=2, steps=(2, 3), neighbours=2, compiled_rows=(2,), matmul=256)


@dataclass(frozen=True)
class Setting:
    """What all measurements share."""

    device: torch.device
    dtype: torch.dtype
    recorder: Recorder
    mode: str
    backend: str
    scale: Scale

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], *, least: float = 0.3, repeats: int = 3) -> float:
        """Of one call, the median of repeats that last so long; the calls before are not counted."""
        for _ in range(2):
            call()
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        count = max(1, min(50, int(least / repeats / (time.perf_counter() - began))))
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            for _ in range(count):
                call()
            self.wait()
            taken.append((time.perf_counter() - began) / count)
        return statistics.median(taken)

    def peak(self) -> float | None:
        """GiB since the last time this was asked."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


def matmul_rate(setting: Setting, side: int) -> float:
    """TFLOP/s of one large product in the dtype of the run: what the device does at best."""
    a, b = (torch.randn(side, side, device=setting.device, dtype=setting.dtype) for _ in range(2))
    return 2 * side**3 / setting.seconds(lambda: a @ b, least=1.0) / 1e12


def random_checkpoint(model: Model, setting: Setting) -> LoadedCheckpoint:
    """Weights that keep what passes through them of about its size, made where they are used."""
    kind = model.kind
    checkpoint = assemble(*kind.build(), device=setting.device, dtype=setting.dtype, kind=kind)
    torch.manual_seed(0)
    for module in checkpoint.modules:
        for part in module.modules():
            for name, weight in part.named_parameters(recurse=False):
                if weight.ndim > 1:
                    nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))
                else:
                    nn.init.constant_(
                        weight, 1.0 if "norm" in type(part).__name__.lower() and name == "weight" else 0
                    )
    return checkpoint


def example(checkpoint: LoadedCheckpoint, rows: int, size: int) -> Inputs:
    """What the UNet is called with for so many rows."""
    seen: list[Inputs] = []

    def grab(inputs: Inputs) -> Tensor:
        seen.append(inputs)
        return inputs.x[:, :4]

    with called(checkpoint, grab):
        call_for(checkpoint, rows, size, size)
    return seen[0]


@contextmanager
def called(checkpoint: LoadedCheckpoint, call: Call) -> Iterator[None]:
    denoiser = checkpoint.denoiser
    before, denoiser.call = denoiser.call, call
    try:
        yield
    finally:
        denoiser.call = before


def gflop(model: Model, inputs: Inputs) -> float:
    """Of one row, a multiplication with its addition as two."""
    unet = nn.Module.to(model.kind.build()[0], inputs.x.dtype).eval()
    one = Inputs._make(None if each is None else each[:1].to("meta") for each in inputs)
    with FlopCounterMode(display=False) as counter:
        evaluate(unet, one)
    return float(counter.get_total_flops()) / 1e9


def kernels(model: Model, checkpoint: LoadedCheckpoint, report: Report) -> None:
    """Attention as a replica has it; the choice is told."""
    unet = checkpoint.modules[0]
    began = time.perf_counter()
    choice = choose(attention_layers(unet), next(unet.parameters()))
    make_lean(unet, choice)
    for (width, crossed), name in choice.items():
        seconds = time.perf_counter() - began
        report.add(
            "attention", model=model.name, width=width, crossed=crossed, kernel=name, all_seconds=seconds
        )


def ladder(most: int) -> list[int]:
    return [rows for rows in candidates(most) if rows > 1]


def sweep(
    model: Model,
    checkpoint: LoadedCheckpoint,
    call: Call,
    way: str,
    rows: Sequence[int],
    setting: Setting,
    report: Report,
) -> None:
    """Milliseconds of a call by rows, how near that is to the device's best, and what a step takes more."""
    per_row = gflop(model, example(checkpoint, 1, model.size))
    best = report["matmul"][0]["tflops"]
    for count in rows:
        if not report.time_for(15, f"{model.name}, {way}, {count} rows"):
            return
        inputs = example(checkpoint, count, model.size)
        setting.peak()
        try:
            seconds = setting.seconds(lambda inputs=inputs: call(inputs))  # type: ignore[misc]
        except torch.OutOfMemoryError:
            report.add("left out", what=f"{model.name}, {way}, {count} rows: out of memory")
            return
        peak = setting.peak()
        with called(checkpoint, call):
            step = statistics.median(call_for(checkpoint, count, model.size, model.size) for _ in range(3))
        tflops = count * per_row / seconds / 1e3
        report.add(
            "calls",
            model=model.name,
            way=way,
            rows=count,
            ms=1e3 * seconds,
            rows_per_second=count / seconds,
            tflops=tflops,
            mfu=tflops / best,
            host_ms=1e3 * (step - seconds),
            peak_gib=peak,
        )


def seconds_by_rows(report: Report, model: Model, way: str) -> dict[int, float]:
    own = [row for row in report["calls"] if row["model"] == model.name and row["way"] == way]
    return {row["rows"]: row["ms"] / 1e3 for row in own}


def traffic(model: Model, count: int, lengths: Sequence[int]) -> list[Job]:
    """Pictures of one size that differ in everything else."""
    rng = random.Random(0)
    (plain,) = jobs(1, model.size, 20)
    made = []
    for place in range(count):
        sampler, schedule = rng.choice(TRAFFIC_SAMPLERS)
        settings: dict[str, Any] = {
            "sampler": sampler,
            "schedule": schedule,
            "guidance_scale": rng.choice(TRAFFIC_GUIDANCE),
        }
        steps = rng.choice(lengths)
        made.append(dataclasses.replace(plain, id=str(place), seed=place, steps=steps, **settings))
    return made


def drawn(
    checkpoint: LoadedCheckpoint, work: Sequence[Job], most: int
) -> tuple[dict[str, Any], list[StepStats]]:
    """Each job's picture by its id, through the engine."""
    steps: list[StepStats] = []
    engine = Engine(checkpoint, max_rows=most, on_step=steps.append)
    for job in work:
        engine.add(job)
    pictures: dict[str, Any] = {}
    while len(engine):
        for done in engine.step():
            assert isinstance(done.outcome, np.ndarray), done.outcome
            pictures[done.row.job.id] = done.outcome
    return pictures, steps


def ours(model: Model, checkpoint: LoadedCheckpoint, way: str, setting: Setting, report: Report) -> None:
    """The engine as a replica runs it."""
    work = traffic(model, setting.scale.pictures, setting.scale.steps)
    drawn(checkpoint, work[:2], setting.scale.rows)
    setting.wait()
    setting.peak()
    began = time.perf_counter()
    _, steps = drawn(checkpoint, work, setting.scale.rows)
    setting.wait()
    seconds = time.perf_counter() - began
    evaluated = [step for step in steps if step.operation == "evaluate"]
    share = {
        name: sum(step.seconds for step in steps if step.operation == name) / seconds
        for name in ("evaluate", "decode")
    }
    report.add(
        "pictures",
        model=model.name,
        system=f"engine, {way}",
        pictures=len(work),
        seconds=seconds,
        per_second=len(work) / seconds,
        mean_rows=statistics.mean(step.rows for step in evaluated),
        evaluating=share["evaluate"],
        decoding=share["decode"],
        outside_calls_ms=1e3 * statistics.mean(step.seconds - step.model_seconds for step in evaluated),
        peak_gib=setting.peak(),
    )


def theirs(model: Model, checkpoint: LoadedCheckpoint, way: str, setting: Setting, report: Report) -> None:
    """diffusers' pipeline with its own attention, one request after the other."""
    if setting.dtype is torch.float16:
        report.add("left out", what="diffusers: its VAE must have the UNet's dtype, and overflows float16")
        return
    pipeline = diffusers_pipeline(checkpoint)
    make_stock(checkpoint.modules[0])
    try:
        if way == "compiled":
            pipeline.unet = torch.compile(
                pipeline.unet, fullgraph=True, dynamic=False, mode=setting.mode, backend=setting.backend
            )
        work = traffic(model, setting.scale.pictures, setting.scale.steps)
        one_by_one(pipeline, work[:1])
        setting.peak()
        began = time.perf_counter()
        one_by_one(pipeline, work)
        setting.wait()
        seconds = time.perf_counter() - began
    finally:
        make_lean(checkpoint.modules[0])
    report.add(
        "pictures",
        model=model.name,
        system=f"diffusers behind a lock, {way}",
        pictures=len(work),
        seconds=seconds,
        per_second=len(work) / seconds,
        mean_rows=2.0,
        evaluating=None,
        decoding=None,
        outside_calls_ms=None,
        peak_gib=setting.peak(),
    )


def one_by_one(pipeline: Any, work: Sequence[Job]) -> None:
    for job in work:
        name = f"{job.sampler} Karras" if job.schedule == "karras" else job.sampler
        pipeline.scheduler = SCHEDULERS[name]()
        pipeline(
            job.prompt,
            negative_prompt=job.negative_prompt,
            num_inference_steps=job.steps,
            guidance_scale=job.guidance_scale,
            width=job.width,
            height=job.height,
            generator=torch.Generator().manual_seed(job.seed),
            output_type="np",
        )


def diffusers_pipeline(checkpoint: LoadedCheckpoint) -> Any:
    unet, vae, *texts = checkpoint.modules
    tokenizer = load_tokenizer()
    tokenizer.model_max_length = 77
    tokenizer.pad_token = "<|endoftext|>"
    shared = {"unet": unet, "vae": vae, "scheduler": SCHEDULERS["Euler"](), "tokenizer": tokenizer}
    if len(texts) == 2:
        pipeline = diffusers.StableDiffusionXLPipeline(
            **shared,
            text_encoder=texts[0],
            text_encoder_2=texts[1],
            tokenizer_2=tokenizer,
            add_watermarker=False,
        )
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **shared,
            text_encoder=texts[0],
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def invariance(
    model: Model, checkpoint: LoadedCheckpoint, way: str, setting: Setting, report: Report
) -> None:
    """What company does to a picture: it alone twice, and with others."""
    first, *others = traffic(model, 1 + setting.scale.neighbours, setting.scale.steps)
    alone, again, together = (
        drawn(checkpoint, work, setting.scale.rows)[0][first.id].astype(int)
        for work in ([first], [first], [first, *others])
    )
    report.add(
        "company",
        model=model.name,
        way=way,
        neighbours=setting.scale.neighbours,
        largest_alone_again=int(np.abs(again - alone).max()),
        largest=int(np.abs(together - alone).max()),
        share_that_differs=float((together != alone).mean()),
        beyond_one=float((np.abs(together - alone) > 1).mean()),
    )


def tuned(checkpoint: LoadedCheckpoint, way: str, model: Model, setting: Setting, report: Report) -> None:
    """As a replica tunes it, with the row counts that the sweep makes worthwhile."""
    compiles = way.startswith("compiled")
    counts = worthwhile(seconds_by_rows(report, model, "graphs"))
    settings = TuningSettings(
        graphs=True,
        compile=setting.mode if compiles else None,
        max_rows=setting.scale.rows,
        row_counts=tuple(setting.scale.compiled_rows) if compiles else counts,
        pictures=[(model.size, model.size)],
    )
    began = time.perf_counter()
    Tuner(settings, setting.device).tune(checkpoint)
    report.add(
        "tuning",
        model=model.name,
        way=way,
        row_counts=str(checkpoint.denoiser.row_counts),
        seconds=time.perf_counter() - began,
    )


def untuned(checkpoint: LoadedCheckpoint) -> None:
    checkpoint.denoiser.call = checkpoint.denoiser.plain().call
    checkpoint.denoiser.row_counts = None


def plain_ways(model: Model, checkpoint: LoadedCheckpoint, setting: Setting, report: Report) -> None:
    """All that needs no compiler."""
    rows, area = ladder(setting.scale.rows), (model.size // 8) ** 2
    eager: Call = partial(evaluate, checkpoint.modules[0])
    if setting.device.type == "cuda":
        for layout in (torch.contiguous_format, torch.channels_last):
            to: Any = partial(nn.Module.to, checkpoint.modules[0])
            to(memory_format=layout)
            way = f"eager, {str(layout).split('.')[-1]}"
            sweep(model, checkpoint, eager, way, rows[:: max(1, len(rows) // 3)], setting, report)
    kernels(model, checkpoint, report)
    sweep(model, checkpoint, eager, "eager", rows, setting, report)
    replayed = Graphs(eager, setting.recorder, RowCounts({area: tuple(rows)}))
    sweep(model, checkpoint, replayed, "graphs", rows, setting, report)
    # FP8: a sweep, `ours` and `invariance` of a checkpoint of that quality class belong here.
    if report.time_for(60, f"{model.name}, pictures, without a compiler"):
        ours(model, checkpoint, "eager", setting, report)
        invariance(model, checkpoint, "eager", setting, report)
        if seconds_by_rows(report, model, "graphs"):
            tuned(checkpoint, "graphs", model, setting, report)
            ours(model, checkpoint, "graphs", setting, report)
            invariance(model, checkpoint, "graphs", setting, report)
            untuned(checkpoint)
        theirs(model, checkpoint, "eager", setting, report)


def compiled_ways(model: Model, checkpoint: LoadedCheckpoint, setting: Setting, report: Report) -> None:
    area = (model.size // 8) ** 2
    kernels(model, checkpoint, report)
    compiled = Compiled(setting.mode, backend=setting.backend)
    call: Call = partial(compiled, checkpoint.modules[0])
    for rows in setting.scale.compiled_rows:
        if not report.time_for(100, f"{model.name}, compiled, {rows} rows"):
            return
        began = time.perf_counter()
        with compiled.compiling():
            call(example(checkpoint, rows, model.size))
        setting.wait()
        report.add("compiling", model=model.name, rows=rows, seconds=time.perf_counter() - began)
        sweep(model, checkpoint, call, "compiled", [rows], setting, report)
        replayed = Graphs(call, setting.recorder, RowCounts({area: (rows,)}))
        sweep(model, checkpoint, replayed, "compiled, graphs", [rows], setting, report)
    if report.time_for(90, f"{model.name}, pictures, compiled") and setting.backend == "inductor":
        tuned(checkpoint, "compiled, graphs", model, setting, report)
        ours(model, checkpoint, "compiled, graphs", setting, report)
        invariance(model, checkpoint, "compiled, graphs", setting, report)
        untuned(checkpoint)
    if report.time_for(90, f"{model.name}, diffusers compiled"):
        theirs(model, checkpoint, "compiled", setting, report)


@torch.inference_mode()
def run(models: Sequence[Model], setting: Setting, report: Report) -> None:
    side = setting.scale.matmul
    report.add("matmul", dtype=str(setting.dtype)[6:], side=side, tflops=matmul_rate(setting, side))
    ways = [plain_ways, compiled_ways] if setting.scale.compiled_rows else [plain_ways]
    for measured in ways:
        for model in models:
            if report.time_for(60, f"{model.name}, {measured.__name__}"):
                measured(model, random_checkpoint(model, setting), setting, report)
                gc.collect()
                if setting.device.type == "cuda":
                    torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--models", nargs="+", choices=["sd15", "sdxl"], default=["sd15", "sdxl"])
    parser.add_argument("--rows", type=int, help="at most")
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--mode", default="default", help="of torch.compile")
    parser.add_argument("--compiled-rows", type=int, nargs="*", help="none: no compiling")
    parser.add_argument("--seconds", type=float, default=560, help="for everything")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    given = {"rows": args.rows, "pictures": args.pictures, "compiled_rows": args.compiled_rows}
    chosen = {name: value for name, value in given.items() if value is not None}
    setting = Setting(
        device=device,
        dtype=DTYPES[args.dtype],
        recorder=CudaRecorder(device) if cuda else Rerunning(),
        mode=args.mode,
        backend="inductor" if cuda else "eager",
        scale=dataclasses.replace(TINY_SCALE if args.tiny else FULL_SCALE, **chosen),
    )
    name = torch.cuda.get_device_name(device) if cuda else "cpu"
    about = {
        "date": str(date.today()),
        "device": name,
        "machine": machine(),
        "settings": {"dtype": args.dtype, "mode": args.mode, **dataclasses.asdict(setting.scale)},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    slug = f"gpu-{'tiny-' if args.tiny else ''}{name.replace(' ', '-').lower()}-{args.dtype}-{date.today()}"
    report = Report(args.out, slug, about, args.seconds)
    models = [model for model in (TINY if args.tiny else FULL) if model.name in args.models]
    run(models, setting, report)


if __name__ == "__main__":
    main()
