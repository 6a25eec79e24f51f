"""Scripts: what would do nothing is accepted, what would change the picture is refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from ingress.scripts import SELECTABLE
from tests.ingress.fakes import FakeBackend

Draw = Callable[..., Any]


def args(**scripts: Any) -> dict[str, Any]:
    """Of scripts by name, `_` for a blank."""
    return {name.replace("_", " "): {"args": given} for name, given in scripts.items()}


UNIT = {"enabled": True, "module": "canny", "model": "control_v11p_sd15_canny [d14c016b]"}
FACE = {"ad_model": "face_yolov8n.pt"}


@pytest.mark.parametrize(
    "scripts",
    [
        args(ControlNet=[]),
        args(controlnet=[UNIT | {"enabled": False}]),
        args(CONTROLNET=[UNIT | {"enabled": "false"}, None, {}, ""]),
        args(ControlNet=[{"enabled": True, "module": "none", "model": "None", "image": ""}]),
        args(ControlNet=[{"enabled": True, "module": "none", "model": None}]),
        args(ControlNet=[{"image": "", "mask": None, "weight": 1}]),
        args(ADetailer=[False]),
        args(ADetailer=[True, False]),
        args(ADetailer=[False, False, FACE]),
        args(ADetailer=[True, False, {"ad_model": "None"}, FACE | {"ad_tab_enable": False}]),
        args(adetailer=[{"ad_model": "None", "ad_mask_k_largest": 0}]),
        args(animatediff=[False]),
        args(animatediff=[{"model": "mm", "enable": False}]),
        args(reactor=["iVBOR", False, "0"]),
        args(roop=["iVBOR", False]),
        args(Self_Attention_Guidance=[False, 0.75, 1.0]),
        args(soft_inpainting=[False, 1, 0.5, 4]),
        args(soft_inpainting=[{"Soft inpainting": False, "Schedule bias": 1}]),
        args(unheard_of=[]),
        args(unheard_of=[False, None, "", 0]),
        {"unheard-of": {}},
        {"unheard-of": {"args": None}},
        {"unheard-of": None},
        {"unheard-of": {"args": {}}},
        args(refiner=[]),
    ],
)
def test_what_would_do_nothing_is_accepted_without_a_word(draw: Draw, scripts: dict[str, Any]) -> None:
    answer = draw(alwayson_scripts=scripts)
    assert answer.status_code == 200, answer.text
    assert "x-warnings" not in answer.headers
    assert answer.json()["parameters"]["alwayson_scripts"] == scripts


@pytest.mark.parametrize(
    "scripts",
    [
        args(ControlNet=[UNIT]),
        args(controlnet=[{"enabled": False}, UNIT]),
        args(ControlNet=[{"model": "control_v11p_sd15_canny"}]),
        args(ControlNet=[{"enabled": True, "module": "reference_only"}]),
        args(ControlNet=[{"enabled": True, "image": "iVBOR"}]),
        args(ControlNet=[{"enabled": "perhaps"}]),
        args(ControlNet=[True, "canny", "control_v11p_sd15_canny"]),
        args(ADetailer=[FACE]),
        args(ADetailer=[True, False, FACE]),
        args(animatediff=[{"enable": True}]),
        args(reactor=["iVBOR", True, "0"]),
        args(roop=["iVBOR", 1]),
        args(Self_Attention_Guidance=[True]),
        args(soft_inpainting=[True]),
        args(soft_inpainting=[{"Soft inpainting": True}]),
        {"ControlNet": [UNIT]},
    ],
)
def test_what_is_not_here_is_refused_by_name(
    draw: Draw, backend: FakeBackend, scripts: dict[str, Any]
) -> None:
    answer = draw(alwayson_scripts=scripts)
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert detail.startswith(
        f"alwayson_scripts: '{next(iter(scripts))}' asks for a feature that this version"
    )
    assert "args that leave it off" in detail
    assert backend.jobs == []


@pytest.mark.parametrize("entry", [{"args": {"0": UNIT}}, {"args": "canny"}, True, 1])
def test_args_that_are_no_list_are_refused(draw: Draw, entry: Any) -> None:
    answer = draw(alwayson_scripts={"ControlNet": entry})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("alwayson_scripts.ControlNet: ")


@pytest.mark.parametrize(
    ("scripts", "named"),
    [
        (args(Refiner=[True, "x", 0.8]), ["alwayson_scripts.refiner", "refiner_switch_at"]),
        (args(sampler=[20, "Euler a", "Automatic"]), ["alwayson_scripts.sampler", "sampler_name"]),
        (args(Seed=[1, True, 2]), ["alwayson_scripts.seed", "subseed"]),
        (args(extra_options=[1]), ["alwayson_scripts.extra options", "override_settings"]),
        (args(hypertile=[True]), ["alwayson_scripts.hypertile"]),
        (args(comments=[True]), ["alwayson_scripts.comments", "enable_prompt_comments"]),
    ],
)
def test_args_that_the_requests_fields_stand_for_are_left_out_with_a_warning(
    draw: Draw, backend: FakeBackend, scripts: dict[str, Any], named: list[str]
) -> None:
    (warning,) = json.loads(draw(seed=1, alwayson_scripts=scripts).headers["x-warnings"])
    assert all(name in warning for name in named)
    draw(seed=1)
    assert backend.jobs[0].infotext == backend.jobs[1].infotext


@pytest.mark.parametrize(
    ("body", "name", "near"),
    [
        ({"alwayson_scripts": args(controlnett=[1])}, "controlnett", "Nearest: controlnet"),
        ({"alwayson_scripts": args(Dynamic_Prompts=[True])}, "Dynamic Prompts", "Allowed: refiner"),
        ({"script_name": "xyz plot"}, "xyz plot", "Nearest: x/y/z plot"),
        ({"script_name": "ControlNet"}, "ControlNet", "No selectable script is here"),
        ({"alwayson_scripts": {"y" * 999: [1]}}, "y" * 80, "not known"),
    ],
)
def test_a_name_that_is_none_is_answered_as_upstream_and_explained(
    draw: Draw, body: dict[str, Any], name: str, near: str
) -> None:
    answer = draw(**body)
    assert answer.status_code == 422
    said = answer.json()
    assert (said["error"], said["detail"]) == ("HTTPException", f"Script '{name}' not found")
    assert said["errors"].startswith(f"{next(iter(body))}: ")
    assert near in said["errors"]
    assert len(answer.content) < 600


@pytest.mark.parametrize("name", ["X/Y/Z plot", "prompt matrix"])
def test_a_selectable_script_is_no_always_on_script(draw: Draw, name: str) -> None:
    answer = draw(alwayson_scripts={name: {"args": []}})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "Cannot have a selectable script in the always on scripts params"
    assert repr(name) in answer.json()["errors"]


@pytest.mark.parametrize("name", SELECTABLE)
def test_a_selectable_script_is_refused_with_what_does_the_same(draw: Draw, name: str) -> None:
    answer = draw(script_name=name.title(), script_args=[1])
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert detail.startswith("script_name: ")
    assert "feature that this version does not have" in detail
    assert ("Instead: " in detail) == bool(SELECTABLE[name])


@pytest.mark.parametrize(
    ("version", "names"), [("v1.7.0", ["refiner", "seed"]), ("v1.10.1", ["refiner", "sampler", "seed"])]
)
def test_the_lists_tell_what_there_is(
    make_client: Callable[..., TestClient], version: str, names: list[str]
) -> None:
    client = make_client(compat_version=version)
    assert client.get("/sdapi/v1/scripts").json() == {"txt2img": names, "img2img": names}
    infos = client.get("/sdapi/v1/script-info").json()
    assert [info["name"] for info in infos] == [*names, *names]
    assert [info["is_img2img"] for info in infos] == [False] * len(names) + [True] * len(names)
    for name in names:
        request: dict[str, Any] = {"alwayson_scripts": {name: {"args": []}}}
        assert client.post("/sdapi/v1/txt2img", json=request).status_code == 200
