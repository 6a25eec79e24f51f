"""Each line of `ingress/contract.py` against the application, and the application against the lines."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from random import Random
from time import sleep
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.testclient import TestClient

from engine.protocol import Enlargement, Job
from ingress import contract
from ingress.app import build_app
from ingress.contract import FIELDS, HONOURED, IGNORED, REFUSED, REQUESTS, ROUTES, WITHIN, Field
from ingress.schemas.sdapi import OverrideSettings
from ingress.settings import Settings, Style
from ingress.store.pictures import PictureStore
from tests.ingress.bodies import willing_backend
from tools import api

ASSETS = frozenset({"/docs/assets/{name:path}", "/redoc/assets/{name:path}"})
"""What pages of documents are made of."""

LINES = [(prefix, route) for prefixes, routes in ROUTES.items() for prefix in prefixes for route in routes]
SETTINGS = Settings(
    auth="off",
    compat_version="v1.10.1",
    styles=(Style(name="ink", prompt="ink drawing"),),
    save_dir="memory://contract",
)
NO_OPTIONS = dict.fromkeys(OverrideSettings.model_fields)
NOW = datetime(2024, 3, 14, 16, 46, 34)


@dataclass(frozen=True)
class Outcome:
    """What a request comes to, for a backend that answers at once."""

    status: int
    jobs: list[Job | Enlargement]
    answer: dict[str, Any]
    task_id: str
    saved: int

    @property
    def pictures(self) -> int:
        return len(self.answer.get("images", self.answer.get("image", "")))

    def effect(self, own: str) -> object:
        """What the pictures and the rest of the answer depend on; `own` is the field that is looked at."""
        drawn = [
            replace(job, id="", infotext="") if isinstance(job, Job) else replace(job, id="", texts={})
            for job in self.jobs
        ]
        parameters = {**self.answer.get("parameters", {}), own: None}
        return drawn, self.pictures, self.task_id, parameters, self.saved


Sent = Callable[[str, Mapping[str, Any]], Outcome]


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return build_app(willing_backend(), SETTINGS)


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, headers={"x-request-id": "request"}) as client:
        yield client


@pytest.fixture
def sent(app: FastAPI, client: TestClient) -> Sent:
    """Post a body to a route. The same one comes to the same jobs, with the same ids. No option is set."""
    client.post("/sdapi/v1/options", json=NO_OPTIONS)

    def send(route: str, body: Mapping[str, Any]) -> Outcome:
        backend, pictures = willing_backend(), PictureStore(f"memory://{uuid4()}")
        app.state.service = replace(
            app.state.service, backend=backend, random=Random(0), now=lambda: NOW, pictures=pictures
        )
        answer = client.post(f"/sdapi/v1{route}", json=body)
        return Outcome(
            answer.status_code,
            [*backend.jobs, *backend.enlargements],
            answer.json(),
            answer.headers.get("x-task-id", ""),
            len(pictures._files.find(pictures._folder)),
        )

    return send


@dataclass(frozen=True)
class Case:
    """A field sent to a route: the body with its sample, and the body without. `own` is the part it is in."""

    route: str
    within: str
    field: Field

    @property
    def own(self) -> str:
        return self.within or self.field.name

    @property
    def name(self) -> str:
        return f"{self.within}.{self.field.name}" if self.within else self.field.name

    @property
    def without(self) -> dict[str, Any]:
        return {**REQUESTS[self.route].base, **self.field.given}

    @property
    def having(self) -> dict[str, Any]:
        said = {self.field.name: self.field.sample}
        return self.without | ({self.within: said} if self.within else said)


def cases(state: contract.State) -> list[Any]:
    return [
        pytest.param(case, id=f"{route}-{case.name}")
        for fields in FIELDS
        for route in fields.routes
        for field in fields.fields
        if field.state == state
        for case in [Case(route, fields.within, field)]
    ]


@pytest.mark.parametrize("case", cases(HONOURED))
def test_an_honoured_field_changes_what_is_drawn_or_answered(sent: Sent, case: Case) -> None:
    without, having = sent(case.route, case.without), sent(case.route, case.having)
    assert (without.status, having.status) == (200, 200), having.answer
    assert (having.effect(case.own) != without.effect(case.own)) is not case.field.afterwards


@pytest.mark.parametrize("case", [case for case in cases(HONOURED) if case.values[0].field.afterwards])
def test_an_honoured_field_may_change_what_is_drawn_next(sent: Sent, client: TestClient, case: Case) -> None:
    nexts = []
    for body in (case.without, case.having):
        client.post("/sdapi/v1/options", json=NO_OPTIONS)
        assert sent(case.route, body).status == 200
        nexts.append(sent(case.route, REQUESTS[case.route].base).effect(""))
    assert nexts[0] != nexts[1]


@pytest.mark.parametrize("case", cases(IGNORED))
def test_an_ignored_field_is_echoed_and_changes_nothing_else(sent: Sent, case: Case) -> None:
    without, having = sent(case.route, case.without), sent(case.route, case.having)
    assert having.status == 200, having.answer
    assert (having.jobs, having.task_id) == (without.jobs, without.task_id)
    if "parameters" in without.answer:
        without.answer["parameters"][case.own] = case.having[case.own]
    assert having.answer == without.answer


@pytest.mark.parametrize("case", cases(REFUSED))
def test_a_refused_field_is_named_in_the_error(sent: Sent, case: Case) -> None:
    without, having = sent(case.route, case.without), sent(case.route, case.having)
    assert (without.status, having.status) == (200, 422), having.answer
    assert list(having.answer) == ["error", "detail", "body", "errors"]
    assert having.answer["detail"].startswith(f"{case.name}: ")
    assert having.jobs == []


def drawn_job(client: TestClient) -> str:
    """The id of a job that is done."""
    id: str = client.post("/v1/jobs", json={}).json()["id"]
    while client.get(f"/v1/jobs/{id}").json()["state"] != "done":
        sleep(0.01)
    return id


def named(lines: Iterable[Field], but: str = "") -> set[str]:
    return {field.name for field in lines if field.state != but}


@pytest.mark.parametrize("route", REQUESTS)
def test_every_field_of_a_request_has_a_line_and_every_line_a_field(route: str) -> None:
    lines = [field for each in FIELDS if route in each.routes and not each.within for field in each.fields]
    assert named(lines) == set(REQUESTS[route].model.model_fields)


@pytest.mark.parametrize("within", WITHIN)
def test_every_option_has_a_line_and_those_that_are_not_known_are_ignored(within: str) -> None:
    lines = [field for each in FIELDS if each.within == within for field in each.fields]
    known = set(WITHIN[within].model_fields)
    assert named(lines, but=IGNORED) <= known <= named(lines)


def test_every_route_has_a_line_and_every_line_a_route(app: FastAPI) -> None:
    there = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if (method != "HEAD" or route.path == "/") and route.path not in ASSETS
    }
    said = {(route.method, prefix + route.path) for prefix, route in LINES}
    assert {type(route) for route in app.routes} == {APIRoute}
    assert there == said


@pytest.mark.parametrize(
    ("prefix", "route"),
    [pytest.param(prefix, route, id=f"{route.method} {prefix}{route.path}") for prefix, route in LINES],
)
def test_a_route_answers_as_its_line_says(client: TestClient, prefix: str, route: contract.Route) -> None:
    job = drawn_job(client) if "{id}" in route.path else ""
    path = prefix + route.path.replace("{path:path}", "any/thing")
    path = path.replace("{id}", job).replace("{number:int}", "0")
    answer = client.request(route.method, path, json=route.body)
    assert answer.status_code == route.status, answer.text
    assert (route.state == REFUSED) == (answer.status_code >= 400)
    assert (route.state == IGNORED) == ("x-warnings" in answer.headers)
    if route.state == REFUSED:
        assert list(answer.json()) == ["error", "detail", "body", "errors"]
        assert answer.headers["x-should-retry"] == "false"


def test_the_page_is_made_of_the_lines() -> None:
    assert api.PAGE.read_text() == api.page(), "python -m tools.api writes it anew"
