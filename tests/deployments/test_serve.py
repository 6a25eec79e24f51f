import copy
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import serve
from deployments.config import GatewayConfig

Yaml = dict[str, Any]


@pytest.fixture
def config() -> Yaml:
    """The configuration that we ship."""
    loaded: Yaml = yaml.safe_load(Path("serve_config.yaml").read_text(encoding="utf-8"))
    return loaded


def application(config: Yaml, name: str) -> Yaml:
    return next(each for each in config["applications"] if each["name"] == name)


def test_the_shipped_configuration_is_right(config: Yaml) -> None:
    gateway = serve.check(config)
    assert gateway.auth == "keys"
    assert serve.address(config) == ("127.0.0.1", 8000)
    [override] = application(config, "gateway")["deployments"]
    offered = {entry["name"] for entry in override["user_config"]["checkpoints"]}
    assert offered == {each["name"] for each in config["applications"]} - {"gateway"}


def test_the_examples_in_its_comments_are_right(config: Yaml) -> None:
    lines = Path("serve_config.yaml").read_text(encoding="utf-8").splitlines()
    args = [line.split("# ", 1)[1] for line in lines if line.startswith("      # ")]
    examples: Yaml = yaml.safe_load("\n".join(args))
    for key, value in examples.items():
        changed = copy.deepcopy(config)
        name = "gateway" if key in GatewayConfig.model_fields else "demo"
        on_gpus = {"num_gpus": 1} if name == "demo" else {}
        application(changed, name)["args"].update(on_gpus | {key: value})
        serve.check(changed)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("demo", {"num_gpu": 1}, r"demo: .*\nnum_gpu"),
        ("gateway", {"auth": "on"}, r"gateway: .*\nauth"),
    ],
)
def test_a_wrong_key_is_named_with_its_application(config: Yaml, name: str, change: Yaml, named: str) -> None:
    application(config, name)["args"].update(change)
    with pytest.raises(ValueError, match=named):
        serve.check(config)


@pytest.mark.parametrize("config", [None, {}, {"applications": [{"import_path": "a:b"}]}])
def test_what_serve_itself_would_refuse_is_refused(config: Any) -> None:
    with pytest.raises(ValueError, match=r"applications|dictionary|name"):
        serve.check(config)


def test_a_wrong_offer_is_named(config: Yaml) -> None:
    [override] = application(config, "gateway")["deployments"]
    override["user_config"]["checkpoint"] = []
    with pytest.raises(ValueError, match=r"gateway: .*\ncheckpoint\n"):
        serve.check(config)


def test_another_port_is_another_file(config: Yaml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original = Path("serve_config.yaml")
    assert serve.with_port(config, original, None) == original
    assert serve.with_port(config, original, "8000") == original
    changed = serve.with_port(config, original, "9000")
    assert changed != original
    assert serve.address(yaml.safe_load(changed.read_text())) == ("127.0.0.1", 9000)


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ValueError, match=r"http_options\.port"):
            serve.refuse_taken_port(*other.getsockname())


def test_a_service_open_to_the_network_is_refused_before_it_starts(
    config: Yaml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    application(config, "gateway")["args"] = {"auth": "off"}
    config["http_options"] = {"host": "0.0.0.0", "port": 0}
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr("sys.argv", ["serve", str(path)])
    monkeypatch.delenv("PORT", raising=False)
    assert serve.main() == 2
    assert "auth: off is for a loopback address" in capsys.readouterr().err


def test_the_key_of_this_machine_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    gateway = GatewayConfig(keys_file=tmp_path / "new" / "keys")
    key = serve.local_key(gateway)
    assert len(key) >= 32
    assert serve.local_key(gateway) == key
    assert gateway.keys_file is not None
    assert stat.S_IMODE(gateway.keys_file.stat().st_mode) == 0o600
    gateway.keys_file.write_text(f"{serve.LOCAL_KEY} secret read,generate\n")
    assert serve.local_key(gateway) == "secret"


def test_keys_of_others_are_left_alone(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice secret\n")
    assert serve.local_key(GatewayConfig(keys_file=keys)) == ""
    assert keys.read_text() == "alice secret\n"
    assert serve.local_key(GatewayConfig(auth="off")) == ""


def test_nothing_can_be_served_without_the_gateway_or_without_any_checkpoint(config: Yaml) -> None:
    assert not serve.is_hopeless(config, set())
    assert not serve.is_hopeless(config, {"demo"})
    assert serve.is_hopeless(config, {"demo", "demo-outline"})
    assert serve.is_hopeless(config, {"gateway"})


def test_of_serves_messages_only_the_error_is_shown() -> None:
    error = "engine.protocol.CheckpointError: there is no file demo.safetensors"
    told = serve.last_error(
        "Failed to update.", "", f"Error:\nTraceback\n  File x\nRuntimeError: Traceback\n  y\n{error}"
    )
    assert told == error
    assert "Failed to update." in serve.last_error("Failed to update.")
