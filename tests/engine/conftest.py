import pytest
import torch

from engine.checkpoint import LoadedCheckpoint, assemble
from tests.tiny import tiny_modules


@pytest.fixture(scope="session")
def checkpoint() -> LoadedCheckpoint:
    return assemble(*tiny_modules(), device=torch.device("cpu"), dtype=torch.float32)
