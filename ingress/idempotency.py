"""Idempotency-Key: a POST that is sent again is answered once.

As the IETF draft "The Idempotency-Key HTTP Header Field" has it; but a repeat that comes while the first is
being answered waits for that answer, through whichever gateway it comes.
"""

import asyncio
import contextvars
import hashlib
import logging
import re
import time
from collections.abc import Coroutine
from contextlib import suppress
from datetime import datetime
from random import Random

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.protocol import AtelierError, Unavailable
from ingress.dialects import Problem, written
from ingress.errors import HTTP_CODES, ClientDisconnected, InvalidRequest, domain_response, shown
from ingress.store.answers import Answer, Answers, Claim, Name, OtherRequest

logger = logging.getLogger(__name__)

HEADER = b"idempotency-key"
SANE_NAME = re.compile(rb"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")

FIRST_POLL_SECONDS = 0.05
LAST_POLL_SECONDS = 1.0
RETRY_AFTER = "5"

MALFORMED = Problem(
    status=400,
    detail="Idempotency-Key: one is allowed, of 1 to 255 printable ASCII characters",
    code="invalid_request",
    error="InvalidRequest",
)
RUNNING = Problem(
    status=409,
    detail="Idempotency-Key: its first request is still being answered",
    code="still_running",
    error="Conflict",
)


class Unattended:
    """Work that goes on when whoever waits for it leaves. `close` ends it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Answer]] = set()

    async def run(self, work: Coroutine[None, None, Answer]) -> Answer:
        # What a server binds to a request's context it may end with the request, as Serve does its calls.
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[Answer]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("a request failed whose client had left", exc_info=error)


class Idempotency:
    """ASGI middleware, inside of those that authenticate and limit: requests are known by their key's id.

    The first request with a name is answered to its end even if its client leaves, with `random` and `now` in
    its state; a gateway that takes it over from one that died puts the same there. Only success is kept.
    """

    def __init__(self, app: ASGIApp, answers: Answers, unattended: Unattended, wait_seconds: float) -> None:
        self.app = app
        self._answers = answers
        self._unattended = unattended
        self._wait_seconds = wait_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = []
        if scope["type"] == "http" and scope["method"] == "POST":
            names = [value for header, value in scope["headers"] if header == HEADER]
        if not names:
            await self.app(scope, receive, send)
            return
        try:
            response = await self._respond(names, scope, receive)
        except AtelierError as error:
            response = domain_response(error, scope)
        except HTTPException as error:  # the body's limit
            problem = Problem(status=error.status_code, detail=error.detail, code=HTTP_CODES[413])
            response = written(problem, scope)
        await response(scope, receive, send)

    async def _respond(self, names: list[bytes], scope: Scope, receive: Receive) -> Response:
        if len(names) > 1 or not SANE_NAME.fullmatch(names[0]):
            return written(MALFORMED, scope)
        name = Name(scope["state"]["key"], names[0].decode())
        body = await _body(receive)
        match await self._claimed(name, _digest(scope, body)):
            case Claim() as claim:
                scope["state"]["random"] = Random(claim.random_seed)
                scope["state"]["now"] = datetime.fromtimestamp(claim.started)
                return _as_response(await self._unattended.run(self._answered(name, scope, body)))
            case Answer() as answer:
                response = _as_response(answer)
                response.headers["idempotent-replayed"] = "true"
                return response
        response = written(RUNNING, scope)
        response.headers["retry-after"] = RETRY_AFTER
        return response

    async def _claimed(self, name: Name, digest: bytes) -> Claim | Answer | None:
        """As `Answers.claim`, waiting while another is at it. None if that takes too long."""
        until = time.monotonic() + self._wait_seconds
        pause = FIRST_POLL_SECONDS
        while True:
            try:
                found = await self._answers.claim(name, digest)
            except OtherRequest:
                raise InvalidRequest(
                    f"Idempotency-Key: {shown(name.name)} came with another request before. Allowed: that "
                    "path and body again, or another key."
                ) from None
            if found is not None or time.monotonic() + pause > until:
                return found
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, LAST_POLL_SECONDS)

    async def _answered(self, name: Name, scope: Scope, body: bytes) -> Answer:
        """What the app answers, kept if it is a success. The answer counts more than that it can be kept."""
        try:
            answer = await _answer(self.app, scope, body)
        except asyncio.CancelledError:
            with suppress(Unavailable):
                await self._answers.hand_over(name)
            raise
        except Exception:
            with suppress(Unavailable):
                await self._answers.forget(name)
            raise
        with suppress(Unavailable):
            if 200 <= answer.status < 300:
                await self._answers.finish(name, answer)
            else:
                await self._answers.forget(name)
        return answer


async def _body(receive: Receive) -> bytes:
    parts = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("The client has disconnected")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _digest(scope: Scope, body: bytes) -> bytes:
    """Of what makes two requests the same."""
    target = f"{scope['method']} {scope['path']}?".encode() + scope["query_string"]
    digest = hashlib.sha256(target + b"\n")
    digest.update(body)
    return digest.digest()


async def _answer(app: ASGIApp, scope: Scope, body: bytes) -> Answer:
    """What the app answers to a client that sends this body and never leaves."""
    start: Message = {}
    parts: list[bytes] = []
    requests = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await asyncio.Event().wait()
        raise AssertionError("nothing sets it")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"])
    return Answer(start["status"], headers, b"".join(parts))


def _as_response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = [
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers
    ]
    return response
