"""The refiner's fields: which checkpoint takes over, when, and what the infotext says."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.protocol import Checkpoint, Refiner
from tests.ingress.fakes import FakeBackend

Draw = Callable[..., Any]
OTHER = "majicmixRealistic_v7"


def test_the_refiner_is_the_jobs(draw: Draw, backend: FakeBackend) -> None:
    assert draw(refiner_checkpoint=OTHER, refiner_switch_at=0.8).status_code == 200
    assert backend.jobs[0].refiner == Refiner(checkpoint=OTHER, switch_at=0.8, by_timestep=False)
    assert backend.jobs[0].checkpoint == "demo"
    assert "Refiner: majicmixRealistic_v7 [7c819b6d13], Refiner switch at: 0.8" in backend.jobs[0].infotext


@pytest.mark.parametrize("name", [f"{OTHER} [7c819b6d13]", "7c819b6d13", "MajicMix", "real/"])
def test_the_refiner_may_be_named_in_part(draw: Draw, backend: FakeBackend, name: str) -> None:
    draw(refiner_checkpoint=name)
    refiner = backend.jobs[0].refiner
    assert refiner is not None
    assert (refiner.checkpoint, refiner.switch_at) == (OTHER, 0.0)


@pytest.mark.parametrize("name", [None, "", "None", "none"])
def test_ways_to_say_no_refiner(draw: Draw, backend: FakeBackend, name: str | None) -> None:
    draw(refiner_checkpoint=name, refiner_switch_at=7)
    assert backend.jobs[0].refiner is None


@pytest.mark.parametrize(
    ("version", "options", "by_timestep"),
    [
        ("v1.7.0", {}, False),
        ("v1.10.1", {}, True),
        ("v1.10.1", {"refiner_switch_by_sample_steps": True}, False),
    ],
)
def test_what_is_counted_on_the_way_is_the_versions(
    make_client: Callable[..., TestClient],
    backend: FakeBackend,
    version: str,
    options: dict[str, Any],
    by_timestep: bool,
) -> None:
    body = {"refiner_checkpoint": OTHER, "override_settings": options}
    make_client(compat_version=version).post("/sdapi/v1/txt2img", json=body)
    refiner = backend.jobs[0].refiner
    assert refiner is not None
    assert refiner.by_timestep == by_timestep


@pytest.mark.parametrize(
    ("passes", "first", "second"),
    [(None, False, True), ("first pass", True, False), ("both passes", True, True)],
)
def test_of_a_hires_fix_the_refiner_takes_part_in_the_second_pass_unless_told_otherwise(
    draw: Draw, backend: FakeBackend, passes: str | None, first: bool, second: bool
) -> None:
    options = {"hires_fix_refiner_pass": passes} if passes else {}
    draw(refiner_checkpoint=OTHER, enable_hr=True, override_settings=options)
    (job,) = backend.jobs
    assert job.hires is not None
    assert (job.refiner is not None, job.hires.refiner is not None) == (first, second)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"refiner_checkpoint": "no such"}, 404, "refiner_checkpoint: 'no such'"),
        ({"refiner_checkpoint": OTHER, "refiner_switch_at": 1.5}, 422, "refiner_switch_at: 1.5"),
    ],
)
def test_bad_input_is_named_before_any_work(
    draw: Draw, backend: FakeBackend, body: dict[str, Any], status: int, named: str
) -> None:
    answer = draw(**body)
    assert answer.status_code == status
    assert named in answer.json()["detail"]
    assert not backend.jobs


def test_a_checkpoint_without_replicas_is_for_refining_only(draw: Draw, backend: FakeBackend) -> None:
    backend.offered = [*backend.offered, Checkpoint(name="fine", filename="fine.safetensors", companion=True)]
    assert draw(refiner_checkpoint="fine").status_code == 200
    for field, body in (
        ("model", {"model": "fine"}),
        ("override_settings.sd_model_checkpoint", {"override_settings": {"sd_model_checkpoint": "fine"}}),
    ):
        answer = draw(**body)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(f"{field}: 'fine' draws nothing alone")


@pytest.mark.parametrize(
    "body", [{"tiling": True}, {"override_settings": {"tiling": True}}, {"tiling": True, "enable_hr": True}]
)
def test_tiling_is_the_jobs_and_in_the_infotext(
    draw: Draw, backend: FakeBackend, body: dict[str, Any]
) -> None:
    draw(**body)
    assert backend.jobs[0].tiling
    assert ", Tiling: True" in backend.jobs[0].infotext


def test_a_request_that_denies_tiling_wins_over_the_option(draw: Draw, backend: FakeBackend) -> None:
    draw(tiling=False, override_settings={"tiling": True})
    assert not backend.jobs[0].tiling
    assert "Tiling" not in backend.jobs[0].infotext
