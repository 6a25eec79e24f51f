"""Who may call. Denied unless a header carries a configured key; the routes below alone are public."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from ingress.errors import error_response
from ingress.settings import Key

PUBLIC_PATHS = frozenset({"/", "/health/live", "/health/ready"})

DETAIL = "A valid API key is needed: Authorization: Bearer <key>, or Basic with the key as password."


def presented_secrets(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Every secret that raw ASGI headers present: Bearer, x-api-key, and Basic, where the password is the
    key, or the user name if there is no password. What cannot be decoded presents nothing."""
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, credentials = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield credentials.strip()
            elif scheme.lower() == b"basic":
                yield from _basic_secret(credentials.strip())


def _basic_secret(credentials: bytes) -> Iterator[bytes]:
    try:
        user, _, password = base64.b64decode(credentials, validate=True).partition(b":")
    except binascii.Error:
        return
    yield password or user


class Authentication:
    """ASGI middleware: 401 before anything of the body is read. Every failure gets the same answer."""

    def __init__(self, app: ASGIApp, keys: Sequence[Key]) -> None:
        self.app = app
        self._digests = [(key.id, bytes.fromhex(key.sha256)) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        key = self._key(scope)
        scope["state"]["key"] = key or ""
        if key is not None or self._is_public(scope):
            await self.app(scope, receive, send)
            return
        response = error_response(401, DETAIL)
        response.headers.append("www-authenticate", "Bearer")
        response.headers.append("www-authenticate", 'Basic realm="atelier"')
        await response(scope, receive, send)

    def _is_public(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return path.removeprefix(scope.get("root_path", "").rstrip("/")) in PUBLIC_PATHS

    def _key(self, scope: Scope) -> str | None:
        """The id of the key that is presented. Digests are compared, all of them: the time taken tells
        nothing about any key."""
        digests = [hashlib.sha256(secret).digest() for secret in presented_secrets(scope["headers"])]
        matches = [
            key for key, known in self._digests for given in digests if hmac.compare_digest(known, given)
        ]
        return matches[0] if matches else None
