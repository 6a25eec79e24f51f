import subprocess
import sys

import pytest

STUCK = """
from pathlib import Path
from deployments.config import CheckpointConfig
from deployments.diffusion import Diffusion

class Worker:
    def heartbeat_age(self):
        return {age}

replica = object.__new__(Diffusion)
replica._config = CheckpointConfig(name="a", path=Path("a"), step_timeout_seconds=60)
replica._worker = Worker()
replica.check_health()
"""


@pytest.mark.parametrize(("age", "status"), [(59, 0), (61, 70)])
def test_a_replica_whose_step_does_not_end_ends_its_process(age: int, status: int) -> None:
    ended = subprocess.run([sys.executable, "-c", STUCK.format(age=age)], check=False)
    assert ended.returncode == status
