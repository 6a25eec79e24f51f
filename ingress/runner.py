"""Runs stored orders, whichever gateway they came through, and drops none of them."""

import asyncio
import logging
import random
from functools import partial

from engine.protocol import (
    AtelierError,
    DeadlineExceeded,
    JobAborted,
    JobFailed,
    Overloaded,
    Unavailable,
)
from ingress import orders
from ingress.background import repeat, to_the_end
from ingress.deps import Service
from ingress.errors import described
from ingress.store.orders import Claimed

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How soon other gateways' orders are seen, and that an order of one's own was aborted."""

PAUSES = (0.5, 60.0)
"""Seconds between two tries of an order: the first, doubled at each further one, and the most."""

LOST = JobFailed("The job was given up: each gateway that worked on it was lost.")


class Runner:
    """One gateway's. Cancelling `run` is as if its process were killed: its orders wait for their leases to
    end. `release` hands them back at once."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._orders = service.orders
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        pause = min(POLL_SECONDS, self._service.settings.orders.lease_seconds / 5)
        self._orders.came = asyncio.Event()  # of this event loop
        async with asyncio.TaskGroup() as group:
            await repeat("running orders", partial(self._turn, group), pause, self._orders.came)

    async def release(self) -> None:
        """After `run` was cancelled."""
        if self._running:
            await self._orders.release(list(self._running))
        self._running.clear()

    async def _turn(self, group: asyncio.TaskGroup) -> None:
        await self._renew()
        await self._orders.take_back(described(LOST))
        while len(self._running) < self._service.settings.orders.max_running:
            order = await self._orders.claim()
            if order is None:
                return
            self._running[order.claim] = group.create_task(self._attend(order))

    async def _renew(self) -> None:
        """Keep what is held, and abort what is not: it has been aborted, or went to another gateway."""
        if not self._running:
            return
        held = await self._orders.renew(list(self._running))
        for claim in self._running.keys() - held:
            self._running.pop(claim).cancel()

    async def _attend(self, order: Claimed) -> None:
        try:
            await self._carry_out(order)
        except Exception:
            logger.exception("what became of job %s cannot be stored, and it will be run again", order.id)
        self._running.pop(order.claim, None)  # not where it was cancelled: `release` needs it
        self._orders.came.set()

    async def _carry_out(self, order: Claimed) -> None:
        """Draw it, and store what came of that, also where the gateway is stopped at that moment."""
        try:
            answer = await orders.drawn(order, self._service)
        except (Unavailable, Overloaded, DeadlineExceeded) as error:
            await to_the_end(self._postpone(order, error))
        except JobAborted:
            await to_the_end(self._orders.finish(order.claim, "aborted"))
        except Exception as error:
            if not isinstance(error, AtelierError):
                logger.exception("job %s failed", order.id)
            await to_the_end(self._orders.finish(order.claim, "failed", error=described(error)))
        else:
            await to_the_end(self._keep(order, answer))

    async def _postpone(self, order: Claimed, error: Unavailable | Overloaded | DeadlineExceeded) -> None:
        if not await self._orders.postpone(order.claim, _pause(order, error)):
            await self._orders.finish(order.claim, "failed", error=described(error))

    async def _keep(self, order: Claimed, answer: str) -> None:
        if not await self._orders.finish(order.claim, "done", answer=answer):
            await self._service.results.drop(order.claim)


def _pause(order: Claimed, error: Unavailable | Overloaded | DeadlineExceeded) -> float:
    """Seconds, at least as many as the error asks for, within bounds."""
    first, most = PAUSES
    doubled = min(most, first * 2.0 ** min(order.tries - 1, 20))
    asked = 0.0 if isinstance(error, DeadlineExceeded) else min(error.retry_after, most)
    return max(doubled, asked) * random.uniform(1, 1.25)
