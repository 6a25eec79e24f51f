import base64
from dataclasses import replace
from typing import Any

from fastapi import FastAPI

from engine.protocol import Enlargement, Job, JobResult
from ingress.openapi import document
from tests.ingress.fakes import FakeBackend, picture


def bodies(app: FastAPI) -> dict[str, dict[str, Any]]:
    """By path: of every route that takes a body, the first example that the OpenAPI document gives."""
    found = {}
    for path, item in document(app, locked=True)["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        if examples := content.get("application/json", {}).get("examples"):
            found[path] = next(iter(examples.values()))["value"]
    return found


class Anything(dict[bytes, str]):
    """A caption for every picture."""

    def __contains__(self, image: object) -> bool:
        return True

    def __missing__(self, image: bytes) -> str:
        return "a picture"


class Willing(FakeBackend):
    """What it enlarges are pictures."""

    async def run(self, job: Job | Enlargement) -> JobResult:
        done = await super().run(job)
        return replace(done, image=base64.b64decode(picture())) if isinstance(job, Enlargement) else done


def willing_backend() -> FakeBackend:
    """One that answers every example."""
    backend = Willing()
    backend.captions = Anything()
    return backend
