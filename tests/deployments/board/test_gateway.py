import asyncio
from contextlib import suppress

import pytest

from deployments.board.board import MOST_REMEMBERED, Board, Question
from deployments.board.gateway import GatewayOrders
from deployments.board.remote import BoardAway
from engine.protocol import Interrupted
from ingress.backend import OrderProgress
from tests.deployments.board.fakes import Clock, LocalBoard, order


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> LocalBoard:
    return LocalBoard(Board(clock))


@pytest.fixture
def orders(board: LocalBoard, clock: Clock) -> GatewayOrders:
    return GatewayOrders(board, clock)


async def asked(board: LocalBoard, id: str) -> OrderProgress | None:
    [answer] = await board.progress([Question("me", id, False)])
    return answer


async def test_open_orders_are_reported_with_the_jobs_that_have_ended(
    board: LocalBoard, orders: GatewayOrders, clock: Clock
) -> None:
    with orders.opened(order("a", jobs=2)):
        async with orders.calling("me-a-0"):
            pass
        with suppress(ZeroDivisionError):
            async with orders.calling("me-a-1"):
                await orders.report()
                seen = await asked(board, "a")
                assert seen is not None
                assert (seen.state, seen.progress) == ("running", 0.51)
                raise ZeroDivisionError
        await orders.report()
        seen = await asked(board, "a")
        assert seen is not None
        assert seen.progress == 1.0
    await orders.report()
    seen = await asked(board, "a")
    assert seen is not None
    assert seen.state == "done"


async def test_what_a_board_did_not_hear_is_reported_to_the_next(
    board: LocalBoard, orders: GatewayOrders, clock: Clock
) -> None:
    board.board = None
    with orders.opened(order("a")), pytest.raises(BoardAway):
        await orders.report()
    with orders.opened(order("b")):
        clock.now += 3
        board.board = Board(clock)
        await orders.report()
    a, b = await asked(board, "a"), await asked(board, "b")
    assert a is not None
    assert b is not None
    assert (a.state, b.state) == ("done", "queued")


async def test_no_more_is_kept_for_a_board_that_is_away_than_it_would_remember(
    board: LocalBoard, orders: GatewayOrders
) -> None:
    for number in range(MOST_REMEMBERED + 5):
        with orders.opened(order(str(number))):
            pass
    await orders.report()
    assert await asked(board, "4") is None
    assert await asked(board, "5") is not None


async def test_a_job_that_no_replica_has_is_interrupted_here(
    board: LocalBoard, orders: GatewayOrders, clock: Clock
) -> None:
    ended: list[str] = []

    async def run(job_id: str) -> None:
        with pytest.raises(Interrupted):
            async with orders.calling(job_id):
                await asyncio.Event().wait()
        ended.append(job_id)

    with orders.opened(order("a")), orders.opened(order("b")):
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            stopped, other = (group.create_task(run(f"me-{id}-0")) for id in ("a", "b"))
            await asyncio.sleep(0)
            await orders.report()
            await board.interrupt("me", "a", False)
            clock.now += 3
            await orders.report()
            await orders.report()  # told again before the job has ended
            await stopped
            assert not other.done()
            await board.interrupt("me", "b", False)
            clock.now += 3
            await orders.report()


async def test_a_timeout_of_the_job_itself_is_no_interruption(orders: GatewayOrders) -> None:
    with orders.opened(order("a")), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), orders.calling("me-a-0"):
            await asyncio.Event().wait()
    with orders.opened(order("a")), pytest.raises(TimeoutError):
        async with orders.calling("me-a-0"):
            raise TimeoutError


async def test_orders_do_not_wait_for_a_board(orders: GatewayOrders, board: LocalBoard) -> None:
    board.board = None
    reporting = asyncio.create_task(orders.run())
    with orders.opened(order("a")):
        async with asyncio.timeout(0.2), orders.calling("me-a-0"):
            await asyncio.sleep(0)
    reporting.cancel()
