"""What happens to every request, whatever its route. Pure ASGI: bodies and answers pass unbuffered."""

import logging
import re
import time
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingress.backend import RequestObserver
from ingress.errors import error_response

logger = logging.getLogger(__name__)

SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(scope: Scope) -> str:
    """The client's x-request-id, if it may appear in logs and headers, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def route_template(scope: Scope) -> str:
    """The template of the route that a request matches, "other" for none: a closed set of labels."""
    for route in scope["app"].routes:
        if route.matches(scope)[0] is not Match.NONE:
            return str(route.path)
    return "other"


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
        route = route_template(scope)
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
            response = error_response(
                500,
                "Internal server error",
                error="RuntimeError",
                errors=f"request id: {state['request_id']}",
            )
            await response(scope, receive, send_with_headers)
        finally:
            if self._observe is not None:
                self._observe(
                    route=route,
                    model=state.get("model", ""),
                    status=status or 499,
                    seconds=time.perf_counter() - start,
                )


class BodyLimit:
    """ASGI middleware: 413 as soon as a body is known to be over the limit; unread, if it declares it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            await error_response(400, "Content-Length: not a number")(scope, receive, send)
            return
        # Compared by length first: a number of thousands of digits is not worth parsing.
        if len(declared) > 18 or int(declared) > self._max_bytes:
            await error_response(413, self._detail())(scope, receive, send)
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

    def _detail(self) -> str:
        return f"The body is over the limit of {self._max_bytes} bytes"
