"""Serve's side of `deployments.routing`."""

from collections.abc import Hashable
from dataclasses import replace
from random import Random
from typing import Any

from ray.serve._private.common import RunningReplicaInfo
from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from deployments import routing


def batch_key(request: PendingRequest | None) -> Hashable:
    """The key of the job that a call brings. None for calls without a job."""
    return routing.batch_key(request.args[0]) if request is not None and request.args else None


class BatchRouter(FIFOMixin, RequestRouter):
    """One per handle and process. The number of a replica's jobs, which Serve keeps, includes those of other
    gateways.

    FIFOMixin: without it, jobs of one HTTP request wait for each other's replicas for ever.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """`jobs`: how many a replica is to have at most. Serve's own limit lies above, so that there is
        always room for calls that are no jobs: metrics must not wait for pictures."""
        self._jobs: int = kwargs["jobs"]
        self._routing: routing.Routing[ReplicaID] = routing.Routing(
            self._jobs, self.replica_queue_len_cache.get, Random()
        )

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The best replica with room, then a few: Serve asks those itself, if it has to."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # otherwise Serve asks without a pause
        ranks = self._routing.ranks(batch_key(pending_request))
        return [[self.curr_replicas[replica] for replica in rank] for rank in ranks]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        key = batch_key(pending_request)
        self._routing.sent(replica_id, key)
        result.add_done_callback(
            lambda _: self._event_loop.call_soon_threadsafe(self._routing.done, replica_id, key)
        )

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._routing.offer(self.curr_replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._routing.offer(self.curr_replicas)

    def _update_running_replicas(self, running_replicas: list[RunningReplicaInfo]) -> None:
        limited = [replace(info, max_ongoing_requests=self._jobs) for info in running_replicas]
        super()._update_running_replicas(limited)
