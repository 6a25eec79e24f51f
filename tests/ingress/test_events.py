import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from engine.protocol import JobFailed
from ingress.backend import OrderProgress
from ingress.deps import Service
from ingress.errors import described
from ingress.events import events
from ingress.store.orders import End
from tests.ingress.fakes import FakeBackend
from tests.ingress.gateways import accepted, service_of, settings_in

WHY = described(JobFailed("why"))

HALF = OrderProgress(
    id="x", state="running", progress=0.5, eta=2.0, place=None, places=None, preview=b"picture", preview_id=3,
    sampling_step=10, sampling_steps=20, job_no=0, job_count=1, timestamp="20260101000000", kind="txt2img",
    interrupted=False, skipped=False,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.events.POLL_SECONDS", 0.01)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service = service_of(FakeBackend(), settings_in(tmp_path))
    yield service
    await service.database.close()


async def stays() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def read(chunk: bytes) -> dict[str, Any]:
    """An event's fields, its data as what the JSON says."""
    assert chunk.endswith(b"\n\n")
    fields = dict(line.split(": ", 1) for line in chunk.decode().strip().split("\n"))
    return {**fields, "data": json.loads(fields["data"])}


async def following(stream: AsyncIterator[bytes]) -> dict[str, Any]:
    return read(await asyncio.wait_for(anext(stream), 5))


async def test_an_order_is_followed_from_its_place_to_its_end(service: Service) -> None:
    backend = service.backend
    assert isinstance(backend, FakeBackend)
    first, second = [await accepted(service, prompt="x") for _ in range(2)]
    stream = events(second, service, stays)
    assert await following(stream) == {"event": "queued", "id": "queued", "data": {"place": 2}}
    await service.orders.abort(first, "a")
    assert (await following(stream))["data"] == {"place": 1}
    claimed = await service.orders.claim()
    assert claimed is not None
    assert await following(stream) == {
        "event": "progress", "id": "running", "data": {"progress": 0, "eta": None}
    }  # fmt: skip
    backend.found["a", second] = HALF
    half = {"progress": 0.5, "eta": 2.0, "sampling_step": 10, "sampling_steps": 20}
    preview = base64.b64encode(b"picture").decode()
    assert (await following(stream))["data"] == half | {"preview": preview}
    backend.found["a", second] = replace(HALF, sampling_step=11)
    assert (await following(stream))["data"] == half | {"sampling_step": 11}
    backend.found["a", second] = replace(HALF, sampling_step=11, preview_id=4)
    assert (await following(stream))["data"] == half | {"sampling_step": 11, "preview": preview}
    answer = '{"images": 1, "parameters": {}, "info": "{}", "warnings": []}'
    await service.orders.finish(claimed.claim, "done", answer=answer)
    end = await following(stream)
    assert (end["event"], end["id"], end["data"]["state"]) == ("done", "done", "done")
    assert end["data"]["result"]["images"] == [f"/v1/jobs/{second}/results/0"]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@pytest.mark.parametrize("state", ["failed", "aborted"])
async def test_who_comes_late_is_told_the_end(service: Service, state: End) -> None:
    id = await accepted(service, prompt="x")
    claimed = await service.orders.claim()
    assert claimed is not None
    await service.orders.finish(claimed.claim, state, error=WHY)
    told = [read(chunk) async for chunk in events(id, service, stays)]
    assert [(one["event"], one["data"]["error"]) for one in told] == [(state, dict(WHY))]


async def test_nothing_new_is_a_comment_every_so_often(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingress.events.SILENT_POLLS", 5)
    stream = events(await accepted(service, prompt="x"), service, stays)
    assert read(await anext(stream))["event"] == "queued"
    started = asyncio.get_running_loop().time()
    for _ in range(2):
        assert await anext(stream) == b": ping\n\n"
    assert asyncio.get_running_loop().time() - started >= 0.09
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_client_that_leaves_ends_it(service: Service) -> None:
    left = asyncio.Event()

    async def leaves() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    stream = events(await accepted(service, prompt="x"), service, leaves)
    await anext(stream)
    left.set()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(stream), 1)
    assert len(asyncio.all_tasks()) == 1


async def test_an_order_that_is_forgotten_ends_it(service: Service) -> None:
    assert [chunk async for chunk in events("0" * 32, service, stays)] == []
