import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.protocol import Enlargement, Interrupted, Job, JobResult, Unavailable
from ingress.backend import OrderProgress
from tests.ingress.fakes import FakeBackend, result

RUNNING = OrderProgress(
    id="mine",
    kind="img2img",
    state="running",
    progress=0.36,
    eta=4.2,
    place=None,
    places=None,
    preview=b"a picture",
    preview_id=17,
    sampling_step=7,
    sampling_steps=20,
    job_no=1,
    job_count=2,
    timestamp="20260101120000",
    interrupted=False,
    skipped=True,
)
QUEUED = replace(RUNNING, state="queued", progress=0.0, place=2, places=5, preview=b"", preview_id=0)
DONE = replace(RUNNING, state="done", progress=1.0, eta=None, preview=b"", preview_id=0, interrupted=True)

IDLE = """{
    "progress": 0.0,
    "eta_relative": 0.0,
    "state": {
        "skipped": false,
        "interrupted": false,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0
    },
    "current_image": null,
    "textinfo": null
}"""


@pytest.fixture(params=["", "/v1"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ask(client: TestClient, prefix: str) -> Callable[..., Any]:
    return lambda **query: client.get(f"{prefix}/sdapi/v1/progress", params=query).json()


def test_without_an_order_nothing_is_going_on(client: TestClient, prefix: str) -> None:
    answer = client.get(f"{prefix}/sdapi/v1/progress")
    assert answer.status_code == 200
    assert answer.text == json.dumps(json.loads(IDLE), separators=(",", ":"))


def test_the_callers_own_order_is_shown(ask: Callable[..., Any], backend: FakeBackend) -> None:
    backend.found["test", None] = RUNNING
    assert ask() == {
        "progress": 0.36,
        "eta_relative": 4.2,
        "state": {
            "skipped": True,
            "interrupted": False,
            "job": "scripts_img2img",
            "job_count": 2,
            "job_timestamp": "20260101120000",
            "job_no": 1,
            "sampling_step": 7,
            "sampling_steps": 20,
        },
        "current_image": base64.b64encode(b"a picture").decode(),
        "textinfo": None,
    }
    assert backend.asked == [("test", None, True)]


def test_later_versions_say_whether_generation_is_stopping(make_client: Callable[..., TestClient]) -> None:
    state = make_client(compat_version="v1.10.1").get("/sdapi/v1/progress").json()["state"]
    assert list(state)[:4] == ["skipped", "interrupted", "stopping_generation", "job"]
    assert state["stopping_generation"] is False


@pytest.mark.parametrize("name", ["id", "id_task", "task_id", "force_task_id"])
def test_an_order_is_named_by_any_name_of_its_id(
    ask: Callable[..., Any], backend: FakeBackend, name: str
) -> None:
    backend.found["test", "mine"] = RUNNING
    assert ask(**{name: "mine"})["progress"] == 0.36
    assert ask(**{name: "unknown"})["progress"] == 0.0


def test_an_order_is_named_by_a_header(client: TestClient, backend: FakeBackend) -> None:
    backend.found["test", "mine"] = RUNNING
    answer = client.get("/sdapi/v1/progress", headers={"X-Task-Id": "mine"})
    assert answer.json()["progress"] == 0.36


def test_a_preview_is_neither_made_nor_sent_where_it_is_not_wanted(
    ask: Callable[..., Any], backend: FakeBackend
) -> None:
    backend.found["test", None] = RUNNING
    assert ask(skip_current_image="true")["current_image"] is None
    assert backend.asked == [("test", None, False)]


def test_a_caller_who_wants_no_previews_gets_none(
    ask: Callable[..., Any], internal: Callable[..., Any], client: TestClient, backend: FakeBackend
) -> None:
    backend.found["test", "mine"] = RUNNING
    client.post("/sdapi/v1/options", json={"live_previews_enable": False})
    assert (ask(id="mine")["progress"], ask(id="mine")["current_image"]) == (0.36, None)
    assert (internal(id_task="mine")["active"], internal(id_task="mine")["live_preview"]) == (True, None)
    client.post("/sdapi/v1/options", json={"live_previews_enable": True})
    assert ask(id="mine")["current_image"]


def test_a_queued_order_has_a_place_and_is_not_idle(ask: Callable[..., Any], backend: FakeBackend) -> None:
    backend.found["test", "mine"] = QUEUED
    answer = ask(id="mine")
    assert (answer["progress"], answer["state"]["job_count"]) == (0.0, 2)
    assert answer["textinfo"] == "In queue: 2/5"


def test_a_finished_order_is_as_if_nothing_were_going_on(
    ask: Callable[..., Any], backend: FakeBackend
) -> None:
    backend.found["test", "mine"] = DONE
    answer = ask(id="mine")
    assert (answer["progress"], answer["eta_relative"]) == (0.0, 0.0)
    assert (answer["state"]["job_count"], answer["state"]["job"]) == (0, "")
    assert (answer["state"]["job_timestamp"], answer["state"]["interrupted"]) == ("20260101120000", True)


def test_extras_are_a_job_of_that_name(ask: Callable[..., Any], backend: FakeBackend) -> None:
    backend.found["test", None] = replace(RUNNING, kind="extras", eta=None)
    assert ask()["state"]["job"] == "extras"
    assert ask()["eta_relative"] == 0.0


@pytest.mark.parametrize(("path", "answered", "skip"), [("interrupt", {}, False), ("skip", None, True)])
def test_interrupt_and_skip_answer_json(
    client: TestClient, backend: FakeBackend, prefix: str, path: str, answered: object, skip: bool
) -> None:
    answer = client.post(f"{prefix}/sdapi/v1/{path}")
    assert (answer.status_code, answer.json()) == (200, answered)
    assert backend.interrupted == [("test", None, skip)]


@pytest.mark.parametrize("path", ["interrupt", "skip"])
@pytest.mark.parametrize(
    ("sent", "order"),
    [
        ({"json": {"id_task": "a"}}, "a"),
        ({"json": {"id": "a"}}, "a"),
        ({"json": {"task_id": 5}}, "5"),
        ({"json": {"force_task_id": "a", "unknown": []}}, "a"),
        ({"params": {"id": "a"}}, "a"),
        ({"headers": {"x-task-id": "a"}}, "a"),
        ({"json": {}}, None),
        ({"json": {"id_task": None}}, None),
        ({"json": {"id_task": ""}}, None),
        ({"json": None}, None),
        ({"content": b""}, None),
        ({"content": b"", "headers": {"content-type": "application/json"}}, None),
    ],
)
def test_one_order_is_stopped_where_it_is_named(
    client: TestClient, backend: FakeBackend, path: str, sent: dict[str, Any], order: str | None
) -> None:
    assert client.post(f"/sdapi/v1/{path}", **sent).status_code == 200
    assert backend.interrupted == [("test", order, path == "skip")]


@pytest.mark.parametrize("id", ["task(a1)", "5 %", 7])
def test_an_order_has_the_id_that_its_caller_chose(
    client: TestClient, backend: FakeBackend, id: object
) -> None:
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "x", "force_task_id": id})
    assert answer.headers["x-task-id"] == str(id)
    assert [(order.id, order.key) for order in backend.orders] == [(str(id), "test")]


