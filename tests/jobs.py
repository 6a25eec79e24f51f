"""A plain job, for tests to change."""

import dataclasses
import math
from typing import Any

from engine.protocol import Job


def make_job(**changes: Any) -> Job:
    plain = Job(
        id="job",
        checkpoint="demo",
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
    return dataclasses.replace(plain, **changes)
