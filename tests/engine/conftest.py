import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from engine.checkpoint import LoadedCheckpoint, assemble
from engine.protocol import Job
from tests.tiny import tiny_modules


@pytest.fixture(scope="session")
def checkpoint() -> LoadedCheckpoint:
    return assemble(*tiny_modules(), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="session")
def make_job() -> Callable[..., Job]:
    plain = Job(
        id="job",
        checkpoint="tiny",
        prompt="a red circle",
        negative_prompt="blue",
        seed=1,
        width=64,
        height=64,
        steps=4,
        guidance_scale=5.0,
        sampler="Euler",
        schedule="karras",
        eta=1.0,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=math.inf,
        s_noise=1.0,
        eta_noise_seed_delta=0,
        clip_skip=1,
        infotext="a red circle\nSteps: 4",
    )
    return lambda **changes: dataclasses.replace(plain, **changes)
