"""Measurements as tables and as JSON."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

from benchmarks.figures import SLO_FACTOR, SLO_SHARE, Interval, goodput, in_time, percentile, ratio
from benchmarks.load import Measurement
from benchmarks.workloads import WORKLOADS

REFERENCES = ("lock", "litserve")
PACKAGES = ("diffusers", "litserve", "ray")


@dataclass(frozen=True)
class Setup:
    """What was found out of a model before the load.

    `psnr` is the smallest in dB between our picture and a baseline's, None if that was not checked;
    `capacity` the lock's pictures a second, 0 if no workload goes by it; `unloaded`
    the median seconds of each kind of request alone, by system.
    """

    model: str
    about: str
    size: int
    psnr: float | None
    capacity: float
    unloaded: Mapping[str, Mapping[str, float]]


def to_json(machine: str, setups: Sequence[Setup], results: Sequence[Measurement]) -> str:
    everything = {
        "machine": machine,
        "packages": {name: version(name) for name in PACKAGES},
        "setups": [asdict(each) for each in setups],
        "measurements": [asdict(each) for each in results],
    }
    return json.dumps(everything) + "\n"


def to_markdown(title: str, machine: str, setups: Sequence[Setup], results: Sequence[Measurement]) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [
        f"# {title}",
        "",
        machine,
        "",
        f"Against {packages}. In every repeat each system got the same requests, one system after the other, "
        "beginning with another each time, while all were up. All have the same weights, float32, and PNG "
        "code. In brackets 95 % bootstrap intervals over the repeats; percentiles are of all repeats "
        "together. CPU-seconds are of the server's whole process tree. Outside models: the share of the "
        "engine's steps.",
    ]
    for setup in setups:
        of_model = [each for each in results if each.model == setup.model]
        lines += ["", f"## {setup.model}: {setup.about}, {setup.size}×{setup.size}", "", check(setup)]
        for workload in dict.fromkeys(each.workload for each in of_model):
            of_workload = [each for each in of_model if each.workload == workload]
            repeats = len({each.repeat for each in of_workload})
            count = len(of_workload[0].outcomes)
            clients = WORKLOADS[workload].clients
            load = f"{clients} clients" if clients else f"Poisson arrivals, capacity {setup.capacity:.2f}/s"
            lines += ["", f"### {workload}: {load}, {repeats} × {count} requests", ""]
            lines += slo_table(of_workload, setup) if workload == "slo" else load_tables(of_workload)
    return "\n".join(lines) + "\n"


def check(setup: Setup) -> str:
    if setup.psnr is None:
        return "Output not checked."
    return (
        f"Output check: our picture against each baseline's, same seed, Euler, at least {setup.psnr:.1f} dB."
    )


def load_tables(results: Sequence[Measurement]) -> Iterator[str]:
    by_level = {level: by_system(results, level) for level in dict.fromkeys(m.level for m in results)}
    for level, systems in by_level.items():
        if level_is := WORKLOADS[results[0].workload].level_is:
            yield from (f"{level:.0%} {level_is}:", "")
        yield from load_table(systems)
        yield ""
        yield from kinds_list(systems)
    if results[0].workload == "disconnects":
        stay, leave = by_level.values()
        for name, runs in leave.items():
            needed = ratio([m.cpu_per_picture for m in stay[name]], [m.cpu_per_picture for m in runs])
            yield f"* {name}: {1 - needed.value:.0%} of the CPU-seconds wasted on those who left"


def by_system(results: Sequence[Measurement], level: float) -> dict[str, list[Measurement]]:
    """In order of the repeats."""
    chosen = sorted((m for m in results if m.level == level), key=lambda m: m.repeat)
    return {name: [m for m in chosen if m.system == name] for name in dict.fromkeys(m.system for m in chosen)}


def load_table(systems: Mapping[str, Sequence[Measurement]]) -> Iterator[str]:
    yield (
        "| system | pictures/s | vs lock | vs litserve | CPU s/picture | p50 s | p95 s | p99 s | failed "
        "| left | rows/call | outside models |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for name, runs in systems.items():
        ratios = [against(runs, systems.get(reference, [])) for reference in REFERENCES]
        seconds = [seconds for run in runs for _, seconds in run.latencies()]
        cells = [
            name,
            f"{statistics.fmean(m.pictures_per_second for m in runs):.2f}",
            *ratios,
            f"{statistics.fmean(m.cpu_per_picture for m in runs):.2f}",
            *(f"{percentile(seconds, share):.2f}" for share in (0.5, 0.95, 0.99)),
            str(sum(m.count("failed") for m in runs)),
            str(sum(m.count("left") for m in runs)),
            *engine_cells(runs),
        ]
        yield f"| {' | '.join(cells)} |"


def against(runs: Sequence[Measurement], reference: Sequence[Measurement]) -> str:
    if not reference:
        return "–"
    return told(ratio([m.pictures_per_second for m in runs], [m.pictures_per_second for m in reference]))


def told(interval: Interval) -> str:
    return f"{interval.value:.2f}× [{interval.low:.2f}, {interval.high:.2f}]"


def engine_cells(runs: Sequence[Measurement]) -> tuple[str, str]:
    counts = [m.engine for m in runs if m.engine]
    calls, seconds = sum(c.calls for c in counts), sum(c.seconds for c in counts)
    if not (calls and seconds):
        return "–", "–"
    rows, inside = sum(c.rows for c in counts) / calls, sum(c.model_seconds for c in counts) / seconds
    return f"{rows:.1f}", f"{1 - inside:.1%}"


def kinds_list(systems: Mapping[str, Sequence[Measurement]]) -> Iterator[str]:
    """The slowest of each kind, where there are kinds."""
    for name, runs in systems.items():
        latencies = [each for run in runs for each in run.latencies()]
        kinds = sorted({kind for kind, _ in latencies} - {""})
        p99 = [f"{kind} {percentile([s for k, s in latencies if k == kind], 0.99):.2f} s" for kind in kinds]
        if p99:
            yield f"* {name}: p99 {', '.join(p99)}"


def slo_table(results: Sequence[Measurement], setup: Setup) -> Iterator[str]:
    """The share in time at each rate, and the goodput: a system is not asked for more once it fails."""
    names = list(dict.fromkeys(m.system for m in results))
    levels = sorted({m.level for m in results})
    yield f"In time: within {SLO_FACTOR:g}× what the kind takes alone on that system. Its share, by rate:"
    yield ""
    heads = [f"{level * setup.capacity:.2f}/s" for level in levels]
    yield f"| system | {' | '.join(heads)} | goodput | vs lock |"
    yield "|---" * (len(levels) + 3) + "|"
    goodputs = {name: [goodput(each) for each in shares(results, name, setup)] for name in names}
    for name in names:
        by_rate = shares(results, name, setup)
        rates = [level * setup.capacity for level in levels]
        seen = [[each[rate] for each in by_rate if rate in each] for rate in rates]
        cells = [f"{statistics.fmean(each):.0%}" if each else "" for each in seen]
        relative = told(ratio(goodputs[name], goodputs["lock"])) if "lock" in goodputs else "–"
        yield f"| {name} | {' | '.join(cells)} | {statistics.fmean(goodputs[name]):.2f}/s | {relative} |"


def shares(results: Sequence[Measurement], system: str, setup: Setup) -> list[dict[float, float]]:
    """By repeat: the share in time at each rate."""
    runs = [m for m in results if m.system == system]
    return [
        {m.level * setup.capacity: share_in_time(m, setup) for m in runs if m.repeat == repeat}
        for repeat in sorted({m.repeat for m in runs})
    ]


def share_in_time(measurement: Measurement, setup: Setup) -> float:
    return in_time(measurement.latencies(), measurement.count("failed"), setup.unloaded[measurement.system])


def keeps_up(measurement: Measurement, setup: Setup) -> bool:
    return share_in_time(measurement, setup) >= SLO_SHARE
