"""One order's jobs, together: sent at once, joined in order, and none left behind."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from starlette.types import Receive

from engine.protocol import DeadlineExceeded, Enlargement, Interrupted, Job, JobResult
from ingress.backend import Backend, Order
from ingress.errors import ClientDisconnected

T = TypeVar("T")


async def run(
    order: Order,
    jobs: Sequence[Job | Enlargement],
    backend: Backend,
    receive: Receive,
    deadline_seconds: float,
) -> list[JobResult]:
    """Run all jobs of an order; results in the jobs' order, none of a job interrupted before there was one.
    See `together`.
    """
    with backend.opened(order):
        results = await together([_run(job, backend) for job in jobs], receive, deadline_seconds)
    return [result for result in results if result]


async def _run(job: Job | Enlargement, backend: Backend) -> JobResult | None:
    try:
        return await backend.run(job)
    except Interrupted:
        return None


async def together(
    calls: Sequence[Coroutine[Any, Any, T]], receive: Receive, deadline_seconds: float
) -> list[T]:
    """Await calls of the backend; results in their order.

    The first failure, the deadline, a client that goes away and cancellation of the caller all abort every
    call that is not done. Servers signal a client's departure by cancellation or by `http.disconnect`:
    `receive`, of which the body has been read, is watched for the latter.
    """
    try:
        async with asyncio.timeout(deadline_seconds), asyncio.TaskGroup() as group:
            watcher = group.create_task(_watch(receive))
            tasks = [group.create_task(call) for call in calls]
            await asyncio.wait(tasks)
            watcher.cancel()
    except TimeoutError:
        raise DeadlineExceeded(f"Not done within {deadline_seconds:g} seconds") from None
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnected("The client has disconnected")
