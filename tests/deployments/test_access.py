import base64
import hashlib
from pathlib import Path

import pytest

from deployments.access import read_keys, read_webhook_secret, settings_of
from deployments.config import GatewayConfig


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_keys_are_secrets_or_digests(keys_file: Path) -> None:
    digest = hashlib.sha256(b"two").hexdigest()
    keys_file.write_text(f"# who may call\nalice one\n\nbob sha256:{digest} # since May\n")
    alice, bob = read_keys(keys_file)
    assert (alice.id, alice.sha256) == ("alice", hashlib.sha256(b"one").hexdigest())
    assert (bob.id, bob.sha256) == ("bob", digest)


def test_a_secret_may_hold_a_hash_sign(keys_file: Path) -> None:
    keys_file.write_text("alice o#ne\n")
    assert read_keys(keys_file)[0].sha256 == hashlib.sha256(b"o#ne").hexdigest()


def test_a_key_is_for_what_its_line_says_or_for_everything(keys_file: Path) -> None:
    digest = hashlib.sha256(b"three").hexdigest()
    keys_file.write_text(
        f"alice one\nbob two read # only looks\ncarol sha256:{digest} generate,read\nprom four operate\n"
    )
    scopes = {key.id: set(key.scopes) for key in read_keys(keys_file)}
    assert scopes == {
        "alice": {"read", "generate", "operate"},
        "bob": {"read"},
        "carol": {"read", "generate"},
        "prom": {"operate"},
    }


@pytest.mark.parametrize(
    "text",
    [
        *("", "# nobody\n", "secret-alone\n", "alice sha256:beef\n", "alice s1\nalice s2\n"),
        *("alice s1 secret-alone\n", "alice s1 read secret-alone\n", "alice s1 read,\n", "alice s1 [read]\n"),
        *("alice s1 read, generate\n", "alice s1 Read\n"),
    ],
)
def test_a_wrong_keys_file_is_refused_without_quoting_it(keys_file: Path, text: str) -> None:
    keys_file.write_text(text)
    with pytest.raises(ValueError, match=r"^keys_file: ") as refusal:
        read_keys(keys_file)
    assert not any(word in str(refusal.value) for word in ("secret-alone", "beef", "s1"))


def test_a_missing_keys_file_is_refused(keys_file: Path) -> None:
    with pytest.raises(ValueError, match=r"^keys_file: cannot read"):
        read_keys(keys_file)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_without_keys_only_this_machine_is_served(host: str) -> None:
    settings = settings_of(GatewayConfig(auth="off"), bind_host=host)
    assert (settings.auth, settings.keys) == ("off", ())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "gpu-1.example", ""])
def test_without_keys_the_network_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"^auth: off"):
        settings_of(GatewayConfig(auth="off"), bind_host=host)


def test_what_is_configured_for_web_pages_is_handed_on() -> None:
    config = GatewayConfig.model_validate({"auth": "off", "cors_origins": ["https://page.example"]})
    assert settings_of(config, bind_host="127.0.0.1").cors_origins == ("https://page.example",)
    with pytest.raises(ValueError, match=r"cors_origins\n.*every origin"):
        GatewayConfig.model_validate({"auth": "off", "cors_origins": ".*"})


def test_with_keys_the_network_is_served(keys_file: Path) -> None:
    keys_file.write_text("alice one\n")
    settings = settings_of(GatewayConfig(keys_file=keys_file), bind_host="0.0.0.0")
    assert [key.id for key in settings.keys] == ["alice"]


SECRET = b"0123456789abcdef01234567"


def test_a_webhook_secret_is_as_the_specification_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "webhook"
    file.write_text(f"whsec_{base64.b64encode(SECRET).decode()}\n")
    assert read_webhook_secret(file).get_secret_value() == SECRET
    settings = settings_of(GatewayConfig(auth="off", webhook_secret_file=file), bind_host="127.0.0.1")
    assert settings.webhook_secret is not None
    assert settings.webhook_secret.get_secret_value() == SECRET
    assert "0123" not in repr(settings)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "whsec_c2hvcnQ=",
        "whsec_not*base64" * 4,
        base64.b64encode(SECRET).decode(),
        f"whsec_{base64.b64encode(SECRET * 3).decode()}",
        f"whsec_{base64.b64encode(SECRET).decode()} more",
    ],
)
def test_a_wrong_webhook_secret_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "webhook"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"^webhook_secret_file: .* wants `whsec_`") as refusal:
        read_webhook_secret(file)
    assert not any(part in str(refusal.value) for part in ("c2hvcnQ", "not*", "MDEy", "more"))
    with pytest.raises(ValueError, match=r"^webhook_secret_file: cannot read"):
        read_webhook_secret(tmp_path / "none")


def test_where_orders_are_kept_is_the_operators_to_say() -> None:
    config = GatewayConfig.model_validate(
        {
            "auth": "off",
            "results": "s3://bucket/prefix",
            "orders": {"max_open": 7},
            "webhook_networks": ["10.1.0.0/16", "fc00::/7"],
        }
    )
    settings = settings_of(config, bind_host="127.0.0.1")
    assert (settings.results, settings.orders.max_open) == ("s3://bucket/prefix", 7)
    assert [str(network) for network in settings.webhook_networks] == ["10.1.0.0/16", "fc00::/7"]
