"""When gateways and replicas report to the board."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from deployments.board.remote import BoardAway

logger = logging.getLogger("ray.serve")

AWAY_SECONDS = 1.0
"""Until a board that is away is tried again."""


class Reporting:
    """Reports when woken, and then again and again while `is_busy`, else every `idle_seconds` or never.

    `report` returns how many seconds to wait before the next report, and may raise BoardAway.
    """

    def __init__(
        self,
        report: Callable[[], Awaitable[float]],
        is_busy: Callable[[], bool],
        idle_seconds: float | None = None,
    ) -> None:
        self._report = report
        self._is_busy = is_busy
        self._idle_seconds = idle_seconds
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is something to report."""
        self._woken.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._woken.clear()
            try:
                wait = await self._report()
            except BoardAway:
                wait = AWAY_SECONDS
            except Exception:
                logger.exception("a report to the board failed")
                wait = AWAY_SECONDS
            await asyncio.sleep(wait)
            if not self._is_busy():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._idle_seconds):
                        await self._woken.wait()
