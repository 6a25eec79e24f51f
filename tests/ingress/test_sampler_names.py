import json
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.testclient import TestClient

from engine.protocol import SAMPLERS, SCHEDULES
from ingress.errors import NotFound, SamplerNotFound
from ingress.schemas.samplers import LABELS, list_samplers, list_schedulers, resolve
from ingress.settings import CompatVersion

UPSTREAM = json.loads((Path(__file__).parent / "data" / "samplers.json").read_text())
VERSIONS: tuple[CompatVersion, ...] = get_args(CompatVersion)


def offered(version: CompatVersion) -> list[dict[str, Any]]:
    """Upstream's list without the samplers that the engine does not have."""
    suffixes = ["", *(f" {label}" for label in LABELS.values())]
    names = {sampler + suffix for sampler in SAMPLERS for suffix in suffixes}
    return [row for row in UPSTREAM[version]["samplers"] if row["name"] in names]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_list_is_upstreams_less_what_the_engine_lacks(version: CompatVersion) -> None:
    rows = offered(version)
    for row in rows:
        if version == "v1.7.0" and row["name"] == "DPM++ 2M SDE":
            row["aliases"] = ["k_dpmpp_2m_sde"]  # upstream lists the Karras one's alias twice
    assert list_samplers(version) == rows
    assert list(list_samplers(version)[0]) == ["name", "aliases", "options"]


def test_the_schedulers_are_upstreams_less_what_the_engine_lacks() -> None:
    rows = UPSTREAM["v1.10.1"]["schedulers"]
    assert list_schedulers() == [row for row in rows if row["name"] in ("automatic", *SCHEDULES)]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_listed_name_and_alias_means_what_it_says(version: CompatVersion) -> None:
    for row in list_samplers(version):
        for name in (row["name"], *row["aliases"]):
            sampling = resolve(name, None, version, "sampler_name")
            assert sampling.name == row["name"]
            assert sampling.schedule == row["options"].get("scheduler", "uniform")


@pytest.mark.parametrize(
    ("name", "scheduler", "v1_7_0", "v1_10_1"),
    [
        ("DPM++ 2M", None, "uniform", "karras"),
        ("DPM++ 2M", "automatic", "uniform", "karras"),
        ("DPM++ 2M", "Uniform", "uniform", "uniform"),
        ("DPM++ 2M SDE", "", "uniform", "exponential"),
        ("DPM++ 2M SDE", "Karras", "karras", "karras"),
        ("DPM++ 2M SDE Karras", "exponential", "karras", "karras"),
        ("dpm++ 2m sde karras", "Automatic", "karras", "karras"),
        ("k_dpmpp_2m_sde_exp", None, "exponential", "exponential"),
        ("k_dpmpp_2m", None, "uniform", "karras"),
        ("Euler A", "KARRAS", "karras", "karras"),
        ("euler_ancestral", None, None, None),
        ("k_euler_ancestral", None, "uniform", "uniform"),
        ("Heun Automatic", "karras", "karras", "karras"),
        ("DDIM Karras", "karras", "uniform", "uniform"),
    ],
)
def test_a_schedule_in_the_name_wins_over_the_field_and_that_over_the_samplers_own(
    name: str, scheduler: str | None, v1_7_0: str | None, v1_10_1: str | None
) -> None:
    for version, schedule in zip(VERSIONS, (v1_7_0, v1_10_1), strict=True):
        if schedule is None:
            with pytest.raises(SamplerNotFound):
                resolve(name, scheduler, version, "sampler_name")
        else:
            assert resolve(name, scheduler, version, "sampler_name").schedule == schedule


@pytest.mark.parametrize(
    ("name", "scheduler", "label"),
    [
        ("Euler", None, "Automatic"),
        ("Euler", "uniform", "Uniform"),
        ("DPM++ 2M", None, "Karras"),
        ("DPM++ 2M SDE", "automatic", "Exponential"),
        ("DPM++ 2M SDE Karras", None, "Karras"),
        ("DDIM", "karras", "Automatic"),
    ],
)
def test_the_schedule_type_is_the_one_that_was_walked(name: str, scheduler: str | None, label: str) -> None:
    sampling = resolve(name, scheduler, "v1.10.1", "sampler_name")
    assert sampling.schedule_label == label
    assert sampling.name in SAMPLERS


def test_names_in_answers_are_canonical() -> None:
    assert resolve("dpm++ 2m sde karras", None, "v1.7.0", "sampler_name").name == "DPM++ 2M SDE Karras"
    assert resolve("k_euler_a", None, "v1.7.0", "sampler_name").name == "Euler a"


@pytest.mark.parametrize("name", ["LMS", "DPM2 a Karras", "DPM++ SDE", "UniPC", "restart", "LCM"])
def test_a_sampler_of_upstreams_that_is_not_here_yet_is_called_that(name: str) -> None:
    with pytest.raises(SamplerNotFound, match="not available in this version"):
        resolve(name, None, "v1.7.0", "sampler_name")


@pytest.mark.parametrize("scheduler", ["SGM Uniform", "sgm_uniform", "beta", "Align Your Steps"])
def test_a_schedule_of_upstreams_that_is_not_here_yet_is_called_that(scheduler: str) -> None:
    with pytest.raises(NotFound, match="not available in this version"):
        resolve("Euler", scheduler, "v1.10.1", "sampler_name")


def test_an_unknown_sampler_answers_what_clients_look_for(client: TestClient) -> None:
    answer = client.post("/sdapi/v1/txt2img", json={"sampler_name": "Eular"})
    assert answer.status_code == 404
    assert list(answer.json()) == ["error", "detail", "body", "errors"]
    assert answer.json()["detail"] == "Sampler not found"
    for part in ("sampler_name", "'Eular'", "Nearest: Euler", "Allowed: DPM++ 2M Karras"):
        assert part in answer.json()["errors"]


def test_sampler_index_counts_when_sampler_name_is_empty(client: TestClient) -> None:
    def sampler(**body: str | None) -> Any:
        answer = client.post("/sdapi/v1/txt2img", json=body)
        return json.loads(answer.json()["info"])["sampler_name"] if answer.is_success else answer.text

    assert sampler(sampler_index="Heun") == "Heun"
    assert sampler(sampler_name="", sampler_index="Heun") == "Heun"
    assert sampler(sampler_name="DDIM", sampler_index="Heun") == "DDIM"
    assert sampler(sampler_index="") == "Euler"
    assert "sampler_index: 'x'" in sampler(sampler_index="x")
