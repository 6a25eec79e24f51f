"""An order that is stored: made of a body, resolved to the same jobs whenever it is run, and told of."""

import asyncio
import base64
import json
from datetime import UTC, datetime
from random import Random
from typing import Any

from pydantic_core import from_json, to_json
from starlette.types import Message

from ingress import generate
from ingress.deps import Service
from ingress.generate import Asked
from ingress.schemas.jobs import BODIES, JobError, JobPictures, JobStatus
from ingress.schemas.sdapi import GenerationRequest
from ingress.store import options as stored_options
from ingress.store.orders import Claimed, Kind, NewOrder, StoredOrder
from ingress.translate import Generation


def random_id(random: Random) -> str:
    """128 bits, in hexadecimal."""
    return f"{random.getrandbits(128):032x}"


def new(id: str, kind: Kind, body: GenerationRequest, webhook: str | None, asked: Asked) -> NewOrder:
    """What to store of an order, with everything that its pictures depend on. `id` is what it is stored by,
    `asked.id` what the backend is to know it by."""
    return NewOrder(
        id=id,
        key=asked.key,
        kind=kind,
        name=asked.id,
        seed=random_id(asked.random),
        asked=asked.now.timestamp(),
        options=asked.options,
        webhook=webhook,
        body=body.model_dump_json(exclude_unset=True).encode(),
    )


def resolved(order: NewOrder | Claimed, service: Service) -> tuple[Generation, Asked]:
    """What the order comes to, now or after a restart. Raises what is wrong with it."""
    asked = Asked(
        id=order.name,
        key=order.key,
        options=order.options,
        random=Random(int(order.seed, 16)),
        now=datetime.fromtimestamp(order.asked),
    )
    body = BODIES[order.kind].model_validate_json(order.body)
    return generate.resolved(body, asked, service), asked


async def drawn(order: Claimed, service: Service) -> str:
    """Run the order, keep its pictures, and return what to store as its answer. Raises as a request does."""
    generation, asked = resolved(order, service)
    options = generate.options_after(generation, asked, service)
    came = await generate.drawn(generation, asked, service, _nobody_leaves)
    await stored_options.save(service.database, asked.key, asked.options, options)
    content = came.content
    pictures = [base64.b64decode(picture) for picture in content["images"]]
    await service.results.keep(order.claim, pictures)
    answer = {
        "images": len(pictures),
        "parameters": content["parameters"],
        "info": content["info"],
        "warnings": json.loads(came.headers.get("X-Warnings", "[]")),
    }
    return to_json(answer).decode()


async def _nobody_leaves() -> Message:
    """An ASGI `receive` without a client."""
    await asyncio.Event().wait()
    raise AssertionError


def summary(order: StoredOrder) -> dict[str, Any]:
    return {
        "id": order.id,
        "kind": order.kind,
        "state": order.state,
        "created": utc(order.created),
        "started": utc(order.started) if order.started and order.state != "queued" else None,
        "finished": utc(order.finished) if order.finished else None,
        "links": links(order.id),
    }


async def status(order: StoredOrder, service: Service) -> JobStatus:
    """All that is told of an order."""
    progress, eta = (1.0 if order.state in ("done", "expired") else 0.0), None
    if order.state == "running":
        found = await service.backend.progress(order.key, order.name, preview=False)
        progress, eta = (found.progress, found.eta) if found else (0.0, None)
    return JobStatus(
        **summary(order),
        place=await service.orders.place(order.id) if order.state == "queued" else None,
        progress=progress,
        eta=eta,
        error=JobError(**order.error) if order.error else None,
        result=_pictures(order) if order.state == "done" else None,
        expires=utc(order.expires) if order.expires and order.state == "done" else None,
    )


def links(id: str) -> dict[str, str]:
    return {"self": f"/v1/jobs/{id}", "events": f"/v1/jobs/{id}/events"}


def utc(seconds: float) -> str:
    """ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def pictures(order: StoredOrder) -> int:
    """How many an order that is done has."""
    assert order.answer is not None
    return int(from_json(order.answer)["images"])


def _pictures(order: StoredOrder) -> JobPictures:
    assert order.answer is not None
    images = [f"/v1/jobs/{order.id}/results/{number}" for number in range(pictures(order))]
    return JobPictures(**{**from_json(order.answer), "images": images})
