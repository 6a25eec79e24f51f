"""Posting to addresses that callers name: to public ones alone, and to none that was not looked at."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx2

from ingress.errors import InvalidRequest, shown

Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_URL_CHARS = 2048
SCHEMES = ("http", "https")
LOW_PORTS = (80, 443)
"""Of those below 1024, the ones that may be posted to."""
HIGH_PORTS = range(1024, 65536)
SECONDS = 20.0
"""For all of a post, from looking up the name to the answer's status."""
GLOBAL_UNICAST = IPv6Network("2000::/3")


class Undeliverable(Exception):
    """It could not be posted. The message is for the log: it may name addresses."""


def checked_url(field: str, url: str, networks: Networks) -> str:
    """The URL. Raises `InvalidRequest` for what never could be posted to; names are not looked up."""
    problem = _problem(url, networks)
    if problem:
        raise InvalidRequest(f"{field}: {shown(url)} is not allowed: {problem}.")
    return url


def _problem(url: str, networks: Networks) -> str:
    if len(url) > MAX_URL_CHARS:
        return f"it has more than {MAX_URL_CHARS} characters"
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        return "it is no URL"
    wrong = {
        "it must begin with https:// or http:// and a host": parsed.scheme not in SCHEMES or not parsed.host,
        "it must not have a user or a password": parsed.userinfo,
        "the port must be 80, 443 or from 1024 to 65535": parsed.port not in (None, *LOW_PORTS, *HIGH_PORTS),
        "the address is not a public one": _is_internal(parsed.host, networks),
    }
    return next((problem for problem, there in wrong.items() if there), "")


def _is_internal(host: str, networks: Networks) -> bool:
    """Of a name that is not known."""
    try:
        return not allowed(ip_address(host.rstrip(".")), networks)
    except ValueError:
        return False


def allowed(address: Address, networks: Networks) -> bool:
    """Whether it is a public address, or in one of the networks."""
    plain = (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
    if any(plain in network for network in networks):
        return True
    if isinstance(plain, IPv6Address):
        return plain.is_global and plain in GLOBAL_UNICAST and plain.sixtofour is None
    return plain.is_global and not plain.is_multicast and not plain.is_reserved


async def looked_up(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, in the system's order of preference."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Undeliverable(f"the name cannot be looked up: {error}") from None
    return [str(address[0]) for *_, address in found]


class Outbound:
    """`networks` are allowed besides public addresses."""

    def __init__(self, networks: Networks, resolve: Resolve = looked_up) -> None:
        self._networks = networks
        self._resolve = resolve

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Made when it is first needed: that takes 30 ms."""
        return httpx2.create_ssl_context(trust_env=False)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer, of which nothing else is read. No redirect is followed, no proxy used.

        The name is looked up once and each of its addresses checked; what is connected to is one of those.
        Raises `Undeliverable`.
        """
        try:
            async with asyncio.timeout(SECONDS):
                return await self._post(httpx2.URL(url), body, headers)
        except TimeoutError:
            raise Undeliverable(f"no answer within {SECONDS:g} seconds") from None

    async def _post(self, url: httpx2.URL, body: bytes, headers: Mapping[str, str]) -> int:
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = [ip_address(each) for each in await self._resolve(host, port)]
        for address in addresses:
            if not allowed(address, self._networks):
                raise Undeliverable(f"{address} is not a public address")
        failure: httpx2.HTTPError | None = None
        for address in addresses:
            try:
                return await self._send(url, address, body, headers)
            except httpx2.HTTPError as error:
                failure = error
                if not isinstance(error, httpx2.ConnectError):
                    break
        raise Undeliverable(f"{type(failure).__name__}: {failure}") from failure

    async def _send(self, url: httpx2.URL, address: Address, body: bytes, headers: Mapping[str, str]) -> int:
        """To that address, as the host that the URL names: so the certificate must be, and `Host` is."""
        literal = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
        client = httpx2.AsyncClient(verify=self._tls, trust_env=False, timeout=SECONDS)
        request = client.build_request(
            "POST",
            url.copy_with(host=literal),
            content=body,
            headers={**headers, "Host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        async with client:
            answer = await client.send(request, stream=True, follow_redirects=False)
            await answer.aclose()
            return answer.status_code