@pytest.mark.parametrize("id", ["a\r\nx-evil: 1", "a\x00", "日本", "x" * 257])
def test_an_id_that_cannot_be_a_header_is_refused_by_name(client: TestClient, id: str) -> None:
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "x", "force_task_id": id})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("force_task_id: ")
    assert "x-evil" not in answer.headers


def test_who_cannot_be_told_to_stop_is_an_error(client: TestClient, backend: FakeBackend) -> None:
    async def interrupt(*args: object, **options: object) -> int:
        raise Unavailable("Nothing can be interrupted at this moment.", 2.0)

    backend.interrupt = interrupt  # type: ignore[method-assign]
    answer = client.post("/sdapi/v1/interrupt")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def test_an_interrupted_order_answers_with_what_there_is(client: TestClient, backend: FakeBackend) -> None:
    async def run(job: Job | Enlargement) -> JobResult:
        assert isinstance(job, Job)
        if job.seed in (5, 7):
            raise Interrupted("stop")
        return replace(result(job), interrupted=True)

    backend.run = run  # type: ignore[method-assign]
    body = {"prompt": "x", "seed": 5, "subseed": 50, "batch_size": 2, "n_iter": 2}
    answer = client.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200
    info = json.loads(answer.json()["info"])
    assert len(answer.json()["images"]) == len(info["infotexts"]) == len(info["all_prompts"]) == 2
    assert (info["seed"], info["all_seeds"]) == (6, [6, 8])
    assert (info["subseed"], info["all_subseeds"]) == (51, [51, 53])
    assert "Seed: 6," in info["infotexts"][0]


