"""Deletes what has been kept for long enough. Any number of gateways may do so at once."""

import asyncio
import logging

from ingress.background import repeat
from ingress.deps import Service

logger = logging.getLogger(__name__)

EXPIRE_SECONDS = 60.0
SWEEP_SECONDS = 3600.0
AT_ONCE = 500
"""Claims that one query asks about."""


class Janitor:
    def __init__(self, service: Service) -> None:
        self._orders = service.orders
        self._results = service.results

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(repeat("deleting what has expired", self.expire, EXPIRE_SECONDS))
            group.create_task(repeat("deleting what is of no order", self.sweep, SWEEP_SECONDS))

    async def expire(self) -> None:
        """Delete results and orders whose time has come."""
        for claim in await self._orders.expire_due():
            await self._results.drop(claim)
        await self._orders.forget()

    async def sweep(self) -> None:
        """Delete results of no order: of gateways that were killed before an order was done, or forgotten."""
        kept = sorted(await self._results.kept())
        for start in range(0, len(kept), AT_ONCE):
            claims = kept[start : start + AT_ONCE]
            orphans = set(claims) - await self._orders.with_results(claims)
            for claim in orphans:
                logger.info("results %s are of no order and are deleted", claim)
                await self._results.drop(claim)
