"""Measurements as tables, and as JSON and back: `python -m benchmarks.report` draws them again from JSON."""

import argparse
import json
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from benchmarks.baselines import xinference
from benchmarks.figures import (
    SLO_FACTOR,
    SLO_SHARE,
    Interval,
    goodput,
    in_time,
    percentile,
    ratio,
    ratio_of_percentiles,
)
from benchmarks.load import Measurement, Outcome
from benchmarks.systems import EngineCounts, Swaps
from benchmarks.workloads import WORKLOADS

REFERENCES = ("lock", "litserve", "ray", "swap", "xinference")
PACKAGES = ("diffusers", "litserve", "ray")


@dataclass(frozen=True)
class Setup:
    """What was found out of a model before the load of some workloads, on `checkpoints` of it.

    `psnr` is the smallest in dB between a picture of ours and a baseline's, None if that was not checked;
    `capacity` the first system's pictures a second, 0 if no workload goes by it; `unloaded`
    the median seconds of each kind of request alone, by system.
    """

    model: str
    about: str
    size: int
    psnr: float | None
    capacity: float
    unloaded: Mapping[str, Mapping[str, float]]
    workloads: tuple[str, ...]
    checkpoints: int = 1


@dataclass(frozen=True)
class Report:
    """One run: when and where it was, against which packages, what it found."""

    title: str
    machine: str
    packages: Mapping[str, str]
    setups: Sequence[Setup]
    measurements: Sequence[Measurement]


def packages(systems: Collection[str]) -> dict[str, str]:
    """What systems are made of, and the versions."""
    own = {"xinference": xinference.version()} if "xinference" in systems else {}
    return {name: version(name) for name in PACKAGES} | own


def to_json(report: Report) -> str:
    return json.dumps(asdict(report)) + "\n"


def from_json(text: str) -> Report:
    told = json.loads(text)
    setups = [Setup(**{**each, "workloads": tuple(each["workloads"])}) for each in told.pop("setups")]
    measurements = [
        Measurement(
            **{
                **each,
                "outcomes": tuple(Outcome(**outcome) for outcome in each["outcomes"]),
                "engine": EngineCounts(**each["engine"]) if each["engine"] else None,
                "swaps": Swaps(**each["swaps"]) if each["swaps"] else None,
            }
        )
        for each in told.pop("measurements")
    ]
    return Report(**told, setups=setups, measurements=measurements)


def to_markdown(report: Report) -> str:
    against_whom = ", ".join(f"{name} {number}" for name, number in report.packages.items())
    jpeg = "; but xinference answers with JPEG, with which ours is compared as JPEG"
    but = jpeg if "xinference" in report.packages else ""
    lines = [
        f"# {report.title}",
        "",
        report.machine,
        "",
        f"Against {against_whom}. In every repeat each system got the same requests, one system after the "
        "other, beginning with another each time, while all were up. All have the same weights, float32 "
        f"unless their name says otherwise, and PNG code{but}. In brackets 95 % bootstrap intervals over the "
        "repeats; percentiles are of all repeats together. CPU-seconds are of the server's whole process "
        "tree. Of the engine: calls are never padded with rows, the host's time is that of a step outside "
        "models, and the join delay is the mean from a job's coming to the replica to its first step.",
    ]
    for setup in report.setups:
        several = f", {setup.checkpoints} checkpoints" if setup.checkpoints > 1 else ""
        lines += [
            "",
            f"## {setup.model}: {setup.about}, {setup.size}×{setup.size}{several}",
            "",
            check(setup),
        ]
        for workload in setup.workloads:
            results = of_workload(report.measurements, setup, workload)
            repeats = len({each.repeat for each in results})
            count = len(results[0].outcomes)
            clients = WORKLOADS[workload].clients
            load = f"{clients} clients" if clients else f"open loop, capacity {setup.capacity:.2f}/s"
            lines += ["", f"### {workload}: {load}, {repeats} × {count} requests", ""]
            lines += slo_table(results, setup) if workload == "slo" else load_tables(results)
    return "\n".join(lines) + "\n"


