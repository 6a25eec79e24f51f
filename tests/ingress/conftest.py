import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.testclient import TestClient

from ingress.app import build_app
from ingress.settings import Key, Settings
from tests.ingress.fakes import FakeBackend


@pytest.fixture
def key() -> str:
    return "correct-horse"


@pytest.fixture
def settings(key: str) -> Settings:
    return Settings(keys=(Key(id="test", sha256=hashlib.sha256(key.encode()).hexdigest()),))


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def make_client(backend: FakeBackend, settings: Settings, key: str) -> Iterator[Callable[..., TestClient]]:
    """A client with the key, of an app whose settings are changed as the keywords say."""
    with ExitStack() as running:

        def make(**changes: Any) -> TestClient:
            app = build_app(backend, settings.model_copy(update=changes))
            return running.enter_context(TestClient(app, headers={"authorization": f"Bearer {key}"}))

        yield make


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@pytest.fixture
def draw(client: TestClient) -> Callable[..., Any]:
    """Post the keywords as a txt2img body."""
    return lambda **body: client.post("/sdapi/v1/txt2img", json=body)
