import subprocess
import sys
from pathlib import Path

import pytest

from deployments.config import CheckpointConfig
from deployments.diffusion import _tuner, _tuning

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


def test_a_strict_replica_chooses_nothing_by_measured_times_and_fills_no_call_up() -> None:
    usual, strict = (
        _tuning(CheckpointConfig(name="a", path=Path("a"), num_gpus=1, max_rows=3, strict=strict))
        for strict in (False, True)
    )
    assert (usual.attention, usual.row_counts) == ("auto", ())
    assert (strict.attention, strict.row_counts) == ("torch", (1, 2, 3))
    assert usual.graphs


def test_a_cpu_replica_is_not_tuned() -> None:
    assert _tuner(CheckpointConfig(name="a", path=Path("a"))) is None
