"""`python -m deployments.serve serve_config.yaml`: Serve's own `run`, and what a person needs around it.

Checks the configuration before anything starts, makes a key for this machine, says how to call the
service once it answers, and stops all of it on SIGINT and SIGTERM. `PORT` overrides the configured port.
"""

import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from click import Abort
from pydantic import BaseModel

from deployments.access import settings_of
from deployments.config import GATEWAY, CheckpointConfig, GatewayConfig, Offer

BUILDERS: dict[str, type[BaseModel]] = {
    "deployments.app:build_gateway": GatewayConfig,
    "deployments.app:build_checkpoint": CheckpointConfig,
}

LOCAL_KEY = "local"

GREETING = """
ATELIER_URL={url}
ATELIER_KEY={key}

curl -s {url}/sdapi/v1/txt2img -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
  -d '{{"prompt": "a large red heart on a yellow background", "steps": 20, "cfg_scale": 5,
       "width": 256, "height": 256}}' \\
  | python3 -c 'import base64, json, sys
open("image.png", "wb").write(base64.b64decode(json.load(sys.stdin)["images"][0]))'
"""

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
    "RAY_SERVE_PROXY_USE_GRPC": "1",  # from the proxy to the gateway, in place of actor calls
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**30),  # its own is 4 MB: less than a large PNG
    "RAY_worker_niceness": "0",  # Ray's own is 15: whatever else runs on the machine would come first
}


def main() -> int:
    path = Path(sys.argv[1])
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        gateway = check(config)
        path = with_port(config, path, os.environ.get("PORT"))
        refuse_taken_port(*address(config))
        key = local_key(gateway)
        settings_of(gateway, bind_host=address(config)[0])
    except (OSError, yaml.YAMLError, ValueError) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return 2
    return run(path, config, key)


def check(config: dict[str, Any]) -> GatewayConfig:
    """Validate the file, ours and Serve's part of it. Raises ValueError, naming application and key."""
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(config)
    gateway = None
    for application in config["applications"]:
        try:
            if model := BUILDERS.get(application["import_path"]):
                args = model.model_validate(application.get("args", {}))
                gateway = args if isinstance(args, GatewayConfig) else gateway
            for deployment in application.get("deployments", []):
                if deployment["name"] == GATEWAY:
                    Offer.model_validate(deployment.get("user_config", {}))
        except ValueError as error:
            raise ValueError(f"application {application['name']}: {error}") from None
    if gateway is None:
        raise ValueError("applications: none has import_path deployments.app:build_gateway")
    return gateway


def address(config: dict[str, Any]) -> tuple[str, int]:
    options = config.get("http_options") or {}
    return options.get("host", "127.0.0.1"), int(options.get("port", 8000))


def with_port(config: dict[str, Any], path: Path, port: str | None) -> Path:
    """The file to run: another one, beside the local key, if the port is to be another."""
    if not port or int(port) == address(config)[1]:
        return path
    config["http_options"] = {**(config.get("http_options") or {}), "port": int(port)}
    changed = Path(".atelier") / path.name
    changed.parent.mkdir(exist_ok=True)
    changed.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return changed


def refuse_taken_port(host: str, port: int) -> None:
    """Serve would share the port with whoever has it, and answer every other request."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"http_options.port: {port} at {host}: {error.strerror}") from None


def local_key(gateway: GatewayConfig) -> str:
    """This machine's own secret from the keys file, which is made if there is none; "" without one."""
    path = gateway.keys_file
    if path is None:
        return ""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(f"{LOCAL_KEY} {secrets.token_urlsafe(32)}\n", encoding="utf-8")
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return next((words[1] for words in lines if words[:1] == [LOCAL_KEY] and len(words) >= 2), "")


def run(path: Path, config: dict[str, Any], key: str) -> int:
    """`serve run path`, until a signal ends it. 1 if nothing of it could start."""
    import ray
    from ray.serve.scripts import run as serve_run

    failed = threading.Event()
    stop_on_signals()
    try:
        ray.init(namespace="serve")
        stop_on_signals()  # Ray has taken SIGTERM for itself
        threading.Thread(target=announce, args=(config, key, failed), daemon=True).start()
        serve_run.main([str(path)], standalone_mode=False)
    except (KeyboardInterrupt, SystemExit, Abort):
        pass
    finally:
        ray.shutdown()
    return 1 if failed.is_set() else 0


def stop_on_signals() -> None:
    """The first signal is Serve's Ctrl-C, even where a shell has told us to ignore that; the next are
    ignored, so that stopping is not cut short."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(signum: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in signals:
        signal.signal(each, stop)


def announce(config: dict[str, Any], key: str, failed: threading.Event) -> None:
    """Wait until the service answers, and say how to call it. Stops it if nothing of it can start."""
    host, port = address(config)
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    broken: set[str] = set()
    while not is_ready(url):
        for name, reason in failures().items():
            if name not in broken:
                say(f"application {name} cannot start: {reason}")
            broken.add(name)
        if is_hopeless(config, broken):
            failed.set()
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.5)
    say(GREETING.format(url=url, key=key))


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def failures() -> dict[str, str]:
    """What Serve says of the applications that it has given up."""
    from ray import serve

    return {
        name: last_error(application.message, *(d.message for d in application.deployments.values()))
        for name, application in serve.status().applications.items()
        if application.status == "DEPLOY_FAILED"
    }


def last_error(*messages: str) -> str:
    """The end of the last traceback in Serve's messages, or all they say."""
    text = "\n".join(message.strip() for message in messages)
    return re.split(r"\n(?=[\w.]+(?:Error|Exception): )", text)[-1]


def is_hopeless(config: dict[str, Any], broken: set[str]) -> bool:
    """No gateway, or no checkpoint behind it."""
    builders = {each["name"]: BUILDERS.get(each["import_path"]) for each in config["applications"]}
    gateways = {name for name, builder in builders.items() if builder is GatewayConfig}
    return bool(broken & gateways) or broken >= builders.keys() - gateways


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
