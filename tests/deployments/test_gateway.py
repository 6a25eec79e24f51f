import pytest
from ray.exceptions import TaskCancelledError
from starlette.types import Message, Receive, Scope, Send

from deployments.gateway import Departures


async def received(receive: Receive) -> Message:
    """What an app behind Departures receives."""
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())

    async def send(message: Message) -> None:
        pytest.fail("nothing is to be sent")

    await Departures(app)({"type": "http"}, receive, send)
    return seen[0]


async def test_serves_cancellation_is_a_client_that_left() -> None:
    async def gone() -> Message:
        raise TaskCancelledError

    assert await received(gone) == {"type": "http.disconnect"}


async def test_messages_pass_unchanged() -> None:
    message: Message = {"type": "http.request", "body": b"x"}

    async def there() -> Message:
        return message

    assert await received(there) is message
