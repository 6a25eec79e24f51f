from typing import Any

from fastapi import FastAPI

from ingress.openapi import document
from tests.ingress.fakes import FakeBackend


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


def willing_backend() -> FakeBackend:
    """One that answers every example."""
    backend = FakeBackend()
    backend.captions = Anything()
    return backend
