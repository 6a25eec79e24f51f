"""What a gateway asks the board: all that is asked while an answer is awaited goes in one call."""

import asyncio

from deployments.board.board import Question
from deployments.board.remote import BoardAway, RemoteBoard
from ingress.backend import OrderProgress


class Questions:
    """However many clients ask, a gateway has one call under way."""

    def __init__(self, board: RemoteBoard) -> None:
        self._board = board
        self._waiting: list[tuple[Question, asyncio.Future[OrderProgress | None]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> OrderProgress | None:
        """None too while the board is away."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[OrderProgress | None] = loop.create_future()
        self._waiting.append((question, answer))
        if self._asking is None or self._asking.done():
            self._asking = loop.create_task(self._ask())
        return await answer

    async def _ask(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting, []
            try:
                answers = await self._board.progress([question for question, _ in asked])
            except BoardAway:
                answers = [None] * len(asked)
            for (_, future), answer in zip(asked, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
