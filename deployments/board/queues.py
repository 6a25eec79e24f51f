"""Who waits for a checkpoint's replicas, and how long. Pure policy, without Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deployments.board.orders import OpenOrder
from deployments.board.replicas import Throughput


@dataclass(frozen=True, slots=True)
class Queue:
    """The orders for a checkpoint, as they were when it was made. Those that came since are behind all.

    `places` are of the orders with jobs that have not begun, by arrival; `ahead` of any order are the
    evaluations that those before it still need, `work` is what all need.
    """

    places: Mapping[OpenOrder, int]
    ahead: Mapping[OpenOrder, int]
    work: int
    throughput: Throughput | None

    @classmethod
    def of(cls, orders: Sequence[OpenOrder], throughput: Throughput | None) -> "Queue":
        """`orders` by arrival."""
        places: dict[OpenOrder, int] = {}
        ahead: dict[OpenOrder, int] = {}
        work = 0
        for order in orders:
            ahead[order] = work
            work += sum(map(order.remaining, order.left))
            if order.waits:
                places[order] = len(places) + 1
        return cls(places, ahead, work, throughput)

    def place(self, order: OpenOrder) -> tuple[int, int]:
        """In the queue, and its length."""
        place = self.places.get(order, len(self.places) + 1)
        return place, max(place, len(self.places))

    def eta(self, order: OpenOrder) -> float | None:
        """Seconds until the order is done, if all that came before it come first, and never less than its
        longest job takes at the speed at which jobs go now.

        None where there is no telling: nothing has been measured yet, or nobody counts what it takes.
        """
        if self.throughput is None or not order.counted:
            return None
        left = order.left
        longest = max((self._seconds(order, job) for job in left), default=0.0)
        if not order.waits:
            return longest
        work = self.ahead.get(order, self.work) + sum(map(order.remaining, left))
        return max(longest, work / self.throughput.rate)

    def _seconds(self, order: OpenOrder, job_id: str) -> float:
        assert self.throughput is not None
        pace = order.replicas.seconds(job_id)
        return order.remaining(job_id) * (self.throughput.seconds if pace is None else pace)