def test_an_order_interrupted_before_it_began_answers_with_no_pictures(
    client: TestClient, backend: FakeBackend
) -> None:
    backend.fail = Interrupted("stop")
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "x", "seed": 5})
    assert (answer.status_code, answer.json()["images"]) == (200, [])
    info = json.loads(answer.json()["info"])
    assert (info["seed"], info["all_seeds"], info["infotexts"]) == (5, [], [])


UNKNOWN = {
    "active": False,
    "queued": False,
    "completed": False,
    "progress": None,
    "eta": None,
    "live_preview": None,
    "id_live_preview": -1,
    "textinfo": "Waiting...",
}


@pytest.fixture
def internal(client: TestClient, prefix: str) -> Callable[..., Any]:
    return lambda **body: client.post(f"{prefix}/internal/progress", json=body).json()


def test_internal_progress_of_an_unknown_order(internal: Callable[..., Any]) -> None:
    assert internal(id_task="unknown") == UNKNOWN
    assert internal() == UNKNOWN


def test_internal_progress_of_an_order_that_runs(internal: Callable[..., Any], backend: FakeBackend) -> None:
    backend.found["test", "mine"] = RUNNING
    picture = f"data:image/jpeg;base64,{base64.b64encode(b'a picture').decode()}"
    running = UNKNOWN | {"active": True, "progress": 0.36, "eta": 4.2, "textinfo": None}
    assert internal(id_task="mine") == running | {"live_preview": picture, "id_live_preview": 17}
    assert internal(id_task="mine", id_live_preview=17) == running | {"id_live_preview": 17}
    assert internal(id_task="mine", live_preview=False) == running
    assert [preview for _, _, preview in backend.asked] == [True, True, False]


def test_internal_progress_of_orders_that_wait_and_that_are_done(
    internal: Callable[..., Any], backend: FakeBackend
) -> None:
    backend.found["test", "mine"] = QUEUED
    assert internal(id_task="mine") == UNKNOWN | {"queued": True, "textinfo": "In queue: 2/5"}
    backend.found["test", "mine"] = DONE
    assert internal(id_task="mine") == UNKNOWN | {"completed": True, "textinfo": None}


def test_pending_tasks_and_ping(client: TestClient, backend: FakeBackend, prefix: str) -> None:
    backend.queued = ["a", "b"]
    assert client.get(f"{prefix}/internal/pending-tasks").json() == {"size": 2, "tasks": ["a", "b"]}
    assert client.get(f"{prefix}/internal/ping").json() == {}


def test_progress_is_documented(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    operation = schema["paths"]["/sdapi/v1/progress"]["get"]
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert names == {"id", "id_task", "task_id", "force_task_id", "x-task-id", "skip_current_image"}
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "/Progress"
    )
