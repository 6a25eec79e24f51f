"""What happens to every request, whatever its route. Pure ASGI: bodies and answers pass unbuffered."""

import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingress.backend import RequestObserver
from ingress.dialects import Problem, written
from ingress.errors import HTTP_CODES

logger = logging.getLogger(__name__)

SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(scope: Scope) -> str:
    """The client's x-request-id, if it may appear in logs and headers, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def route_of(scope: Scope) -> BaseRoute | None:
    """The route that a request matches, or else one that has its path and other methods."""
    other = None
    for route in scope["app"].routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return route  # type: ignore[no-any-return]
        if match is Match.PARTIAL:
            other = other or route
    return other


class RequestContext:
    """The outermost frame: request id, timing, observation, and the answer to what nobody foresaw.

    A path with a trailing slash is the same path without it: clients do not follow redirects of a POST.
    """

    def __init__(self, app: ASGIApp, observe: RequestObserver | None) -> None:
        self.app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["path"] = scope["path"].rstrip("/") or "/"
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id(scope)
        state["key"] = ""  # Authentication knows better
        state["route"] = route = route_of(scope)
        start = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = state["request_id"]
                headers["x-process-time"] = f"{time.perf_counter() - start:.4f}"
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request %s failed", state["request_id"])
            if status:  # too late for another answer: the server cuts the connection
                raise
            problem = Problem(
                status=500,
                detail="Internal server error",
                code="internal_error",
                error="RuntimeError",
                errors=f"request id: {state['request_id']}",
            )
            await written(problem, scope)(scope, receive, send_with_headers)
        finally:
            if self._observe is not None:
                self._observe(
                    route=getattr(route, "path", "other"),
                    model=state.get("model", ""),
                    status=status or 499,
                    seconds=time.perf_counter() - start,
                )


class Options:
    """ASGI middleware: OPTIONS is answered for every path, to everybody, with the methods that there are."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "OPTIONS":
            await self.app(scope, receive, send)
            return
        routes = [route for route in scope["app"].routes if route.matches(scope)[0] is not Match.NONE]
        methods = {"OPTIONS"}.union(*(route.methods for route in routes))
        response = Response(status_code=204, headers={"allow": ", ".join(sorted(methods))})
        await response(scope, receive, send)


class BodyLimit:
    """ASGI middleware: 413 as soon as a body is known to be over the limit; unread, if it declares it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if problem := self._problem(Headers(scope=scope).get("content-length", "0")):
            await written(problem, scope)(scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, self._detail())
            return message

        await self.app(scope, counted_receive, send)

    def _problem(self, declared: str) -> Problem | None:
        if not (declared.isascii() and declared.isdigit()):
            return Problem(status=400, detail="Content-Length: not a number", code="invalid_request")
        # Compared by length first: a number of thousands of digits is not worth parsing.
        if len(declared) > 18 or int(declared) > self._max_bytes:
            return Problem(status=413, detail=self._detail(), code=HTTP_CODES[413])
        return None

    def _detail(self) -> str:
        return f"The body is over the limit of {self._max_bytes} bytes"
