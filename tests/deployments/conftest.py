import pytest

from engine.protocol import Job
from tests.jobs import make_job


@pytest.fixture
def job() -> Job:
    return make_job()
