"""Strict mode: a picture's bits depend on nothing but its job."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from engine import ops
from engine.checkpoint import LoadedCheckpoint, assemble, make_strict
from engine.protocol import Job
from tests.drawing import begun_with, drawn
from tests.jobs import make_job
from tests.pictures import scene
from tests.tiny import tiny_modules


@pytest.fixture(scope="module")
def strict() -> LoadedCheckpoint:
    checkpoint = assemble(*tiny_modules(), device=torch.device("cpu"), dtype=torch.float32)
    make_strict(checkpoint)
    return checkpoint


JOBS = [
    make_job(id="plain"),
    make_job(id="other", seed=7, sampler="Heun", prompt="a blue star"),
    make_job(id="unguided", seed=8, guidance_scale=1.0, prompt="a cat"),
    make_job(id="long", seed=9, prompt="a red circle, " * 30),
    make_job(id="parts", seed=10, prompt="a cat AND a dog AND a bird"),
    make_job(id="begun", seed=11, init=begun_with(scene(64, 64))),
]


@pytest.mark.parametrize("job", JOBS, ids=[job.id for job in JOBS])
def test_latents_are_bit_equal_in_any_company(
    strict: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch, job: Job
) -> None:
    seen: list[bytes] = []
    run = ops.Decode.run

    def watched(batch: Sequence[ops.Decode]) -> Sequence[object]:
        assert len(batch) == 1
        seen.append(batch[0].x.numpy().tobytes())
        return run(batch)

    monkeypatch.setattr(ops.Decode, "run", staticmethod(watched))
    (alone,), _ = drawn(strict, job)
    latent = seen.pop()
    together, steps = drawn(strict, *[each for each in JOBS if each is not job][:3], job)
    assert {step.jobs for step in steps if step.operation != "encode"} == {1}
    assert latent in seen
    assert np.array_equal(together[-1], alone)
