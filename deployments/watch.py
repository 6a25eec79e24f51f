"""Which checkpoints can take jobs, known without asking when a job comes."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from ray.serve._private.common import DeploymentStatus, ReplicaState
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeStatus

from deployments.config import DIFFUSION

logger = logging.getLogger("ray.serve")

AWAKENING = (DeploymentStatus.HEALTHY, DeploymentStatus.UPSCALING)
"""Without a replica, this is a deployment that is scaled to zero, or was until a job came."""


PERIOD_SECONDS = 1.0
LONGEST_SECONDS = 10.0
SHARE = 0.05
"""Of the time is spent looking, at most: the status of a hundred applications takes a while."""


@dataclass(slots=True)
class _Application:
    """`running_at` is when a replica was last seen running; `asleep`: scaled to zero on purpose."""

    deployed_at: float
    running_at: float
    asleep: bool
    sha256: str = ""


def pause(took: float) -> float:
    """Seconds until the next look, after one that took so long."""
    return min(max(PERIOD_SECONDS, took / SHARE), LONGEST_SECONDS)


class Watch:
    """Looks at Serve's status again and again, and remembers.

    `read_status` may block. `sha256_of` asks a replica of an application for its checkpoint's digest,
    and answers "" when it could not. An application that has lost its last replica counts as able to
    take jobs for `restart_seconds` more: Serve is starting a new one, and the jobs can wait for it.
    """

    def __init__(
        self,
        read_status: Callable[[], ServeStatus],
        sha256_of: Callable[[str], Awaitable[str]],
        *,
        restart_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_status = read_status
        self._sha256_of = sha256_of
        self._restart_seconds = restart_seconds
        self._clock = clock
        self._looked_at = clock()
        self._applications: Mapping[str, _Application] = {}

    async def run(self) -> None:
        """Look for ever. What was seen last stays true while Serve's controller does not answer."""
        while True:
            began = self._clock()
            try:
                await self.look()
            except Exception:
                logger.exception("Serve's status is not to be had")
            await asyncio.sleep(pause(self._clock() - began))

    async def look(self) -> None:
        status = await asyncio.to_thread(self._read_status)
        self._looked_at = self._clock()
        self._applications = {
            name: seen
            for name, application in status.applications.items()
            if (seen := self._seen(application, self._applications.get(name)))
        }
        for name, application in self._applications.items():
            if not application.sha256 and self._ran_lately(application):
                application.sha256 = await self._sha256_of(name)

    def takes_jobs(self, application: str) -> bool:
        seen = self._applications.get(application)
        return seen is not None and (seen.asleep or self._ran_lately(seen))

    def sha256(self, application: str) -> str:
        seen = self._applications.get(application)
        return seen.sha256 if seen else ""

    def _ran_lately(self, application: _Application) -> bool:
        return self._looked_at - application.running_at <= self._restart_seconds

    def _seen(
        self, application: ApplicationStatusOverview, before: _Application | None
    ) -> _Application | None:
        """`before` where Serve, which is building the application anew, does not list its deployments."""
        if application.status == ApplicationStatus.DELETING:
            return None
        deployment = application.deployments.get(DIFFUSION)
        if deployment is None:
            return before
        running = deployment.replica_states.get(ReplicaState.RUNNING, 0) > 0
        seen = _Application(
            deployed_at=application.last_deployed_time_s,
            running_at=self._looked_at if running else -math.inf,
            asleep=not running and deployment.status in AWAKENING,
        )
        if before is not None:
            seen.running_at = max(seen.running_at, before.running_at)
            seen.sha256 = before.sha256 if before.deployed_at == seen.deployed_at else ""
        return seen
