"""Telling callers of orders that have ended, as the Standard Webhooks specification has it."""

import asyncio
import base64
import hashlib
import hmac
import logging
import random
from functools import partial

from ingress import orders
from ingress.background import repeat
from ingress.deps import Service
from ingress.errors import InvalidRequest
from ingress.outbound import SECONDS, Outbound, Undeliverable, checked_url
from ingress.settings import Settings
from ingress.store.deliveries import Deliveries, Delivery

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
AT_ONCE = 16
PAUSES = (5.0, 3600.0)
"""Seconds between two tries: the first, doubled at each further one, and the most."""
MAX_AGE = 24 * 3600.0
"""Seconds, after which a webhook is given up."""
GONE = 410
JSON = "application/json"


def checked_webhook(url: str | None, settings: Settings) -> str | None:
    """A request's field `webhook`. Raises `InvalidRequest` for what will never be told."""
    if not url:
        return None
    if settings.webhook_secret is None:
        raise InvalidRequest("webhook: not possible here, as no secret to sign webhooks with is configured.")
    return checked_url("webhook", url, settings.webhook_networks)


def signed(id: str, timestamp: int, body: bytes, secret: bytes) -> dict[str, str]:
    """The headers that say which message it is, when it was sent, and that we have sent it."""
    digest = hmac.digest(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


class Courier:
    """One gateway's share of what is to be told. Cancelling `run` loses nothing: another one tries again."""

    def __init__(self, service: Service, outbound: Outbound) -> None:
        self._service = service
        self._outbound = outbound
        self._deliveries = Deliveries(service.database)
        self._out: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            await repeat("sending webhooks", partial(self._turn, group), POLL_SECONDS)

    async def _turn(self, group: asyncio.TaskGroup) -> None:
        while len(self._out) < AT_ONCE:
            delivery = await self._deliveries.claim(2 * SECONDS)
            if delivery is None:
                return
            task = group.create_task(self._attend(delivery))
            self._out.add(task)
            task.add_done_callback(self._out.discard)

    async def _attend(self, delivery: Delivery) -> None:
        try:
            await self._deliver(delivery)
        except Exception:
            logger.exception("the webhook of job %s failed and is tried again", delivery.order)

    async def _deliver(self, delivery: Delivery) -> None:
        status, why = await self._tell(delivery)
        if 200 <= status < 300:
            await self._deliveries.end(delivery.id)
        elif status == GONE or delivery.age > MAX_AGE:
            logger.warning("the webhook of job %s is given up: %s", delivery.order, why)
            await self._deliveries.end(delivery.id)
        else:
            logger.info("the webhook of job %s is tried again: %s", delivery.order, why)
            await self._deliveries.postpone(delivery.id, pause(delivery.tries))

    async def _tell(self, delivery: Delivery) -> tuple[int, str]:
        """The status of the answer, or 0, and what to log. What is told is what `GET /v1/jobs/{id}` says."""
        secret = self._service.settings.webhook_secret
        if secret is None:
            return 0, "there is no secret to sign it with any more"
        order = await self._service.orders.find(delivery.order)
        assert order is not None, "orders are kept while there is something to tell of them"
        body = (await orders.status(order, self._service)).model_dump_json().encode()
        now = int(self._service.now().timestamp())
        headers = signed(delivery.id, now, body, secret.get_secret_value())
        try:
            status = await self._outbound.post(delivery.url, body, {**headers, "Content-Type": JSON})
        except Undeliverable as error:
            return 0, str(error)
        return status, f"it answers {status}"


def pause(tries: int) -> float:
    """Seconds until the next try, never the same for two: those that failed together do not come together."""
    first, most = PAUSES
    return min(most, first * 2.0 ** min(tries - 1, 20)) * random.uniform(1, 1.5)
