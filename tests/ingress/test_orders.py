from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from engine.protocol import Job
from ingress import orders, translate
from ingress.errors import InvalidRequest
from ingress.schemas import jobs
from ingress.store.orders import Claimed, NewOrder
from tests.ingress.fakes import FakeBackend, picture
from tests.ingress.gateways import accepted, found, ordered, service_of, settings_in

BODIES: dict[str, dict[str, Any]] = {
    "txt2img": {"prompt": "a cat", "batch_size": 3, "subseed_strength": 0.5},
    "coerced": {"prompt": 5, "steps": "20.7", "override_settings": [], "nonsense": 1},
    "hires": {"enable_hr": True, "denoising_strength": 0.5, "seed": 7},
    "img2img": {"init_images": [picture()], "mask": picture(), "n_iter": 2},
    "infotext": {"infotext": "a dog\nSteps: 4, Sampler: Euler a, CFG scale: 3, Seed: 9, Size: 64x64"},
}


def comes_to(order: NewOrder | Claimed, service: Any) -> list[Job]:
    generation, asked = orders.resolved(order, service)
    return translate.jobs(generation, asked.random)


@pytest.mark.parametrize("name", BODIES)
async def test_a_stored_order_comes_to_the_same_jobs_after_a_restart(tmp_path: Path, name: str) -> None:
    before = service_of(FakeBackend(), settings_in(tmp_path))
    order = ordered(before, BODIES[name])
    wanted = comes_to(order, before)
    await before.orders.accept(order)
    await before.database.close()
    after = service_of(FakeBackend(), settings_in(tmp_path))
    claimed = await after.orders.claim()
    assert claimed is not None
    assert comes_to(claimed, after) == wanted
    assert len({job.id for job in wanted}) == len(wanted)
    await after.database.close()


@pytest.mark.parametrize("name", BODIES)
def test_a_stored_order_is_the_request_that_was_sent(tmp_path: Path, name: str) -> None:
    """The jobs of a request whose randomness is the same are its jobs, but for what it says of the time."""
    service = service_of(FakeBackend(), settings_in(tmp_path))
    order = ordered(service, BODIES[name])
    _, _, request = jobs.read(BODIES[name])
    assert jobs.BODIES[order.kind].model_validate_json(order.body) == request
    assert (
        jobs.BODIES[order.kind].model_validate_json(order.body).model_fields_set == request.model_fields_set
    )


def test_two_orders_of_one_body_are_drawn_from_other_seeds(tmp_path: Path) -> None:
    service = service_of(FakeBackend(), settings_in(tmp_path))
    first, second = (comes_to(ordered(service, {"prompt": "x"}), service) for _ in range(2))
    assert first[0].seed != second[0].seed
    assert first[0].id != second[0].id


def test_the_time_is_that_of_the_asking(tmp_path: Path) -> None:
    service = service_of(FakeBackend(), settings_in(tmp_path))
    before = datetime.now()
    order = ordered(service, {})
    generation, _ = orders.resolved(order, service)
    assert before <= generation.started <= datetime.now()


def test_the_backend_knows_an_order_by_the_clients_task_id(tmp_path: Path) -> None:
    service = service_of(FakeBackend(), settings_in(tmp_path))
    named, plain = ordered(service, {"force_task_id": "task(abc)"}), ordered(service, {})
    assert (named.name, plain.name) == ("task(abc)", plain.id)
    assert named.id != "task(abc)"
    for wrong in ("a\0b", "a\nb", "a€b", "x" * 257):
        with pytest.raises(InvalidRequest, match=r"force_task_id: .* is not allowed"):
            ordered(service, {"force_task_id": wrong})


async def test_an_order_is_told_with_its_place_and_times_in_utc(tmp_path: Path) -> None:
    service = service_of(FakeBackend(), settings_in(tmp_path))
    first = await accepted(service, prompt="x")
    second = await accepted(service, prompt="y")
    told = await orders.status(await found(service, second), service)
    assert (told.state, told.place, told.progress, told.eta) == ("queued", 2, 0, None)
    assert told.started is None
    assert told.finished is None
    assert told.result is None
    created = datetime.fromisoformat(told.created)
    assert told.created.endswith("Z")
    assert abs(created.timestamp() - datetime.now().timestamp()) < 5
    assert told.links == {"self": f"/v1/jobs/{second}", "events": f"/v1/jobs/{second}/events"}
    assert (await orders.status(await found(service, first), service)).place == 1
    await service.database.close()


def test_what_is_claimed_is_all_that_decides() -> None:
    """Whoever adds to an order what its pictures depend on has to see to it that it is stored."""
    decides = {field.name for field in fields(NewOrder)} - {"webhook"}
    assert decides <= {field.name for field in fields(Claimed)}


async def test_an_order_has_the_options_that_its_caller_had(tmp_path: Path) -> None:
    """Set, and changed since."""
    service = service_of(FakeBackend(), settings_in(tmp_path))
    order = ordered(service, {"prompt": "x"}, options={"CLIP_stop_at_last_layers": 5})
    await service.orders.accept(order)
    claimed = await service.orders.claim()
    assert claimed is not None
    assert [job.clip_skip for job in comes_to(claimed, service)] == [5]
    assert [job.clip_skip for job in comes_to(ordered(service, {}), service)] == [1]
    await service.database.close()
