"""One order's jobs, together: sent at once, joined in order, and none left behind."""

import asyncio
from collections.abc import Sequence

from starlette.types import Receive

from engine.protocol import DeadlineExceeded, Interrupted, Job, JobResult
from ingress.backend import Backend, Order
from ingress.errors import ClientDisconnected


async def run(
    order: Order, jobs: Sequence[Job], backend: Backend, receive: Receive, deadline_seconds: float
) -> list[JobResult]:
    """Run all jobs of an order; results in the jobs' order, none of a job interrupted before there was one.

    The first failure, the deadline, a client that goes away and cancellation of the caller all abort every
    job that is not done. Servers signal a client's departure by cancellation or by `http.disconnect`:
    `receive`, of which the body has been read, is watched for the latter.
    """
    try:
        with backend.opened(order):
            async with asyncio.timeout(deadline_seconds), asyncio.TaskGroup() as group:
                watcher = group.create_task(_watch(receive))
                tasks = [group.create_task(_run(job, backend)) for job in jobs]
                await asyncio.wait(tasks)
                watcher.cancel()
    except TimeoutError:
        raise DeadlineExceeded(f"Not done within {deadline_seconds:g} seconds") from None
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [result for task in tasks if (result := task.result())]


async def _run(job: Job, backend: Backend) -> JobResult | None:
    try:
        return await backend.run(job)
    except Interrupted:
        return None


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnected("The client has disconnected")