def of_workload(results: Sequence[Measurement], setup: Setup, workload: str) -> list[Measurement]:
    return [each for each in results if (each.model, each.workload) == (setup.model, workload)]


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
        for further in (kinds_table, engine_table, swaps_list, killed_list):
            if lines := list(further(systems)):
                yield from (*lines, "")
    if results[0].workload == "disconnects":
        yield from wasted(by_level)
    if WORKLOADS[results[0].workload].kills:
        yield from done_again(by_level)


def by_system(results: Sequence[Measurement], level: float) -> dict[str, list[Measurement]]:
    """In order of the repeats."""
    chosen = sorted((m for m in results if m.level == level), key=lambda m: m.repeat)
    return {name: [m for m in chosen if m.system == name] for name in dict.fromkeys(m.system for m in chosen)}


Systems = Mapping[str, Sequence[Measurement]]


def load_table(systems: Systems) -> Iterator[str]:
    references = [name for name in REFERENCES if name in systems]
    heads = [f"vs {name}" for name in references]
    yield row("system", "pictures/s", *heads, "CPU s/picture", "p50 s", "p95 s", "p99 s", "failed", "left")
    yield "|---" * (len(heads) + 8) + "|"
    for name, runs in systems.items():
        seconds = [seconds for run in runs for _, seconds in run.latencies()]
        yield row(
            name,
            f"{statistics.fmean(m.pictures_per_second for m in runs):.2f}",
            *(told(speedup(runs, systems[reference])) for reference in references),
            f"{statistics.fmean(m.cpu_per_picture for m in runs):.2f}",
            *(f"{percentile(seconds, share):.2f}" for share in (0.5, 0.95, 0.99)),
            str(sum(m.count("failed") for m in runs)),
            str(sum(m.count("left") for m in runs)),
        )


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def speedup(runs: Sequence[Measurement], reference: Sequence[Measurement]) -> Interval:
    return ratio([m.pictures_per_second for m in runs], [m.pictures_per_second for m in reference])


def told(interval: Interval) -> str:
    return f"{interval.value:.2f}× [{interval.low:.2f}, {interval.high:.2f}]"


def kinds_table(systems: Systems) -> Iterator[str]:
    """The slowest of each kind, where there are kinds, and how many times lower that is than the lock's."""
    kinds = sorted({kind for runs in systems.values() for run in runs for kind, _ in run.latencies()} - {""})
    if not kinds:
        return
    yield row("system", *(f"p99 s, {kind}" for kind in kinds), *(f"lock's over it, {kind}" for kind in kinds))
    yield "|---" * (1 + 2 * len(kinds)) + "|"
    for name, runs in systems.items():
        of_kinds = {kind: seconds_of(runs, kind) for kind in kinds}
        lower = {
            kind: told(ratio_of_percentiles(seconds_of(systems["lock"], kind), seconds, 0.99))
            for kind, seconds in of_kinds.items()
            if "lock" in systems
        }
        p99 = [f"{percentile(list(chain(*seconds)), 0.99):.2f}" for seconds in of_kinds.values()]
        yield row(name, *p99, *(lower.get(kind, "–") for kind in kinds))


def seconds_of(runs: Sequence[Measurement], kind: str) -> list[list[float]]:
    """By repeat."""
    return [[seconds for its, seconds in run.latencies() if its == kind] for run in runs]


