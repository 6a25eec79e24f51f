import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import serve

from tests.e2e.service import Service, free_port, wait_until
from tests.tiny import write_checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def service(folder: Path) -> Iterator[Service]:
    """A gateway and the checkpoint `tiny` with two replicas."""
    service = Service(folder, free_port())
    service.add("tiny", write_checkpoint(folder / "tiny.safetensors", seed=0), replicas=2)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("PYTHONPATH", os.getcwd())
        ray.init(
            num_cpus=4,
            namespace="serve",
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": service.port})
        service.deploy()
        wait_until(lambda: service.hashes().get("tiny"))
        wait_until(lambda: len(service.pids("tiny")) == 3)
        yield service
        service.client.close()
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
