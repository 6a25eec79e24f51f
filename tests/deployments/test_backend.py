import asyncio
import pickle
from collections.abc import Awaitable, Generator
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.backend import HandleBackend, RetryBudget
from deployments.board.board import Board
from deployments.config import GatewayConfig, Offer
from deployments.metrics import GatewayMetrics
from engine.protocol import (
    AtelierError,
    DeadlineExceeded,
    DeviceMemory,
    EmbeddingFile,
    Enlargement,
    Interrupted,
    InvalidJob,
    Job,
    JobFailed,
    JobResult,
    NotOffered,
    Overloaded,
    Timings,
    Unavailable,
    UpscalerFile,
    Usage,
)
from tests.deployments.board.fakes import Clock, LocalBoard, order
from tests.deployments.board.fakes import job as reported

DONE = JobResult(
    job_id="job",
    image=b"png",
    seed=1,
    evaluations=4,
    timings=Timings(wait=0, encode=0, denoise=0, decode=0, write=0, total=0),
    infotext="",
)
NEVER = object()


def from_replica(cause: Exception) -> Exception:
    """An error as Serve delivers it from another process."""
    error = RayTaskError("run", "Traceback: pid=1, ip=10.0.0.1", cause)  # type: ignore[no-untyped-call]
    delivered: Exception = pickle.loads(pickle.dumps(error)).as_instanceof_cause()
    return delivered


class Response:
    def __init__(self, answer: object) -> None:
        self._answer = answer
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    async def _wait(self) -> object:
        if self._answer is NEVER:
            await asyncio.Event().wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def __await__(self) -> Generator[Any, None, object]:
        return self._wait().__await__()


