"""An order's way as server-sent events: where it waits, how far it is, and its end, after which they end."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic_core import to_json
from starlette.types import Receive

from ingress import orders
from ingress.deps import Service
from ingress.store.orders import OPEN, StoredOrder

POLL_SECONDS = 0.5
SILENT_POLLS = 30
"""After 15 seconds without an event a comment says that the connection is alive."""


async def events(id: str, service: Service, receive: Receive) -> AsyncIterator[bytes]:
    """What is now, then each change. An event's id is the order's state.

    Ends after the final event, and when the client disconnects.
    """
    left = asyncio.ensure_future(_left(receive))
    told = Told()
    silent = 0
    try:
        while not left.done() and (order := await service.orders.find(id)) is not None:
            event = await told.next(order, service)
            silent = 0 if event else silent + 1
            if event:
                yield event
            elif silent % SILENT_POLLS == 0:
                yield KEEPALIVE_COMMENT
            if order.state not in OPEN:
                return
            await asyncio.wait([left], timeout=POLL_SECONDS)
    finally:
        left.cancel()


class Told:
    """What one client knows of an order."""

    def __init__(self) -> None:
        self._last: tuple[str, dict[str, Any]] | None = None
        self._preview_id: int | None = None

    async def next(self, order: StoredOrder, service: Service) -> bytes | None:
        """The event that says what is new."""
        preview: dict[str, str] = {}
        if order.state == "queued":
            name, data = "queued", {"place": await service.orders.place(order.id)}
        elif order.state == "running":
            name, data, preview = await self._progress(order, service)
        else:
            name, data = order.state, (await orders.status(order, service)).model_dump()
        if (name, data) == self._last and not preview:
            return None
        self._last = (name, data)
        return format_sse_event(event=name, data_str=to_json(data | preview).decode(), id=order.state)

    async def _progress(
        self, order: StoredOrder, service: Service
    ) -> tuple[str, dict[str, Any], dict[str, str]]:
        shown = await service.backend.progress(order.key, order.name, preview=True)
        if shown is None:
            return "progress", {"progress": 0.0, "eta": None}, {}
        data = {
            "progress": shown.progress,
            "eta": shown.eta,
            "sampling_step": shown.sampling_step,
            "sampling_steps": shown.sampling_steps,
        }
        if not shown.preview or shown.preview_id == self._preview_id:
            return "progress", data, {}
        self._preview_id = shown.preview_id
        return "progress", data, {"preview": base64.b64encode(shown.preview).decode()}


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
