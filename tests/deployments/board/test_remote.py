import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from deployments.board.board import Board
from deployments.board.remote import BoardAway, RayBoard
from tests.deployments.board.fakes import Clock, order, report


class Method:
    def __init__(self, call: Callable[..., object], failures: list[Exception]) -> None:
        self._call = call
        self._failures = failures

    async def remote(self, *args: object) -> object:
        if self._failures:
            raise self._failures.pop()
        return self._call(*args)


class Handle:
    """An actor's. Its next calls fail as `failures` say."""

    def __init__(self) -> None:
        self.board = Board(Clock())
        self.failures: list[Exception] = []

    def __getattr__(self, method: str) -> Method:
        return Method(getattr(self.board, method), self.failures)


class Cluster:
    """Where the board's actor is found, or cannot be."""

    def __init__(self) -> None:
        self.handle = Handle()
        self.failures: list[Exception] = []
        self.searches = 0

    def find(self) -> Any:
        self.searches += 1
        if self.failures:
            raise self.failures.pop()
        return self.handle


async def reached(board: RayBoard) -> None:
    async with asyncio.timeout(2):
        while True:
            try:
                await board.pending("me")
            except BoardAway:
                await asyncio.sleep(0.001)
            else:
                return


async def test_the_actor_is_found_in_the_background() -> None:
    board = RayBoard(Cluster().find)
    with pytest.raises(BoardAway):
        await board.pending("me")
    await reached(board)
    await board.report_orders("g", [report(order("a"))], [])
    assert await board.pending("me") == ["a"]
    assert await board.interrupt("me", None, False) == 1


@pytest.mark.parametrize("loss", [ActorDiedError(), ActorUnavailableError("gone", b"0" * 16), TimeoutError()])
async def test_a_lost_actor_is_away_and_the_next_one_is_found(loss: Exception) -> None:
    cluster = Cluster()
    board = RayBoard(cluster.find)
    await reached(board)
    cluster.handle.failures = [loss]
    with pytest.raises(BoardAway):
        await board.pending("me")
    cluster.handle = Handle()
    await reached(board)
    assert cluster.searches == 2


async def test_it_is_looked_for_again_where_it_could_not_be_found() -> None:
    cluster = Cluster()
    cluster.failures = [RuntimeError("no cluster")]
    board = RayBoard(cluster.find)
    await reached(board)


async def test_many_who_call_while_it_is_away_look_for_it_once() -> None:
    cluster = Cluster()
    board = RayBoard(cluster.find)
    answers = await asyncio.gather(*(board.pending("me") for _ in range(100)), return_exceptions=True)
    assert all(isinstance(answer, BoardAway) for answer in answers)
    await reached(board)
    assert cluster.searches == 1
