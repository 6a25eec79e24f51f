"""Who may call. Denied unless a header carries a configured key that is for what the route needs."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from ingress.dialects import Problem, written
from ingress.scopes import Need, need_of
from ingress.settings import Key

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
    """ASGI middleware: 401 and 403 before anything of the body is read. Every 401 says the same."""

    def __init__(self, app: ASGIApp, keys: Sequence[Key]) -> None:
        self.app = app
        self._keys = [(key, bytes.fromhex(key.sha256)) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        need = _need(scope)
        keys = self._presented(scope)
        key = next((key for key in keys if need in key.scopes), keys[0] if keys else None)
        scope["state"]["key"] = key.id if key else ""
        if need == "public" or (key and (need == "key" or need in key.scopes)):
            await self.app(scope, receive, send)
        elif key:
            await written(_forbidden(key, need), scope)(scope, receive, send)
        else:
            response = written(Problem(status=401, detail=DETAIL, code="invalid_api_key"), scope)
            response.headers.append("www-authenticate", "Bearer")
            response.headers.append("www-authenticate", 'Basic realm="atelier"')
            await response(scope, receive, send)

    def _presented(self, scope: Scope) -> list[Key]:
        """The keys that are presented. Digests are compared, all of them: the time taken tells nothing
        about any key."""
        digests = [hashlib.sha256(secret).digest() for secret in presented_secrets(scope["headers"])]
        return [key for key, known in self._keys for given in digests if hmac.compare_digest(known, given)]


def _need(scope: Scope) -> Need:
    """What there is not takes a key too: a stranger learns nothing."""
    route = scope["state"]["route"]
    return need_of(route) if route and scope["method"] in route.methods else "key"


def _forbidden(key: Key, need: Need) -> Problem:
    detail = (
        f"This needs a key with the scope {need}; this key has {', '.join(sorted(key.scopes)) or 'none'}."
    )
    return Problem(status=403, detail=detail, code="insufficient_scope")
