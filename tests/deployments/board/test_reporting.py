import asyncio
from collections.abc import AsyncIterator

import pytest

from deployments.board.remote import BoardAway
from deployments.board.reporting import Reporting

WAIT = 0.02


class Reporter:
    """Counts its reports."""

    def __init__(self, idle_seconds: float | None = None) -> None:
        self.busy = False
        self.away = False
        self.reported = asyncio.Semaphore(0)
        self.reporting = Reporting(self._report, lambda: self.busy, idle_seconds)

    async def _report(self) -> float:
        self.reported.release()
        if self.away:
            raise BoardAway
        return WAIT

    async def reports(self, times: int) -> None:
        for _ in range(times):
            await asyncio.wait_for(self.reported.acquire(), 2)

    async def is_silent(self) -> bool:
        await asyncio.sleep(5 * WAIT)
        return self.reported.locked()


@pytest.fixture
async def reporter() -> AsyncIterator[Reporter]:
    reporter = Reporter()
    running = asyncio.create_task(reporter.reporting.run())
    await reporter.reports(1)
    yield reporter
    running.cancel()


async def test_who_has_nothing_to_report_is_silent_until_woken(reporter: Reporter) -> None:
    assert await reporter.is_silent()
    reporter.reporting.wake()
    await reporter.reports(1)
    assert await reporter.is_silent()


async def test_who_is_busy_reports_again_and_again_as_often_as_told(reporter: Reporter) -> None:
    reporter.busy = True
    reporter.reporting.wake()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await reporter.reports(6)
    assert loop.time() - began >= 4 * WAIT


async def test_who_is_woken_again_and_again_reports_no_more_often_than_told(reporter: Reporter) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + 10 * WAIT
    while loop.time() < end:
        reporter.reporting.wake()
        await asyncio.sleep(WAIT / 10)
    await reporter.reports(1)
    reports = 1
    while not reporter.reported.locked():
        await reporter.reports(1)
        reports += 1
    assert reports <= 11


async def test_a_board_that_is_away_is_tried_again(reporter: Reporter) -> None:
    reporter.busy = reporter.away = True
    reporter.reporting.wake()
    await reporter.reports(1)
    reporter.away = False
    await reporter.reports(2)


async def test_an_idle_reporter_reports_now_and_then() -> None:
    reporter = Reporter(idle_seconds=WAIT)
    running = asyncio.create_task(reporter.reporting.run())
    await reporter.reports(3)
    running.cancel()
