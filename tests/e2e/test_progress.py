"""Progress, interrupt and skip on a running service with two gateways: whoever is asked tells the same."""

import base64
import io
import json
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import ray
from PIL import Image

from deployments.board.remote import find_actor
from tests.e2e.service import OTHERS_SECRET, Service, wait_until
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.ray

BODY = {
    "prompt": "a red circle",
    "seed": 7,
    "steps": 150,
    "sampler_name": "Heun",
    "width": 128,
    "height": 128,
}
ENDLESS = BODY | {"width": 256, "height": 256, "batch_size": 8}
"""As good as: it is interrupted when all has been seen."""
SINGLE = {"override_settings": {"sd_model_checkpoint": "single"}}


class Caller:
    """With a key of its own, at one of the gateways."""

    def __init__(self, client: httpx2.Client, pool: ThreadPoolExecutor) -> None:
        self._client = client
        self._pool = pool

    def draws(self, body: dict[str, Any], id: str) -> "Future[httpx2.Response]":
        return self._pool.submit(self._client.post, "/sdapi/v1/txt2img", json=body | {"force_task_id": id})

    def sees(self, id: str | None = None, *, preview: bool = False) -> dict[str, Any]:
        query = {"skip_current_image": str(not preview)} | ({"id": id} if id else {})
        answer = self._client.get("/sdapi/v1/progress", params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def runs(self, id: str) -> bool:
        return bool(self.sees(id)["progress"])

    def has_drawn(self, id: str) -> bool:
        """Something, on the average of the order's pictures."""
        return bool(self.sees(id)["state"]["sampling_step"])

    def stops(self, id: str | None = None, *, how: str = "interrupt") -> None:
        answer = self._client.post(f"/sdapi/v1/{how}", json={"id_task": id})
        assert answer.status_code == 200, answer.text

    def internal(self, id: str) -> dict[str, Any]:
        return dict(self._client.post("/internal/progress", json={"id_task": id}).json())

    def pending(self) -> list[str]:
        return list(self._client.get("/internal/pending-tasks").json()["tasks"])

    @contextmanager
    def drawing(self, body: dict[str, Any]) -> Iterator[str]:
        """The id of an order that runs, and is interrupted in the end."""
        id = uuid.uuid4().hex
        call = self.draws(body, id)
        try:
            wait_until(lambda: self.runs(id))
            yield id
        finally:
            self.stops(id)
            assert call.result().status_code == 200


@pytest.fixture(scope="module")
def two_gateways(service: Service, folder: Path) -> Iterator[None]:
    """Adds another gateway at /b, and the checkpoint `single` that draws one picture at a time."""
    gateway = {**service.gateway, "name": "gateway-b", "route_prefix": "/b"}
    override = {"name": "Gateway", "user_config": {"checkpoints": service.offer}}
    path = write_checkpoint(folder / "single.safetensors", seed=9)
    service.add("single", path, max_ongoing_jobs=1)
    service.applications.append({**gateway, "deployments": [override]})
    service.deploy()
    client = httpx2.Client(base_url=f"{service.url}/b", headers=service.client.headers)
    wait_until(lambda: service.hashes().get("single"))
    wait_until(lambda: client.get("/health/ready").status_code == 200)
    wait_until(lambda: len(client.get("/sdapi/v1/sd-models").json()) == len(service.offer))
    client.close()
    yield
    del service.applications[-2:], service.offer[-1]
    service.deploy()
    wait_until(lambda: not any(service.status(name)[0] for name in ("gateway-b", "single")))


@pytest.fixture
def callers(service: Service, two_gateways: None) -> Iterator[dict[str, Caller]]:
    """`me` at the one gateway, `me_at_b` at the other, and `others` there with another key."""
    mine = dict(service.client.headers)
    others = mine | {"authorization": f"Bearer {OTHERS_SECRET}"}
    clients = {
        "me": httpx2.Client(base_url=service.url, headers=mine, timeout=120),
        "me_at_b": httpx2.Client(base_url=f"{service.url}/b", headers=mine, timeout=120),
        "others": httpx2.Client(base_url=f"{service.url}/b", headers=others, timeout=120),
    }
    with ThreadPoolExecutor(8) as pool:
        yield {name: Caller(client, pool) for name, client in clients.items()}
    for client in clients.values():
        client.close()


@pytest.fixture
def me(callers: dict[str, Caller]) -> Caller:
    return callers["me"]


@pytest.fixture
def me_at_b(callers: dict[str, Caller]) -> Caller:
    return callers["me_at_b"]


@pytest.fixture
def others(callers: dict[str, Caller]) -> Caller:
    return callers["others"]


def differs_little(one: bytes, other: bytes) -> bool:
    """Company may change last bits."""
    a, b = (Image.open(io.BytesIO(png)).tobytes() for png in (one, other))
    return len(a) == len(b) and all(abs(x - y) <= 1 for x, y in zip(a, b, strict=True))


def pictures(answer: httpx2.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(image) for image in answer.json()["images"]]


def by_seed(answer: httpx2.Response) -> dict[int, bytes]:
    drawn = pictures(answer)
    return dict(zip(json.loads(answer.json()["info"])["all_seeds"], drawn, strict=True))


def test_progress_grows_and_either_gateway_tells_it(me: Caller, me_at_b: Caller) -> None:
    compared: list[float] = []
    with me.drawing(ENDLESS) as id:

        def compare() -> bool:
            """What one gateway tells between two equal answers of the other."""
            first, other, last = me.sees(id), me_at_b.sees(id), me.sees(id)
            if first == last:
                assert other == first
                compared.append(first["progress"])
            return len(set(compared)) >= 3

        wait_until(compare)
        assert me_at_b.sees()["state"]["job"] == "scripts_txt2img"
        wait_until(lambda: me_at_b.sees(id)["eta_relative"])
        assert me_at_b.internal(id)["active"]
    assert compared == sorted(compared)
    wait_until(lambda: me_at_b.internal(id)["completed"])
    assert me.internal(id)["completed"]
    for caller in (me, me_at_b):
        assert (caller.sees(id)["progress"], caller.sees()["state"]["job_count"]) == (0.0, 0)


def test_another_key_sees_nothing_of_it(me: Caller, others: Caller) -> None:
    with me.drawing(ENDLESS) as id:
        assert (others.sees(id)["progress"], others.sees()["state"]["job_count"]) == (0.0, 0)
        others.stops(id)
        others.stops()
        others.stops(how="skip")
        progress = me.sees(id)["progress"]
        wait_until(lambda: me.sees(id)["progress"] > progress)
        assert not me.sees(id)["state"]["interrupted"]


def test_a_preview_appears_where_one_is_wanted(me: Caller, me_at_b: Caller) -> None:
    with me.drawing(ENDLESS) as id:
        assert me_at_b.sees(id)["current_image"] is None
        wait_until(lambda: me_at_b.sees(id, preview=True)["current_image"])
        preview = base64.b64decode(me_at_b.sees(id, preview=True)["current_image"])
        assert Image.open(io.BytesIO(preview)).size == (32, 32)
        assert me.internal(id)["live_preview"].startswith("data:image/jpeg;base64,")


def test_interrupt_without_an_id_stops_the_callers_own_alone(
    me: Caller, me_at_b: Caller, others: Caller
) -> None:
    [undisturbed] = pictures(me.draws(BODY, "undisturbed").result())
    mine = [me.draws(ENDLESS | {"batch_size": 1}, "same-id"), me.draws(ENDLESS, "endless")]
    wait_until(lambda: me.has_drawn("same-id") and me.has_drawn("endless"))
    theirs = others.draws(BODY, "same-id")
    wait_until(lambda: others.has_drawn("same-id"))
    me_at_b.stops()
    assert all(pictures(call.result()) for call in mine)
    [picture] = pictures(theirs.result())
    assert differs_little(picture, undisturbed)
    wait_until(lambda: me.sees("same-id")["state"]["interrupted"] and me.internal("same-id")["completed"])
    assert not others.sees("same-id")["state"]["interrupted"]


def test_orders_that_wait_have_places_and_can_be_stopped_there(me: Caller, me_at_b: Caller) -> None:
    with me.drawing(ENDLESS | SINGLE | {"batch_size": 1}):
        first = me_at_b.draws(BODY | SINGLE, "first")
        wait_until(lambda: me.sees("first")["textinfo"] == "In queue: 1/1")
        second = me.draws(BODY | SINGLE, "second")
        wait_until(lambda: me_at_b.sees("second")["textinfo"] == "In queue: 2/2")
        assert me.pending() == me_at_b.pending() == ["first", "second"]
        assert me_at_b.internal("second")["queued"]
        assert me.sees("second")["progress"] == 0.0
        wait_until(lambda: me.sees("second")["eta_relative"] > me.sees("first")["eta_relative"] > 0)
        me_at_b.stops("second")
        assert pictures(second.result()) == []
        wait_until(lambda: me_at_b.sees("first")["textinfo"] == "In queue: 1/1")
        me.stops("first")
        assert pictures(first.result()) == []


def test_skip_leaves_what_has_not_begun(me: Caller, me_at_b: Caller) -> None:
    """The replica takes ten at a time of what comes at once, whatever its limit."""
    body = BODY | SINGLE | {"steps": 30, "n_iter": 16}
    whole = by_seed(me.draws(body, "whole").result())
    call = me.draws(body, "skipped")
    wait_until(lambda: me.has_drawn("skipped"))
    me_at_b.stops("skipped", how="skip")
    skipped = by_seed(call.result())
    drawn = [seed for seed, picture in skipped.items() if differs_little(picture, whole[seed])]
    assert 0 < len(drawn) < len(skipped) <= len(whole) == 16


@pytest.mark.parametrize("for_good", [True, False])
def test_pictures_go_on_without_a_board_and_it_comes_back(
    me: Caller, me_at_b: Caller, for_good: bool
) -> None:
    undisturbed = pictures(me.draws(BODY, "undisturbed").result())
    with me.drawing(ENDLESS) as id:
        ray.kill(find_actor(), no_restart=for_good)
        drawn = pictures(me.draws(BODY, "drawn").result())
        assert differs_little(drawn[0], undisturbed[0])
        wait_until(lambda: me_at_b.runs(id) and me.runs(id))
        wait_until(lambda: me_at_b.sees(id, preview=True)["current_image"])
        assert me.internal("drawn")["completed"]
