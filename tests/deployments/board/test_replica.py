from collections.abc import Collection

import pytest

from deployments.board.board import Board, Question
from deployments.board.remote import BoardAway
from deployments.board.replica import Rate, ReplicaJobs
from engine.protocol import JobProgress, StepStats
from tests.deployments.board.fakes import Clock, LocalBoard, job, order, report


class Jobs:
    def __init__(self) -> None:
        self.jobs: list[JobProgress] = []
        self.interrupted: list[str] = []
        self.watched: list[str] = []

    def progress(self) -> list[JobProgress]:
        return self.jobs

    def interrupt(self, job_ids: Collection[str]) -> None:
        self.interrupted += job_ids

    def watch(self, job_ids: Collection[str]) -> None:
        self.watched = list(job_ids)


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def board() -> LocalBoard:
    return LocalBoard(Board(Clock()))


@pytest.fixture
def replica(jobs: Jobs, board: LocalBoard) -> ReplicaJobs:
    return ReplicaJobs("r", "demo", jobs, Rate(), board)


def step(operation: str, jobs: int, seconds: float) -> StepStats:
    return StepStats(
        operation=operation, jobs=jobs, rows=jobs, seconds=seconds, model_seconds=0, running=0, waiting=0
    )


async def test_jobs_are_reported_and_done_with_as_told(
    replica: ReplicaJobs, jobs: Jobs, board: LocalBoard
) -> None:
    await board.report_orders("g", [report(order("a")), report(order("b"), number=1)], [])
    jobs.jobs = [job("me-a-0", 5, 20), job("me-b-0", 5, 20)]
    await replica.report()
    assert (jobs.interrupted, jobs.watched) == ([], [])
    [seen] = await board.progress([Question("me", "a", True)])
    assert seen is not None
    assert seen.progress == pytest.approx(0.26)
    await board.interrupt("me", "b", False)
    await replica.report()
    assert (jobs.interrupted, jobs.watched) == (["me-b-0"], ["me-a-0"])


async def test_nothing_is_watched_for_a_board_that_is_away(
    replica: ReplicaJobs, jobs: Jobs, board: LocalBoard
) -> None:
    jobs.watched = ["me-a-0"]
    board.board = None
    with pytest.raises(BoardAway):
        await replica.report()
    assert jobs.watched == []


async def test_a_replica_is_busy_until_it_has_reported_that_it_is_not(
    replica: ReplicaJobs, jobs: Jobs
) -> None:
    assert not replica.is_busy()
    jobs.jobs = [job("me-a-0")]
    assert replica.is_busy()
    await replica.report()
    jobs.jobs = []
    assert replica.is_busy()
    await replica.report()
    assert not replica.is_busy()


def test_the_rate_counts_evaluations_of_jobs_over_all_the_time_of_work() -> None:
    rate = Rate()
    assert rate.value == 0
    for _ in range(3):
        rate.observe(step("evaluate", jobs=4, seconds=0.15))
    rate.observe(step("decode", jobs=1, seconds=0.15))
    assert rate.value == pytest.approx(20.0, rel=0.05)


def test_a_step_too_quick_to_be_measured_is_no_error() -> None:
    rate = Rate()
    rate.observe(step("evaluate", jobs=4, seconds=0.0))
    assert rate.value == 0


def test_the_rate_follows_what_is_newer() -> None:
    rate = Rate()
    for jobs in (1, 8):
        for _ in range(1000):
            rate.observe(step("evaluate", jobs=jobs, seconds=0.1))
    assert rate.value == pytest.approx(80.0, rel=0.01)