class Handle:
    """Answers each call with the next of its answers, the last one for ever."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self.sent: list[Any] = []
        self.responses: list[Response] = []
        self.broadcasts: list[tuple[object, ...]] = []
        self.run = self.caption = self

    def remote(self, job: Any) -> Response:
        self.sent.append(job)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        self.responses.append(Response(answer))
        return self.responses[-1]

    def broadcast(self, method: str, *args: object) -> "Handle":
        self.broadcasts.append((method, *args))
        return self

    async def results_async(self, **options: object) -> list[object]:
        return self._answers


class Everything:
    def takes_jobs(self, application: str) -> bool:
        return application != "absent"

    def sha256(self, application: str) -> str:
        return "ab" if application == "demo" else ""


def backend(*answers: object, seconds: float = 5.0) -> tuple[HandleBackend, Handle]:
    handle = Handle(*answers)
    config = GatewayConfig.model_validate({"auth": "off", "limits": {"deadline_seconds": seconds}})
    metrics = GatewayMetrics("g")
    made = HandleBackend(config, "gateway", lambda *_: handle, Everything(), metrics, LocalBoard(None))
    entries = [
        {"name": "demo", "filename": "demo.safetensors"},
        {"name": "gone", "filename": "gone.safetensors", "app": "absent"},
    ]
    made.offer(Offer.model_validate({"checkpoints": entries}))
    return made, handle


async def raised(call: Awaitable[object]) -> AtelierError:
    with pytest.raises(AtelierError) as info:
        await call
    assert not any(word in str(info.value) for word in ("Traceback", "pid", "10.0.0.1"))
    assert info.value.__cause__ is None
    return info.value


@pytest.mark.parametrize(
    "loss",
    [
        ActorDiedError(),
        ActorUnavailableError("gone", b"0" * 16),
        from_replica(Unavailable("the replica's engine has stopped", 1.0)),
    ],
)
async def test_a_job_whose_replica_is_lost_is_sent_again_unchanged(loss: Exception, job: Job) -> None:
    made, handle = backend(loss, loss, DONE)
    assert await made.run(job) == DONE
    assert [replace(sent, seconds_left=inf) for sent in handle.sent] == [job, job, job]
    left = [sent.seconds_left for sent in handle.sent]
    assert 5 >= left[0] > left[1] > left[2]
    assert 'atelier_job_retries_total{checkpoint="demo",replica="g"} 2.0' in made._metrics.text()


async def test_a_job_that_loses_every_replica_is_given_up(job: Job) -> None:
    made, handle = backend(ActorDiedError())
    assert isinstance(await raised(made.run(job)), JobFailed)
    assert len(handle.sent) == 4


async def test_retries_end_with_the_budget(job: Job) -> None:
    made, handle = backend(ActorDiedError())
    made._budget._left = 0.0
    made._budget._clock = lambda: made._budget._filled_at
    assert isinstance(await raised(made.run(job)), Unavailable)
    assert len(handle.sent) == 1


async def test_retries_end_with_the_deadline(job: Job) -> None:
    made, handle = backend(NEVER, seconds=0.05)
    assert isinstance(await raised(made.run(job)), DeadlineExceeded)
    assert handle.responses[0].cancelled


async def test_cancelling_the_call_cancels_the_replicas_work(job: Job) -> None:
    made, handle = backend(NEVER)
    call = asyncio.ensure_future(made.run(job))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert handle.responses[0].cancelled


async def test_a_jobs_own_error_is_not_retried_and_arrives_as_itself(job: Job) -> None:
    made, handle = backend(from_replica(InvalidJob("width: 9 is too small")))
    error = await raised(made.run(job))
    assert type(error) is InvalidJob
    assert error.message == "width: 9 is too small"
    assert len(handle.sent) == 1


async def test_an_unforeseen_error_is_not_shown_to_clients(job: Job) -> None:
    made, _ = backend(from_replica(KeyError("secret of the machine")))
    error = await raised(made.run(job))
    assert isinstance(error, JobFailed)
    assert "secret" not in error.message


async def test_back_pressure_is_overload(job: Job) -> None:
    made, _ = backend(BackPressureError(9, 8, 429, 2.5))
    error = await raised(made.run(job))
    assert isinstance(error, Overloaded)
    assert error.retry_after == 2.5


async def test_a_job_once_accepted_is_not_turned_away_after_a_loss(job: Job) -> None:
    made, handle = backend(ActorDiedError(), BackPressureError(9, 8), DONE)
    assert await made.run(job) == DONE
    assert len(handle.sent) == 3


async def test_a_failed_deployment_is_unavailable(job: Job) -> None:
    made, _ = backend(DeploymentUnavailableError(DeploymentID("Diffusion", "demo")))
    assert isinstance(await raised(made.run(job)), Unavailable)


@pytest.mark.parametrize("checkpoint", ["gone", "unheard-of"])
async def test_an_absent_checkpoint_is_answered_without_a_call(checkpoint: str, job: Job) -> None:
    made, handle = backend(NEVER)
    error = await raised(asyncio.wait_for(made.run(replace(job, checkpoint=checkpoint)), 1))
    assert isinstance(error, Unavailable)
    assert not handle.sent


def test_checkpoints_are_listed_in_the_order_of_the_offer() -> None:
    made, _ = backend(DONE)
    demo, gone = made.checkpoints()
    assert (demo.name, demo.sha256, demo.available) == ("demo", "ab", True)
    assert (gone.name, gone.sha256, gone.available) == ("gone", "", False)


async def test_metrics_leave_out_replicas_that_do_not_answer() -> None:
    text = "# HELP x y\n# TYPE x gauge\nx 1.0\n"
    made, _ = backend(text, ActorDiedError())
    assert (await made.metrics()).splitlines()[:2] == ["# HELP x y", "# TYPE x gauge"]


def test_a_retry_budget_fills_with_jobs_and_with_time() -> None:
    now = 0.0
    budget = RetryBudget(clock=lambda: now)
    assert all(budget.take() for _ in range(100))
    assert not budget.take()
    for _ in range(5):
        budget.deposit()
    assert budget.take()
    assert not budget.take()
    now = 0.2
    assert [budget.take() for _ in range(3)] == [True, True, False]


async def test_upscalers_of_all_replicas_are_named_once_by_name() -> None:
    def file(name: str, scale: int) -> UpscalerFile:
        return UpscalerFile(name=name, filename=f"{name}.safetensors", scale=scale)

    made, _ = backend([file("b", 4), file("A", 2)], ActorDiedError(), [file("b", 2), file("c", 2)])
    assert await made.upscalers() == [file("A", 2), file("b", 4), file("c", 2)]


async def test_embeddings_of_all_replicas_are_named_once_usable_ones_first() -> None:
    def file(name: str, usable: bool) -> EmbeddingFile:
        return EmbeddingFile(name=name, width=768 if usable else 2048, vectors=1, usable=usable)

    made, _ = backend([file("b", True), file("a", False)], [file("a", True)])
    assert await made.embeddings() == [file("a", True), file("b", True)]


async def test_an_enlargement_is_run_as_a_job_is() -> None:
    work = Enlargement(
        id="large",
        checkpoint="demo",
        image=b"png",
        scale=2.0,
        box=None,
        crop=True,
        max_pixels=100,
        upscaler="Lanczos",
        second="None",
        second_visibility=0.0,
        texts={},
    )
    made, handle = backend(ActorDiedError(), DONE)
    assert await made.run(work) == DONE
    assert [replace(sent, seconds_left=inf) for sent in handle.sent] == [work, work]


def two_checkpoints(*answers: object) -> tuple[HandleBackend, Handle]:
    """`away`, which does not run, and two that do."""
    made, handle = backend(*answers)
    entries = [
        {"name": "away", "filename": "away.safetensors", "app": "absent"},
        {"name": "demo", "filename": "demo.safetensors"},
        {"name": "other", "filename": "other.safetensors"},
    ]
    made.offer(Offer.model_validate({"checkpoints": entries}))
    return made, handle


async def test_a_caption_is_by_the_first_checkpoint_that_runs_and_has_a_captioner() -> None:
    made, handle = two_checkpoints(from_replica(NotOffered("no captioner")), "a cat")
    assert await made.caption(b"png") == "a cat"
    assert handle.sent == [b"png", b"png"]


async def test_without_any_captioner_the_replicas_own_words_are_told() -> None:
    made, handle = two_checkpoints(from_replica(NotOffered("captioner_dir is not set")))
    error = await raised(made.caption(b"png"))
    assert (type(error), error.message) == (NotOffered, "captioner_dir is not set")
    assert len(handle.sent) == 2


async def test_a_caption_whose_replica_is_lost_may_be_asked_for_again() -> None:
    made, handle = two_checkpoints(ActorDiedError())
    assert isinstance(await raised(made.caption(b"png")), Unavailable)
    assert len(handle.sent) == 1


async def test_without_a_checkpoint_that_runs_nothing_can_be_captioned() -> None:
    made, handle = backend(NEVER)
    made.offer(Offer.model_validate({"checkpoints": [{"name": "a", "filename": "a", "app": "absent"}]}))
    assert isinstance(await raised(made.caption(b"png")), Unavailable)
    assert not handle.sent


async def test_cancelling_a_caption_cancels_it_in_the_replica() -> None:
    made, handle = backend(NEVER)
    call = asyncio.ensure_future(made.caption(b"png"))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert handle.responses[0].cancelled


async def test_memory_is_of_replicas_that_have_a_gpu() -> None:
    usage = Usage(current=1, peak=2)
    memory = DeviceMemory(
        device="a",
        free=1,
        total=2,
        active=usage,
        allocated=usage,
        reserved=usage,
        inactive=usage,
        retries=0,
        failures=0,
    )
    made, handle = backend(memory, None, ActorDiedError())
    assert await made.memory() == [memory]
    assert handle.broadcasts == [("memory",)]


async def test_every_replica_is_told_which_folders_to_look_through() -> None:
    made, handle = backend(None, ActorDiedError())
    await made.refresh("embeddings")
    assert handle.broadcasts == [("refresh", "embeddings")]


async def test_an_interrupted_job_is_an_interruption_wherever_it_was(job: Job) -> None:
    made, _ = backend(from_replica(Interrupted("the job was interrupted before it began")))
    assert isinstance(await raised(made.run(job)), Interrupted)
    made, handle = backend(NEVER)
    clock = Clock()
    made._orders._board = made._board = LocalBoard(Board(clock))
    job = replace(job, id="me-a-0")
    with made.opened(order("a")):
        call = asyncio.ensure_future(made.run(job))
        await asyncio.sleep(0)
        await made._orders.report()
        assert await made.interrupt("me", "a") == 1
        clock.now += 3
        await made._orders.report()
        assert isinstance(await raised(call), Interrupted)
    assert handle.responses[0].cancelled


async def test_gateways_tell_the_same_of_each_others_orders(job: Job) -> None:
    board = LocalBoard(Board(Clock()))
    gateways = [backend(NEVER)[0] for _ in range(2)]
    one, other = gateways
    for each in gateways:
        each._board = each._orders._board = each._questions._board = board
    with one.opened(order("a", jobs=2)):
        await one._orders.report()
        assert [await each.pending("me") for each in gateways] == [["a"], ["a"]]
        await board.report_jobs("r", "demo", [reported("me-a-0", 10, 20)], 10.0)
        seen = [await each.progress("me", "a", preview=False) for each in gateways]
        assert seen[0] is not None
        assert seen[0].progress == 0.26
        assert seen[0] == seen[1]
        assert await other.interrupt("me", None) == 1
        told = await board.report_jobs("r", "demo", [reported("me-a-0", 10, 20)], 10.0)
        assert told.interrupted == ("me-a-0",)


async def test_while_the_board_is_away_jobs_run_and_nothing_is_known_of_them(job: Job) -> None:
    made, _ = backend(DONE)
    with made.opened(order("a")):
        assert await made.run(job) == DONE
        assert await made.progress("me", "a", preview=True) is None
        assert await made.pending("me") == []
        assert isinstance(await raised(made.interrupt("me", None)), Unavailable)