def engine_table(systems: Systems) -> Iterator[str]:
    """What the service's own counters say."""
    counted = {name: [m.engine for m in runs if m.engine] for name, runs in systems.items()}
    totals = {name: EngineCounts.total(each) for name, each in counted.items() if each}
    seen = {name: total for name, total in totals.items() if total.calls and total.jobs}
    if not seen:
        return
    yield row("engine", "model rows/call", "host µs/step", "outside models", "join delay ms")
    yield "|---" * 5 + "|"
    for name, total in seen.items():
        host = total.seconds - total.model_seconds
        yield row(
            name,
            f"{total.rows / total.calls:.1f}",
            f"{1e6 * host / total.steps:.0f}",
            f"{host / total.seconds:.1%}",
            f"{1e3 * total.wait_seconds / total.jobs:.1f}",
        )


def swaps_list(systems: Systems) -> Iterator[str]:
    for name, runs in systems.items():
        swaps = [m.swaps for m in runs if m.swaps]
        if count := sum(each.count for each in swaps):
            seconds = sum(each.seconds for each in swaps)
            share = seconds / sum(m.seconds for m in runs)
            yield (
                f"* {name}: {count:.0f} changes of the checkpoint for {sum(m.pictures for m in runs)} "
                f"pictures, {1e3 * seconds / count:.0f} ms each, {share:.1%} of its time"
            )


def killed_list(systems: Systems) -> Iterator[str]:
    for name, runs in systems.items():
        rates = [run.rates_around(run.killed_at) for run in runs if run.killed_at]
        if rates:
            before, after = map(statistics.fmean, zip(*rates, strict=True))
            yield f"* {name}: {before:.2f} pictures/s before the replica died, {after:.2f} after"


def wasted(by_level: Mapping[float, Systems]) -> Iterator[str]:
    stay, leave = by_level.values()
    for name, runs in leave.items():
        needed = ratio([m.cpu_per_picture for m in stay[name]], [m.cpu_per_picture for m in runs])
        yield f"* {name}: {1 - needed.value:.0%} of the CPU-seconds wasted on those who left"


def done_again(by_level: Mapping[float, Systems]) -> Iterator[str]:
    """The same requests needed so many evaluations where no replica died."""
    whole, killed = by_level.values()
    for name, runs in killed.items():
        needed, made = (sum(m.engine.evaluations for m in each if m.engine) for each in (whole[name], runs))
        if needed:
            again = made - needed
            yield f"* {name}: {again:.0f} evaluations done again, {again / needed:.1%} of those needed"


def slo_table(results: Sequence[Measurement], setup: Setup) -> Iterator[str]:
    """The share in time at each rate, and the goodput: a system is not asked for more once it fails."""
    names = list(dict.fromkeys(m.system for m in results))
    levels = sorted({m.level for m in results})
    yield f"In time: within {SLO_FACTOR:g}× what the kind takes alone on that system. Its share, by rate:"
    yield ""
    heads = [f"{level * setup.capacity:.2f}/s" for level in levels]
    yield f"| system | {' | '.join(heads)} | goodput | vs lock |"
    yield "|---" * (len(levels) + 3) + "|"
    goodputs = {name: goodputs_of(results, name, setup) for name in names}
    for name in names:
        by_rate = shares(results, name, setup)
        rates = [level * setup.capacity for level in levels]
        seen = [[each[rate] for each in by_rate if rate in each] for rate in rates]
        cells = [f"{statistics.fmean(each):.0%}" if each else "" for each in seen]
        relative = told(ratio(goodputs[name], goodputs["lock"])) if "lock" in goodputs else "–"
        yield f"| {name} | {' | '.join(cells)} | {statistics.fmean(goodputs[name]):.2f}/s | {relative} |"


def goodputs_of(results: Sequence[Measurement], system: str, setup: Setup) -> list[float]:
    """By repeat."""
    return [goodput(each) for each in shares(results, system, setup)]


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


def main() -> None:
    from benchmarks.plot import draw  # which imports this module

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="JSON that `benchmarks.serving` has written")
    args = parser.parse_args()
    report = from_json(args.results.read_text())
    args.results.with_suffix(".md").write_text(to_markdown(report))
    draw(report, args.results.with_suffix(".png"))
    print(to_markdown(report))


if __name__ == "__main__":
    main()
