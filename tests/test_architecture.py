"""What each package may pull in: measured in a fresh interpreter, transitively."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "diffusers", "transformers", "numpy", "fastapi", "pydantic", "prometheus_client")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("engine.protocol", set()),
        ("engine.batcher", set()),
        ("engine.prompts", set()),
        ("engine.engine", {"torch", "diffusers", "transformers", "numpy"}),
        ("ingress.app", {"fastapi", "pydantic"}),
        ("deployments.config", {"pydantic", "fastapi"}),
        ("deployments.routing", set()),
    ],
)
def test_import_stays_light(module: str, allowed: set[str]) -> None:
    code = f"import {module}, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= allowed


def test_building_the_service_needs_no_torch() -> None:
    """`deployments.app` is imported on every node, also where no GPU is."""
    code = "import deployments.app, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "False"
