"""Pictures a second as bars, a panel for each workload, with 95 % intervals over the repeats."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Interval, mean
from benchmarks.load import Measurement
from benchmarks.report import Report, by_system, of_workload

Panel = tuple[str, Mapping[str, Interval]]
WIDTH, HEIGHT = 3.2, 2.8
"""Inches of a panel."""
ACROSS = 4
"""The most panels side by side."""
CHARACTERS = 60
"""Of the smallest letters that fit over one."""


def draw(report: Report, path: Path) -> None:
    """Writes a PNG; nothing where no workload has a rate of its own to compare."""
    from matplotlib.figure import Figure  # of the extra `bench`

    shown = list(panels(report))
    if not shown:
        return
    across = min(len(shown), ACROSS)
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(WIDTH * across, HEIGHT * down), layout="constrained")
    for place, (title, systems) in enumerate(shown, start=1):
        draw_panel(figure.add_subplot(down, across, place), title, systems)
    figure.supylabel("pictures/s", fontsize=8)
    figure.suptitle(textwrap.fill(report.machine, CHARACTERS * across), fontsize=6)
    figure.savefig(path, dpi=150)


def draw_panel(axis: Any, title: str, systems: Mapping[str, Interval]) -> None:
    values = [each.value for each in systems.values()]
    below = [each.value - each.low for each in systems.values()]
    above = [each.high - each.value for each in systems.values()]
    axis.bar(list(systems), values, yerr=[below, above], capsize=3)
    axis.set_title(title, fontsize=9)
    axis.tick_params(axis="x", labelrotation=45, labelsize=8)


def panels(report: Report) -> Iterator[Panel]:
    """A title, and pictures a second by system. `slo` has no such rate: what it offers is set."""
    for setup in report.setups:
        for workload in setup.workloads:
            results = of_workload(report.measurements, setup, workload)
            levels = list(dict.fromkeys(m.level for m in results)) if workload != "slo" else []
            for level in levels:
                suffix = f", {level:.0%}" if len(levels) > 1 else ""
                yield f"{setup.model}, {workload}{suffix}", rates(by_system(results, level))


def rates(systems: Mapping[str, Sequence[Measurement]]) -> dict[str, Interval]:
    return {name: mean([m.pictures_per_second for m in runs]) for name, runs in systems.items()}
