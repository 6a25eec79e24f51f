"""What this service is to reach on a CPU, and what it has: `python -m benchmarks.targets`, about an hour.

Each row is a ratio to another way to serve the same model, measured as `benchmarks.serving` does, with only
the systems up that the rows of one run compare. Rows that are named are run alone. Each keeps its last
figure, with its date and machine, in `benchmarks/results/targets.json`, of which the table is made; `--print`
runs none.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

from benchmarks.figures import Interval, ratio, ratio_of_percentiles
from benchmarks.load import Measurement
from benchmarks.machine import RESULTS, machine
from benchmarks.report import Setup, by_system, goodputs_of, row, seconds_of, speedup, swaps_list, told
from benchmarks.serving import Plan, carry_out

COST_FILES = "service-cost*.json"
"""What `benchmarks.service_cost` has left; the last by name counts."""
MOST_COST, COST_AIM = 12.0, 6.0
"""Milliseconds that the service may take for a request beside its picture, and those that it is to take."""

Figure = Callable[[Sequence[Measurement], Setup, str, str], Interval]


def pictures(results: Sequence[Measurement], setup: Setup, ours: str, theirs: str) -> Interval:
    """Times as many pictures a second."""
    systems = by_system(results, 1.0)
    return speedup(systems[ours], systems[theirs])


def goodput(results: Sequence[Measurement], setup: Setup, ours: str, theirs: str) -> Interval:
    """Times the rate at which requests are in time."""
    return ratio(goodputs_of(results, ours, setup), goodputs_of(results, theirs, setup))


def short_p99(results: Sequence[Measurement], setup: Setup, ours: str, theirs: str) -> Interval:
    """How many times lower the p99 of short requests is."""
    systems = by_system(results, 1.0)
    return ratio_of_percentiles(
        seconds_of(systems[theirs], "short"), seconds_of(systems[ours], "short"), share=0.99
    )


@dataclass(frozen=True)
class Run:
    """Load that the systems of several rows may meet together. `levels` are of workload `slo`."""

    model: str
    workload: str
    requests: int
    repeats: int
    warm_up: int = 8
    alone: int = 3
    levels: tuple[float, ...] = ()


# Of fewer requests too large a part is drawn when the last clients have no successors.
MIXED = Run("stand-in", "mixed", requests=96, repeats=5)
UNIFORM = Run("stand-in", "uniform", requests=48, repeats=5)
SHORT = Run("stand-in", "short-beside-long", requests=32, repeats=5)
MODELS = Run("stand-in", "models", requests=48, repeats=5)
SLO = Run("stand-in", "slo", requests=20, repeats=5)
FULL_MIXED = Run("full", "mixed", requests=12, repeats=3, warm_up=2)
FULL_SLO = Run(
    "full", "slo", requests=6, repeats=3, warm_up=2, alone=1, levels=(0.6, 0.85, 1.2, 1.7, 2.4, 3.4)
)


@dataclass(frozen=True)
class Target:
    """By `figure`, system `ours` is to be so many times as good as `theirs`."""

    about: str
    run: Run
    ours: str
    theirs: str
    figure: Figure
    at_least: float
    aim: float


TARGETS: Mapping[str, Target] = {
    "mixed-lock": Target("stand-in, mixed, pictures/s", MIXED, "atelier", "lock", pictures, 3.2, 4.0),
    "mixed-litserve": Target("stand-in, mixed, pictures/s", MIXED, "atelier", "litserve", pictures, 2.5, 3.0),
    "uniform-litserve": Target(
        "stand-in, uniform, pictures/s", UNIFORM, "atelier", "litserve", pictures, 1.0, 1.1
    ),
    "goodput": Target("stand-in, goodput at 5×", SLO, "atelier", "lock", goodput, 3.0, 4.5),
    "short-p99": Target("stand-in, p99 of 8 steps beside 50", SHORT, "atelier", "lock", short_p99, 3.0, 6.0),
    "models-swap": Target(
        "stand-in, eight checkpoints, pictures/s", MODELS, "atelier", "swap", pictures, 5.0, 10.0
    ),
    "full": Target("full SD 1.5, mixed, pictures/s", FULL_MIXED, "atelier", "lock", pictures, 1.5, 1.75),
    "full-bf16": Target(
        "full SD 1.5, mixed, pictures/s", FULL_MIXED, "atelier-bf16", "lock", pictures, 3.0, 3.8
    ),
    "full-goodput": Target("full SD 1.5, goodput at 5×", FULL_SLO, "atelier", "lock", goodput, 1.5, 1.6),
}


@dataclass(frozen=True)
class Kept:
    """What a target's row came to. `psnr`: the least of the run's output check, in dB, if there was one."""

    value: float
    low: float
    high: float
    requests: int
    repeats: int
    date: str
    machine: str
    psnr: float | None = None
    note: str = ""


def runs(names: Sequence[str]) -> Iterator[tuple[Run, dict[str, Target]]]:
    """Each run once, with those of the named targets that it serves."""
    for load in dict.fromkeys(TARGETS[name].run for name in names):
        yield load, {name: TARGETS[name] for name in names if TARGETS[name].run == load}


def plan(load: Run, targets: Mapping[str, Target]) -> Plan:
    """With the others' systems first: the first one's capacity sets the pace."""
    theirs, ours = ([getattr(each, side) for each in targets.values()] for side in ("theirs", "ours"))
    return Plan(
        load.model,
        (load.workload,),
        tuple(dict.fromkeys([*theirs, *ours])),
        load.requests,
        load.repeats,
        warm_up=load.warm_up,
        alone=load.alone,
        levels=load.levels,
    )


def measured(load: Run, targets: Mapping[str, Target]) -> dict[str, Kept]:
    setup, results = carry_out(plan(load, targets))
    seen_on, today = machine(), str(date.today())
    note = " ".join(swaps_list(by_system(results, 1.0)))
    return {
        name: Kept(
            **asdict(target.figure(results, setup, target.ours, target.theirs)),
            requests=load.requests,
            repeats=load.repeats,
            date=today,
            machine=seen_on,
            psnr=setup.psnr,
            note=note,
        )
        for name, target in targets.items()
    }


def table(kept: Mapping[str, Kept], cost: Sequence[str] = ()) -> Iterator[str]:
    """`cost` is the row of what the service adds to a request, if that was measured."""
    yield row(
        "row", "what", "ours", "against", "at least", "aim", "measured", "", "PSNR, dB", "repeats", "date"
    )
    yield "|---" * 11 + "|"
    for name, target in TARGETS.items():
        wanted = (f"{target.at_least:g}×", f"{target.aim:g}×")
        came_to = cells(kept[name], target) if name in kept else ["–", "", "", "", ""]
        yield row(name, target.about, target.ours, target.theirs, *wanted, *came_to)
    if cost:
        yield row(*cost)
    for note in dict.fromkeys(each.note for each in kept.values() if each.note):
        yield from ("", note)
    for seen_on in dict.fromkeys(each.machine for each in kept.values()):
        names = ", ".join(name for name, each in kept.items() if each.machine == seen_on)
        yield from ("", f"{names}: {seen_on}")


def cells(kept: Kept, target: Target) -> list[str]:
    return [
        told(Interval(kept.value, kept.low, kept.high)),
        verdict(kept.value, target.at_least, target.aim),
        f"{kept.psnr:.0f}" if kept.psnr else "",
        f"{kept.repeats} × {kept.requests}",
        kept.date,
    ]


def cost_row(folder: Path) -> list[str]:
    """Of the `service_ms` in the last of COST_FILES; empty without one."""
    files = sorted(folder.glob(COST_FILES))
    if not files:
        return []
    found = json.loads(files[-1].read_text())
    cost, requests = float(found["service_ms"]), str(found.get("requests", ""))
    says = verdict(-cost, -MOST_COST, -COST_AIM)
    bounds = [f"{MOST_COST:g} ms", f"{COST_AIM:g} ms"]
    about = "the service's cost of a request"
    day = files[-1].stem.removeprefix("service-cost-")
    return ["service-cost", about, "atelier", "–", *bounds, f"{cost:.1f} ms", says, "", requests, day]


def verdict(value: float, at_least: float, aim: float) -> str:
    if value >= aim:
        return "reached"
    return "enough" if value >= at_least else "missed"


def read(path: Path) -> dict[str, Kept]:
    if not path.exists():
        return {}
    kept = json.loads(path.read_text())
    return {name: Kept(**kept[name]) for name in TARGETS if name in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"all unless named: {', '.join(TARGETS)}")
    parser.add_argument("--print", action="store_true", help="what there is, without a run")
    parser.add_argument("--requests", type=int, help="in each repeat, instead of the row's own number")
    parser.add_argument("--repeats", type=int, help="instead of the row's own number")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    if unknown := set(args.rows) - TARGETS.keys():
        parser.error(f"row: {', '.join(sorted(unknown))} is not one of {', '.join(TARGETS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "targets.json"
    for own, targets in runs([] if args.print else args.rows or list(TARGETS)):
        load = replace(own, requests=args.requests or own.requests, repeats=args.repeats or own.repeats)
        kept = read(path) | measured(load, targets)
        path.write_text(json.dumps({name: asdict(each) for name, each in kept.items()}, indent=1) + "\n")
    text = "\n".join(table(read(path), cost_row(args.out))) + "\n"
    (args.out / "targets.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
