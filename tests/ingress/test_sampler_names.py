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


@pytest.mark.parametrize("version", VERSIONS)
def test_the_list_is_upstreams(version: CompatVersion) -> None:
    rows = UPSTREAM[version]["samplers"]
    for row in rows:
        if version == "v1.7.0" and row["name"] == "DPM++ 2M SDE":
            row["aliases"] = ["k_dpmpp_2m_sde"]  # upstream lists the Karras one's alias twice
    assert list_samplers(version) == rows
    assert [list(row["options"]) for row in list_samplers(version)] == [list(row["options"]) for row in rows]
    assert list(list_samplers(version)[0]) == ["name", "aliases", "options"]


def test_the_schedulers_are_upstreams() -> None:
    rows = UPSTREAM["v1.10.1"]["schedulers"]
    assert list_schedulers() == rows
    assert tuple(row["name"] for row in rows) == ("automatic", *SCHEDULES)
    assert tuple(LABELS) == SCHEDULES


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
        ("UniPC", "beta", "uniform", "uniform"),
        ("DPM adaptive Karras", None, "uniform", "uniform"),
        ("LCM", "sgm_uniform", "uniform", "uniform"),
        ("Restart", None, "karras", "karras"),
        ("DPM2", None, "uniform", "karras"),
        ("DPM++ 3M SDE", None, "uniform", "exponential"),
        ("DPM++ 2S a Karras", None, "karras", "karras"),
        ("DPM++ 2M SDE Heun SGM Uniform", "karras", "sgm_uniform", "sgm_uniform"),
        ("Euler", "SGMUniform", "sgm_uniform", "sgm_uniform"),
        ("euler align-your-steps", None, "align_your_steps", "align_your_steps"),
        ("Euler DDIM", None, "ddim", "ddim"),
        ("LMS", "Normal", "normal", "normal"),
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
        ("Restart", None, "Karras"),
        ("DPM++ 3M SDE", None, "Exponential"),
        ("Heun KL Optimal", None, "KL Optimal"),
        ("DPM fast", "beta", "Automatic"),
    ],
)
def test_the_schedule_type_is_the_one_that_was_walked(name: str, scheduler: str | None, label: str) -> None:
    sampling = resolve(name, scheduler, "v1.10.1", "sampler_name")
    assert sampling.schedule_label == label
    assert sampling.name in SAMPLERS


def test_names_in_answers_are_canonical() -> None:
    assert resolve("dpm++ 2m sde karras", None, "v1.7.0", "sampler_name").name == "DPM++ 2M SDE Karras"
    assert resolve("k_euler_a", None, "v1.7.0", "sampler_name").name == "Euler a"
    assert resolve("restart", None, "v1.7.0", "sampler_name").name == "Restart"
    assert resolve("Restart", "uniform", "v1.7.0", "sampler_name").name == "Restart Uniform"
    assert resolve("ddim_cfgpp", None, "v1.10.1", "sampler_name").name == "DDIM CFG++"


@pytest.mark.parametrize("scheduler", ["sgm", "linear", "Karras v2"])
def test_an_unknown_schedule_is_refused_by_name(scheduler: str) -> None:
    with pytest.raises(NotFound, match=f"scheduler: '{scheduler}' is not known"):
        resolve("Euler", scheduler, "v1.10.1", "sampler_name")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_understands_the_names_of_every_other(version: CompatVersion) -> None:
    for rows in UPSTREAM.values():
        for row in rows["samplers"]:
            assert resolve(row["name"], None, version, "sampler_name").sampler in SAMPLERS
        for row in rows["schedulers"]:
            for name in (row["name"], row["label"], *(row["aliases"] or [])):
                assert resolve("Euler", name, version, "sampler_name").schedule in SCHEDULES
                assert resolve(f"Heun {name}", None, version, "sampler_name").sampler == "Heun"


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
