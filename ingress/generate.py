"""One order from its body to its answer: what an HTTP request and a stored one have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random
from typing import Any

from starlette.types import Receive

from engine.protocol import JobResult
from ingress import dispatch, options, translate
from ingress.backend import Order
from ingress.deps import Service
from ingress.errors import InvalidRequest, shown
from ingress.saving import save
from ingress.schemas.sdapi import GenerationRequest, Txt2ImgRequest
from ingress.translate import Generation

MAX_ID_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who asks, and what decides all that the body leaves open: the same again gives the same pictures.

    `id` is the order's, `key` that of the caller's API key, `options` what the caller has set by
    `POST /options`. `random` draws seeds and the jobs' ids. `now` is local time.
    """

    id: str
    key: str
    options: Mapping[str, Any]
    random: Random
    now: datetime


@dataclass(frozen=True, slots=True)
class Drawn:
    """What came of an order. `grid` is a picture of all its pictures, if there is one."""

    generation: Generation
    results: Sequence[JobResult]
    grid: bytes | None = None

    @property
    def content(self) -> dict[str, Any]:
        """The answer's body."""
        return translate.response(self.generation, self.results, self.grid)

    @property
    def headers(self) -> dict[str, str]:
        return translate.headers(self.generation, self.results)


def order_id(body: GenerationRequest, otherwise: str) -> str:
    """The id that the caller has chosen for its order. Raises `InvalidRequest` for what no header can say."""
    given = body.force_task_id or otherwise
    if len(given) > MAX_ID_CHARS or not (given.isascii() and given.isprintable()):
        allowed = f"at most {MAX_ID_CHARS} printable characters of ASCII"
        raise InvalidRequest(f"force_task_id: {shown(given)} is not allowed. Allowed: {allowed}.")
    return given


def resolved(body: GenerationRequest, asked: Asked, service: Service) -> Generation:
    """What the order comes to. Raises what is wrong with it; no work is done."""
    available = service.backend.checkpoints()
    return translate.resolve(body, available, service.settings, asked.random, asked.now, asked.options)


def options_after(generation: Generation, asked: Asked, service: Service) -> Mapping[str, Any]:
    """What the caller has set when the order is done: its overrides too, where they are to stay.

    Raises `InvalidRequest` for values that cannot be kept.
    """
    request = generation.sent
    if request.override_settings_restore_afterwards:
        return asked.options
    available = service.backend.checkpoints()
    overrides = options.counting({}, request.override_settings or {})
    return options.changed(asked.options, overrides, service.settings, available, "override_settings")


async def drawn(generation: Generation, asked: Asked, service: Service, receive: Receive) -> Drawn:
    """The order's pictures, saved if that was asked for. `receive` is watched for a client that leaves.

    Raises the errors of `engine.protocol` and `ClientDisconnected`.
    """
    jobs = translate.jobs(generation, asked.random)
    order = Order(
        id=asked.id,
        key=asked.key,
        kind="txt2img" if isinstance(generation.request, Txt2ImgRequest) else "img2img",
        checkpoint=generation.checkpoint.name,
        jobs=tuple(job.id for job in jobs),
        batch_size=generation.batch_size,
        steps=generation.request.steps,
        timestamp=translate.timestamp(generation),
    )
    deadline = service.settings.limits.deadline_seconds
    results = await dispatch.run(order, jobs, service.backend, receive, deadline)
    ids = {result.job_id for result in results}
    missing = frozenset(image for image, job in enumerate(jobs) if job.id not in ids)
    generation = replace(generation, missing=missing)
    grid = None
    if generation.saving and service.pictures:
        grid = await save(
            generation.saving, results, generation.file_format, generation.started, service.pictures
        )
    return Drawn(generation, results, grid)
