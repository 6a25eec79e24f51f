"""Which replica a job goes to: the one it will delay least, where sharing a batch counts as half a delay."""

import random
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from ray.serve._private.common import RunningReplicaInfo
from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

COMPANY = 0.5
"""What a job that would share this one's batches weighs, against 1 for a job that would not."""


def batch_key(request: PendingRequest | None) -> Hashable:
    """What decides which jobs share evaluations: the latent's shape. None for calls without a job."""
    job: Any = request.args[0] if request is not None and request.args else None
    return (job.width // 8, job.height // 8) if hasattr(job, "width") else None


def weight(jobs: int, company: int) -> float:
    """How busy a replica is, for a job that `company` of its `jobs` would share batches with."""
    return jobs - company + COMPANY * company


class BatchRouter(FIFOMixin, RequestRouter):
    """One per handle and process. It knows the keys of the jobs that went through itself only; the
    number of a replica's jobs, which Serve keeps, includes those of other gateways.

    FIFOMixin: without it, jobs of one HTTP request wait for each other's replicas for ever.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """`jobs`: how many a replica is to have at most. Serve's own limit lies above, so that there is
        always room for calls that are no jobs: metrics must not wait for pictures."""
        self._jobs: int = kwargs["jobs"]
        self._keys: dict[ReplicaID, Counter[Hashable]] = defaultdict(Counter)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The best replica with room, then all: Serve asks those itself, if it has to."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # otherwise Serve asks without a pause
        key = batch_key(pending_request)
        free = self.select_available_replicas(candidate_replicas)
        if not free:
            return [candidate_replicas]
        best = min(free, key=lambda replica: (self._weight(replica.replica_id, key), random.random()))
        return [[best], candidate_replicas]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        key = batch_key(pending_request)
        self._keys[replica_id][key] += 1
        result.add_done_callback(
            lambda _: self._event_loop.call_soon_threadsafe(self._forget, replica_id, key)
        )

    def _update_running_replicas(self, running_replicas: list[RunningReplicaInfo]) -> None:
        limited = [replace(info, max_ongoing_requests=self._jobs) for info in running_replicas]
        super()._update_running_replicas(limited)

    def _weight(self, replica: ReplicaID, key: Hashable) -> float:
        company = self._keys[replica][key] if replica in self._keys else 0
        jobs = self.replica_queue_len_cache.get(replica) or 0
        return weight(max(jobs, company), company)

    def _forget(self, replica: ReplicaID, key: Hashable) -> None:
        keys = self._keys[replica]
        keys[key] -= 1
        if not +keys:
            del self._keys[replica]
