from ray.serve._private.common import RequestMetadata
from ray.serve.request_router import FIFOMixin, PendingRequest

from deployments.router import BatchRouter, batch_key
from engine.protocol import Job


def pending(*args: object) -> PendingRequest:
    return PendingRequest(args=list(args), kwargs={}, metadata=RequestMetadata("r", "i"))


async def test_jobs_share_a_key_if_their_latents_have_one_shape(job: Job) -> None:
    assert batch_key(pending(job)) == (8, 8)
    assert batch_key(pending()) is None
    assert batch_key(pending("not a job")) is None
    assert batch_key(None) is None


def test_jobs_of_one_request_do_not_wait_for_each_other() -> None:
    assert issubclass(BatchRouter, FIFOMixin)
