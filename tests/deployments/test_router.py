import pytest
from ray.serve._private.common import RequestMetadata
from ray.serve.request_router import FIFOMixin, PendingRequest

from deployments.router import BatchRouter, batch_key, weight
from engine.protocol import Job


def pending(*args: object) -> PendingRequest:
    return PendingRequest(args=list(args), kwargs={}, metadata=RequestMetadata("r", "i"))


async def test_jobs_share_a_key_if_their_latents_have_one_shape(job: Job) -> None:
    assert batch_key(pending(job)) == (8, 8)
    assert batch_key(pending()) is None
    assert batch_key(pending("not a job")) is None
    assert batch_key(None) is None


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


def test_jobs_of_one_request_do_not_wait_for_each_other() -> None:
    assert issubclass(BatchRouter, FIFOMixin)
