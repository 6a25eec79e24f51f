from collections import Counter
from random import Random

import pytest

from deployments.routing import LEAST_USED, MOST_ASKED, Routing, weight

KEY, OTHER = (64, 64), (96, 96)
LIMIT = 16


class Queues(dict[int, int]):
    """What is known of queues' lengths: nothing of those that are not in it."""

    def routing(self, replicas: int, seed: int = 0) -> Routing[int]:
        routing = Routing(LIMIT, self.get, Random(seed))
        routing.offer(range(replicas))
        return routing

    def send(self, routing: Routing[int], key: object) -> int:
        """Where a job goes."""
        best = routing.ranks(key)[0][0]
        routing.sent(best, key)
        self[best] = self.get(best, 0) + 1
        return best


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ((0, 0), (1, 1)),  # an idle replica is best, even against company
        ((1, 1), (1, 0)),  # a batch to share is better than a stranger's
        ((3, 3), (2, 0)),
        ((3, 3), (4, 4)),
        ((2, 0), (6, 6)),  # but not at any price
        ((5, 2), (5, 1)),
    ],
)
def test_a_job_goes_where_it_delays_least(better: tuple[int, int], worse: tuple[int, int]) -> None:
    assert weight(*better) < weight(*worse)


def test_jobs_of_a_key_go_together() -> None:
    queues = Queues()
    routing = queues.routing(4)
    homes = [(key, queues.send(routing, key)) for _ in range(12) for key in (KEY, OTHER)]
    shared = Counter(homes)
    assert len(shared) < 2 * 4, "each key on every replica"
    assert max(queues.values()) - min(queues.values()) <= 4


def test_a_replica_that_is_known_to_be_full_gets_no_job() -> None:
    queues = Queues({0: LIMIT, 1: LIMIT - 1, 2: LIMIT})
    assert queues.routing(3).ranks(KEY)[0] == [1]


def test_where_no_replica_has_room_a_few_are_asked() -> None:
    queues = Queues(dict.fromkeys(range(1000), LIMIT))
    (asked,) = queues.routing(1000).ranks(KEY)
    assert len(set(asked)) == MOST_ASKED


def test_what_shares_no_batch_is_no_company() -> None:
    queues = Queues({0: 1, 1: 1})
    routing = queues.routing(2)
    routing.sent(0, None)
    assert {routing.ranks(None)[0][0] for _ in range(20)} == {0, 1}


def test_room_beyond_the_replicas_in_use_is_found() -> None:
    queues = Queues(dict.fromkeys(range(40), LIMIT) | {17: 0})
    assert queues.routing(40).ranks(KEY)[0] == [17]


def test_what_has_come_back_is_no_company() -> None:
    queues = Queues({0: 1, 1: 1})
    routing = queues.routing(2)
    routing.sent(0, KEY)
    assert {routing.ranks(KEY)[0][0] for _ in range(20)} == {0}
    routing.done(0, KEY)
    assert {routing.ranks(KEY)[0][0] for _ in range(20)} == {0, 1}


def test_few_jobs_among_many_replicas_are_spread_over_idle_ones() -> None:
    queues = Queues()
    routing = queues.routing(1000)
    homes = [queues.send(routing, KEY) for _ in range(100)]
    assert len(set(homes)) == 100


def test_gateways_use_different_replicas_and_all_of_them_together() -> None:
    used = []
    for gateway in range(40):
        queues = Queues()
        routing = queues.routing(100, seed=gateway)
        used.append({queues.send(routing, KEY) for _ in range(8)})
    assert len(set.union(*used)) > 90
    assert used[0] != used[1]


def test_replicas_in_use_stay_in_use_when_others_come_and_go() -> None:
    queues = Queues()
    routing = queues.routing(100)
    before = [queues.send(routing, KEY) for _ in range(4)]
    routing.offer([*range(100), *range(100, 110)])
    routing.offer(range(100))
    for home in before:
        routing.done(home, KEY)
    after = {home for home in range(100) for _ in range(50) if routing.ranks(KEY)[0] == [home]}
    assert len(after | set(before)) <= LEAST_USED


def test_a_replica_that_is_gone_gets_no_job() -> None:
    queues = Queues()
    routing = queues.routing(3)
    routing.offer([0, 2])
    assert all(queues.send(routing, KEY) != 1 for _ in range(10))
