"""A service on a Ray cluster of its own, deployed from the same configuration as `serve run` takes."""

import base64
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.serve._private.client import ServeControllerClient
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

SECRET = "secret-of-the-tests"
OTHERS_SECRET = "secret-of-others"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], seconds: float = 60) -> float:
    """Seconds that it took until `condition` held. AssertionError if it never did."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "waited in vain"
        time.sleep(0.05)
    return time.monotonic() - started


def checkpoint_app(name: str, path: Path, **args: object) -> dict[str, Any]:
    return {
        "name": name,
        "route_prefix": None,
        "import_path": "deployments.app:build_checkpoint",
        "args": {"name": name, "path": str(path), "num_cpus": 0.1, "cpu_threads": 1, **args},
    }


class Service:
    """`config` is what is deployed; change it and call `deploy`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.database = folder / "atelier.sqlite"
        keys = folder / "keys"
        keys.write_text(f"tests {SECRET}\nothers {OTHERS_SECRET}\n")
        self.offer: list[dict[str, object]] = []
        self.applications: list[dict[str, Any]] = []
        self.gateway: dict[str, Any] = {
            "name": "gateway",
            "route_prefix": "/",
            "import_path": "deployments.app:build_gateway",
            "args": {
                "keys_file": str(keys),
                "database": f"sqlite:///{self.database}",
                "results": str(folder / "results"),
            },
        }
        self.client = httpx2.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=120
        )

    def add(self, name: str, path: Path, **args: object) -> None:
        self.applications.append(checkpoint_app(name, path, **args))
        self.offer.append({"name": name, "filename": path.name})

    def deploy(self) -> None:
        override = {"name": "Gateway", "user_config": {"checkpoints": self.offer}}
        applications = [{**self.gateway, "deployments": [override]}, *self.applications]
        config = {
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": applications,
        }
        self._serve.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)

    @property
    def _serve(self) -> ServeControllerClient:
        client = _get_global_client()
        assert client is not None
        return client

    def status(self, application: str) -> tuple[str, str]:
        """Serve's status of an application, and all that it says about it."""
        seen = serve.status().applications.get(application)
        if seen is None:
            return "", ""
        texts = [seen.message, *(each.message for each in seen.deployments.values())]
        return seen.status.value, "\n".join(texts)

    def pids(self, *applications: str) -> dict[str, int]:
        """Process ids by replica, of all deployments of these applications."""
        found = {}
        details = self._serve.get_serve_details()["applications"]
        for application in applications:
            for deployment in details[application]["deployments"].values():
                for replica in deployment["replicas"]:
                    if replica["state"] == "RUNNING":
                        found[replica["replica_id"]] = replica["pid"]
        return found

    def txt2img(self, **fields: object) -> bytes:
        answer = self.client.post("/sdapi/v1/txt2img", json=fields)
        assert answer.status_code == 200, answer.text
        return base64.b64decode(answer.json()["images"][0])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        return sum(self.metric_by("replica", name, **labels).values())

    def metric_by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        sums: dict[str, float] = {}
        text = self.client.get("/metrics").text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    key = sample.labels[label]
                    sums[key] = sums.get(key, 0.0) + sample.value
        return sums

    def hashes(self) -> dict[str, str | None]:
        """The digest of each checkpoint on offer; {} while the gateway does not answer."""
        answer = self.client.get("/sdapi/v1/sd-models")
        if answer.status_code != 200:
            return {}
        return {model["model_name"]: model["sha256"] for model in answer.json()}
