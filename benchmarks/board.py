"""What the board can take: `python -m benchmarks.board`.

The actor as the service runs it, on a Ray of its own, is sent reports by many callers at once. Then the board
itself, in this process, knows a thousand replicas and the orders that keep them busy.
"""

import asyncio
import os
import time
from collections.abc import Callable
from datetime import date

import psutil
import ray

from benchmarks.machine import RESULTS, machine
from deployments.board.board import Board, OrderReport, Question
from deployments.board.remote import BoardAway, RayBoard
from engine.protocol import JobProgress
from ingress.backend import Order

CALLERS = 32
SECONDS = 5.0
REPLICAS = 1000
JOBS = 16
"""Of a replica, each of an order of its own."""
GATEWAYS = 320


def order(number: int) -> OrderReport:
    made = Order(
        id=f"{number:032x}",
        key=f"key-{number % 50}",
        kind="txt2img",
        checkpoint="demo",
        jobs=(f"{number:032d}",),
        batch_size=1,
        steps=20,
        timestamp="20260101000000",
    )
    return OrderReport(order=made, number=number, seconds=10 - number / 1e4, ended=frozenset())


def jobs(replica: int) -> list[JobProgress]:
    numbers = range(replica * JOBS, (replica + 1) * JOBS)
    return [JobProgress(job_id=f"{n:032d}", done=3, total=20, running=True) for n in numbers]


def actor_seconds() -> float:
    """Processor time of the board's actor so far."""
    [actor] = [
        each
        for each in psutil.process_iter()
        if each.name().startswith("ray::Board") and psutil.Process() in each.parents()
    ]
    times = actor.cpu_times()
    return float(times.user + times.system)


async def calls(preview: bytes) -> tuple[float, float]:
    """Reports of replicas that the actor answers in a second, while CALLERS wait for one each, and its
    milliseconds of processor time for each. One job of a report has a preview."""
    board = RayBoard()
    while True:
        try:
            await board.pending("")
            break
        except BoardAway:
            await asyncio.sleep(0.1)
    before, end, answered = actor_seconds(), time.monotonic() + SECONDS, 0

    async def call(replica: int) -> None:
        nonlocal answered
        first, *others = jobs(replica)
        shown = JobProgress(job_id=first.job_id, done=3, total=20, running=True, preview=preview)
        while time.monotonic() < end:
            await board.report_jobs(str(replica), "demo", [shown, *others], 100.0)
            answered += 1

    await asyncio.gather(*(call(replica) for replica in range(CALLERS)))
    return answered / SECONDS, 1e3 * (actor_seconds() - before) / answered


def milliseconds(times: int, call: Callable[[int], object]) -> float:
    """Of one call, of this process' own processor time."""
    began = time.process_time()
    for number in range(times):
        call(number)
    return 1e3 * (time.process_time() - began) / times


def policy() -> list[tuple[str, float]]:
    board = Board(time.monotonic)
    each = REPLICAS * JOBS // GATEWAYS
    orders = [[order(number) for number in range(g * each, (g + 1) * each)] for g in range(GATEWAYS)]
    reports = [jobs(replica) for replica in range(REPLICAS)]
    questions = [Question(f"key-{number % 50}", None, True) for number in range(REPLICAS)]
    return [
        (
            f"report of a gateway, its {each} orders new",
            milliseconds(GATEWAYS, lambda g: board.report_orders(str(g), orders[g], [])),
        ),
        (
            f"report of a replica, {JOBS} jobs",
            milliseconds(REPLICAS, lambda r: board.report_jobs(str(r), "demo", reports[r], 100.0)),
        ),
        (
            f"report of a gateway, its {each} orders known",
            milliseconds(GATEWAYS, lambda g: board.report_orders(str(g), orders[g], [])),
        ),
        ("question, the queue to be looked at", milliseconds(1, lambda _: board.progress(questions[:1]))),
        ("question", milliseconds(REPLICAS, lambda n: board.progress(questions[n : n + 1]))),
        (
            f"report of a gateway, its {each} orders closed",
            milliseconds(GATEWAYS, lambda g: board.report_orders(str(g), [], orders[g])),
        ),
    ]


def main() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    rates = {size: asyncio.run(calls(bytes(size))) for size in (0, 4096)}
    ray.shutdown()
    lines = [f"# The board, {date.today()}", "", "| | |", "|---|---|"]
    for size, (rate, cost) in rates.items():
        name = f"the actor, reports of {JOBS} jobs and {size} bytes of preview"
        lines.append(f"| {name} | {rate:.0f} a second, {cost:.2f} ms of its core |")
    for name, cost in policy():
        lines.append(f"| {name} | {cost:.2f} ms |")
    known = f"{REPLICAS} replicas, {GATEWAYS} gateways, {REPLICAS * JOBS} orders known; {CALLERS} callers."
    text = "\n".join([*lines, "", known, "", machine()]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"board-{date.today()}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
