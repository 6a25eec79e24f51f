"""What a gateway does besides answering."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def repeat(
    name: str, turn: Callable[[], Awaitable[None]], seconds: float, woken: asyncio.Event | None = None
) -> NoReturn:
    """Take turns until cancelled, with that pause between or until woken. One that fails is logged, by this
    name; the next may not. The last one is taken to its end."""
    woken = woken or asyncio.Event()
    while True:
        woken.clear()
        await to_the_end(_logged(name, turn))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for swallows cancellation in Python 3.11
                await woken.wait()


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """What work returns. If the caller is cancelled meanwhile, that happens when it is done."""
    working = asyncio.create_task(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise


async def _logged(name: str, turn: Callable[[], Awaitable[None]]) -> None:
    try:
        await turn()
    except Exception:
        logger.exception("%s failed and will be tried again", name)
