"""A second checkpoint in a job: as refiner, or for the second pass of a hires fix."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import ops
from engine.checkpoint import LoadedCheckpoint, load_checkpoint
from engine.companions import Companions
from engine.engine import Engine
from engine.prepared import Prepared
from engine.protocol import InvalidJob, Refiner
from engine.registry import Registry
from tests.drawing import drawn, enlarged
from tests.jobs import make_job
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, checkpoint: LoadedCheckpoint) -> Registry:
    folder = tmp_path_factory.mktemp("refiner")
    paths = {
        "other": write_checkpoint(folder / "other.safetensors", seed=1),
        "xl": write_checkpoint(folder / "xl.safetensors", family="sdxl"),
    }
    companions = Companions(paths, lambda path: load_checkpoint(path, device="cpu"), max_bytes=2**30)
    return Registry(checkpoint, "demo", companions)


@pytest.fixture
def denoisers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """Of each evaluation: what evaluated, and how many jobs."""
    calls: list[tuple[Any, int]] = []
    run = ops.Evaluate.run

    def watched(batch: Sequence[ops.Evaluate]) -> Sequence[object]:
        calls.append((batch[0].denoiser, len(batch)))
        return run(batch)

    monkeypatch.setattr(ops.Evaluate, "run", staticmethod(watched))
    return calls


def refined(switch_at: float, *, by_timestep: bool = False) -> Refiner:
    return Refiner(checkpoint="other", switch_at=switch_at, by_timestep=by_timestep)


@pytest.mark.parametrize(
    ("refiner", "own"),
    [
        (refined(0.0), 0),
        (refined(0.5), 5),
        (refined(0.75), 8),
        (refined(1.0), 10),
        (refined(0.5, by_timestep=True), 5),
        (refined(0.8, by_timestep=True), 6),
    ],
)
def test_the_refiner_takes_over_at_its_share_of_the_way(
    registry: Registry, denoisers: list[tuple[Any, int]], refiner: Refiner, own: int
) -> None:
    """Of Karras' schedule the seventh of ten levels, σ = 0.447, is the first below timestep 200."""
    drawn(registry.own, make_job(steps=10, refiner=refiner), registry=registry)
    assert [denoiser is registry.own.denoiser for denoiser, _ in denoisers] == [True] * own + [False] * (
        10 - own
    )


def test_strangers_share_calls_until_one_has_its_refiner(
    registry: Registry, denoisers: list[tuple[Any, int]]
) -> None:
    plain, other = make_job(id="plain"), make_job(id="other", seed=2, refiner=refined(0.5))
    pictures, _ = drawn(registry.own, plain, other, registry=registry)
    assert (registry.own.denoiser, 2) in denoisers
    for job, picture in zip((plain, other), pictures, strict=True):
        (alone,), _ = drawn(registry.own, job, registry=registry)
        assert np.abs(alone.astype(int) - picture.astype(int)).max() <= 1


def test_the_refiner_encodes_the_prompts_itself(registry: Registry) -> None:
    own, _ = drawn(registry.own, make_job(), registry=registry)
    late, _ = drawn(registry.own, make_job(refiner=refined(1.0)), registry=registry)
    early, _ = drawn(registry.own, make_job(refiner=refined(0.0)), registry=registry)
    other, _ = registry.checkpoint("other", "")
    whole = replace(other, decoder=registry.own.decoder)
    alone, _ = drawn(whole, make_job())
    assert np.array_equal(own[0], late[0])
    assert np.array_equal(early[0], alone[0])


def test_the_second_pass_may_have_another_checkpoint(
    registry: Registry, denoisers: list[tuple[Any, int]]
) -> None:
    job = make_job(hires=enlarged(128, 128, checkpoint="other"))
    drawn(registry.own, job, registry=registry)
    assert [denoiser is registry.own.denoiser for denoiser, _ in denoisers] == [True] * 4 + [False] * 4


def test_latents_are_not_handed_to_a_checkpoint_that_means_another_thing_by_them(registry: Registry) -> None:
    latent = make_job(hires=enlarged(128, 128, checkpoint="xl"))
    with pytest.raises(InvalidJob, match="hr_checkpoint_name: that is SDXL"):
        Prepared.of(latent, registry)
    with pytest.raises(InvalidJob, match="refiner_checkpoint: that is SDXL"):
        Prepared.of(make_job(refiner=replace(refined(0.5), checkpoint="xl")), registry)
    by_picture = make_job(hires=enlarged(128, 128, checkpoint="xl", upscaler="Lanczos"))
    (picture,), _ = drawn(registry.own, by_picture, registry=registry)
    assert picture.shape == (128, 128, 3)


def test_a_job_keeps_its_refiner_loaded_until_it_is_done(
    tmp_path: Path, checkpoint: LoadedCheckpoint
) -> None:
    paths = {name: write_checkpoint(tmp_path / f"{name}.safetensors", seed=1) for name in ("other", "next")}
    companions = Companions(paths, lambda path: load_checkpoint(path, device="cpu"), max_bytes=1)
    engine = Engine(checkpoint)
    job = make_job(refiner=refined(0.5))
    engine.add(job, Prepared.of(job, Registry(checkpoint, "demo", companions)))
    engine.step()
    waiting = threading.Thread(target=companions.get, args=("next", ""))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    while len(engine):
        engine.step()
    waiting.join(10)
    assert not waiting.is_alive()
