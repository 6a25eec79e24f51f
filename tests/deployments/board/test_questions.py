import asyncio

from deployments.board.board import Board, Question
from deployments.board.questions import Questions
from tests.deployments.board.fakes import Clock, LocalBoard, order, report


class SlowBoard(LocalBoard):
    """Takes a moment to answer."""

    async def progress(self, questions):  # type: ignore[no-untyped-def]
        await asyncio.sleep(0.01)
        return await super().progress(questions)


async def test_what_is_asked_while_an_answer_is_awaited_goes_in_one_call() -> None:
    board = SlowBoard(Board(Clock()))
    await board.report_orders("g", [report(order(str(i)), number=i) for i in range(50)], [])
    questions, before = Questions(board), board.calls
    answers = await asyncio.gather(
        *(questions.ask(Question("me", str(i), False)) for i in [*range(50), "unknown"])
    )
    assert [answer.id if answer else None for answer in answers] == [*map(str, range(50)), None]
    assert board.calls - before <= 2
    assert await questions.ask(Question("me", "7", False)) is not None


async def test_who_asks_and_leaves_takes_no_answer_from_others() -> None:
    board = SlowBoard(Board(Clock()))
    await board.report_orders("g", [report(order("a"))], [])
    questions = Questions(board)
    leaving, staying = (asyncio.create_task(questions.ask(Question("me", "a", False))) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying is not None


async def test_nothing_is_known_while_the_board_is_away() -> None:
    assert await Questions(LocalBoard(None)).ask(Question("me", "a", False)) is None
