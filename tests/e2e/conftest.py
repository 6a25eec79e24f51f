import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from safetensors.torch import save_file

from tests import upscalers
from tests.blip import write_blip
from tests.e2e.service import Service, free_port, wait_until
from tests.tiny import tiny_modules, write_checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


def write_files(folder: Path) -> dict[str, Any]:
    """What requests may need besides: another checkpoint, VAE, upscaler and captioner. No embedding yet."""
    vaes, upscalers_dir, embeddings = folder / "vae", folder / "upscalers", folder / "embeddings"
    vaes.mkdir()
    embeddings.mkdir()
    state = {key: tensor.contiguous() for key, tensor in tiny_modules(seed=5)[1].state_dict().items()}
    save_file(state, vaes / "kl.safetensors")
    upscalers_dir.mkdir()
    upscalers.write(upscalers_dir / "2x.safetensors", upscalers.compact(scale=2))
    second = write_checkpoint(folder / "second.safetensors", seed=3)
    return {
        "vae_dir": str(vaes),
        "upscalers_dir": str(upscalers_dir),
        "captioner_dir": str(write_blip(folder / "blip")),
        "embeddings_dir": str(embeddings),
        "companions": {"second": str(second)},
    }


@pytest.fixture(scope="session")
def service(folder: Path) -> Iterator[Service]:
    """A gateway and the checkpoint `tiny` with two replicas."""
    service = Service(folder, free_port())
    files = write_files(folder)
    service.add("tiny", write_checkpoint(folder / "tiny.safetensors", seed=0), replicas=2, **files)
    service.offer.append({"name": "second", "filename": "second.safetensors", "companion": True})
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
