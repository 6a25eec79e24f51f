import socket
import ssl
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from ingress.errors import InvalidRequest
from ingress.outbound import Outbound, Resolve, Undeliverable, allowed, checked_url, looked_up
from tests.ingress.receiver import LOOPBACK, receiver

INTERNAL = [
    "127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "0.0.0.0", "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.2.1", "198.18.0.1",
    "::", "::1", "fe80::1", "fc00::1", "fec0::1", "ff0e::1", "2001:db8::1", "::127.0.0.1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::",
    "2001:0:7f00:1::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.4.4"]


@pytest.mark.parametrize("address", INTERNAL)
def test_internal_addresses_are_not_allowed(address: str) -> None:
    assert not allowed(ip_address(address), ())


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are(address: str) -> None:
    assert allowed(ip_address(address), ())


def test_networks_allow_their_own_addresses_and_no_others() -> None:
    networks = [ip_network("10.1.0.0/16"), ip_network("fc00::/64")]
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fc00::1"):
        assert allowed(ip_address(address), networks)
    for address in ("10.2.0.1", "127.0.0.1", "fc00:1::1"):
        assert not allowed(ip_address(address), networks)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://example.com/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("example.com", "https://"),
        ("//example.com", "https://"),
        ("https://", "https://"),
        ("https:///path", "https://"),
        ("https://user:secret@example.com/", "user"),
        ("https://example.com:22/", "port"),
        ("http://example.com:25/", "port"),
        ("http://example.com:0/", "port"),
        ("http://example.com:99999/", "port"),
        ("http://exam\r\nple.com/", "no URL"),
        ("http://[::1", "no URL"),
        ("http://0177.0.0.1/", "no URL"),
        ("http://127.0.0.1:8000/", "public"),
        ("http://127.0.0.1./", "public"),
        ("http://[::1]/", "public"),
        ("http://169.254.169.254/latest/meta-data", "public"),
        ("http://[::ffff:10.0.0.1]/", "public"),
        ("https://example.com/" + "x" * 2048, "2048"),
    ],
)
def test_what_never_could_be_posted_to_is_refused_at_once(url: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^webhook: ") as refused:
        checked_url("webhook", url, ())
    assert said in refused.value.message
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hook?x=1",
        "http://example.com:8080/",
        "https://example.com:443/",
        "http://EXAMPLE.com:80",
        "https://exämple.com/ü",
        "https://8.8.8.8/",
        "http://127.0.0.1.example.com/",
    ],
)
def test_what_may_be_public_is_not(url: str) -> None:
    assert checked_url("webhook", url, ()) == url


def test_a_network_that_is_configured_may_be_named() -> None:
    assert checked_url("webhook", "http://127.0.0.1:8000/", LOOPBACK)


def names(*addresses: str) -> Resolve:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


async def test_what_is_connected_to_is_the_address_that_was_checked() -> None:
    """The name exists nowhere: whoever looked it up again would find nothing."""
    asked = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    async with receiver() as (port, seen):
        url = f"http://hook.invalid:{port}/a/b?c=d"
        status = await Outbound(LOOPBACK, resolve).post(url, b"body", {"x-mark": "1"})
    assert status == 204
    assert asked == [("hook.invalid", port)]
    [request] = seen
    head = request.lower().split(b"\r\n")
    assert head[0] == b"post /a/b?c=d http/1.1"
    assert b"host: hook.invalid:%d" % port in head
    assert b"x-mark: 1" in head
    assert request.endswith(b"\r\n\r\nbody")


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("8.8.8.8", "127.0.0.1"), ("127.0.0.1", "8.8.8.8")])
async def test_one_internal_address_of_a_name_is_one_too_many(addresses: tuple[str, ...]) -> None:
    async with receiver() as (port, seen):
        with pytest.raises(Undeliverable, match="not a public address"):
            await Outbound((), names(*addresses)).post(f"http://hook.invalid:{port}/", b"", {})
    assert seen == []


@pytest.mark.parametrize("host", ["0x7f000001", "2130706433", "127.1", "localhost"])
async def test_other_ways_to_write_an_internal_address_are_seen_through(host: str) -> None:
    async with receiver() as (port, seen):
        url = checked_url("webhook", f"http://{host}:{port}/", ())
        with pytest.raises(Undeliverable):
            await Outbound(()).post(url, b"", {})
    assert seen == []


async def test_a_redirect_is_an_answer_and_not_followed() -> None:
    async with receiver() as (other, untouched):
        answer = b"HTTP/1.1 307 x\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n" % other
        async with receiver(answer) as (port, seen):
            assert await Outbound(LOOPBACK).post(f"http://127.0.0.1:{port}/", b"x", {}) == 307
    assert len(seen) == 1
    assert untouched == []


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with receiver() as (port, _):
        assert await Outbound(LOOPBACK).post(f"http://127.0.0.1:{port}/", b"x", {}) == 204


async def test_the_next_address_is_tried_where_nobody_listens() -> None:
    async with receiver() as (port, seen):
        outbound = Outbound(LOOPBACK, names("127.0.0.2", "127.0.0.1"))
        assert await outbound.post(f"http://hook.invalid:{port}/", b"x", {}) == 204
    assert len(seen) == 1


async def test_nobody_there_is_undeliverable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Undeliverable, match="ConnectError"):
        await Outbound(LOOPBACK).post(f"http://127.0.0.1:{port}/", b"x", {})


async def test_no_answer_in_time_is_undeliverable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.outbound.SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(Undeliverable, match=r"within 0\.2 seconds"),
    ):
        await Outbound(LOOPBACK).post(f"http://127.0.0.1:{silent.getsockname()[1]}/", b"x", {})


async def test_an_endless_answer_is_not_read() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n" + b"x" * 100_000
    async with receiver(answer) as (port, _):
        assert await Outbound(LOOPBACK).post(f"http://127.0.0.1:{port}/", b"x", {}) == 200


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of hook.invalid, signed by itself, with its key."""
    path = tmp_path_factory.mktemp("tls") / "hook.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=hook"
    files = ["-addext", "subjectAltName=DNS:hook.invalid", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def trusting(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is one that the system trusts."""
    context = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr("ingress.outbound.httpx2.create_ssl_context", lambda **_: context)


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize(("host", "good"), [("hook.invalid", True), ("other.invalid", False)])
async def test_the_certificate_must_be_the_names_and_not_the_addresss(
    certificate: Path, host: str, good: bool
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with receiver(tls=tls) as (port, seen):
        outbound = Outbound(LOOPBACK, names("127.0.0.1"))
        posting = outbound.post(f"https://{host}:{port}/", b"x", {})
        if good:
            assert await posting == 204
        else:
            with pytest.raises(Undeliverable, match="certificate"):
                await posting
    assert len(seen) == good


async def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with receiver(tls=tls) as (port, _):
        with pytest.raises(Undeliverable, match="certificate"):
            await Outbound(LOOPBACK, names("127.0.0.1")).post(f"https://hook.invalid:{port}/", b"x", {})


async def test_a_name_is_looked_up_in_the_system_and_may_not_be_there() -> None:
    assert "127.0.0.1" in await looked_up("localhost", 80)
    with pytest.raises(Undeliverable, match="looked up"):
        await looked_up("no..name", 80)
