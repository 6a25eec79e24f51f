"""A1111's options, of which each caller has its own."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from engine.protocol import Checkpoint
from ingress.app import build_app
from ingress.options import DEFAULTS
from ingress.settings import CompatVersion, Key, Settings
from tests.ingress.fakes import CHECKPOINTS, FakeBackend, picture

PATH = "/sdapi/v1/options"
REALISTIC = "real/majicmixRealistic_v7.safetensors [7c819b6d13]"

Draw = Callable[..., Any]
VERSIONS: tuple[CompatVersion, ...] = ("v1.7.0", "v1.10.1")


@pytest.fixture
def set_options(client: TestClient) -> Callable[..., Any]:
    """Post the keywords; what is answered, if not null."""

    def set_options(**options: Any) -> Any:
        answer = client.post(PATH, json=options)
        assert answer.status_code == 200, answer.text
        assert answer.text == "null"
        return answer

    return set_options


@pytest.mark.parametrize("version", VERSIONS)
def test_the_dictionary_is_the_versions_in_its_order_and_types(
    make_client: Callable[..., TestClient], version: CompatVersion
) -> None:
    found = make_client(compat_version=version, clip_skip=2).get(PATH).json()
    assert list(found) == list(DEFAULTS[version])
    assert len(found) > 250
    known = {
        "sd_model_checkpoint": "demo.safetensors",
        "sd_checkpoint_hash": "",
        "CLIP_stop_at_last_layers": 2.0,
        "randn_source": "CPU",
    }
    assert found == {**DEFAULTS[version], **known}
    assert all(type(found[name]) is type(value) for name, value in DEFAULTS[version].items() if value)
    assert not any(str(value).startswith("/") for value in found.values())


def test_both_prefixes_are_one(client: TestClient) -> None:
    client.post("/v1" + PATH, json={"jpeg_quality": 90})
    assert client.get(PATH).json() == client.get("/v1" + PATH).json()
    assert client.get(PATH).json()["jpeg_quality"] == 90.0


def test_the_checkpoint_is_always_one_of_the_titles(client: TestClient, set_options: Draw) -> None:
    titles = [model["title"] for model in client.get("/sdapi/v1/sd-models").json()]
    assert client.get(PATH).json()["sd_model_checkpoint"] == titles[0]
    set_options(sd_model_checkpoint="majicmixRealistic_v7")
    found = client.get(PATH).json()
    assert found["sd_model_checkpoint"] == titles[1] == REALISTIC
    assert found["sd_checkpoint_hash"] == CHECKPOINTS[1].sha256


@pytest.mark.parametrize("version", VERSIONS)
def test_the_whole_dictionary_can_be_sent_back(
    make_client: Callable[..., TestClient], version: CompatVersion, tmp_path: Path
) -> None:
    """As Open WebUI does, with another checkpoint in it."""
    client = make_client(compat_version=version, clip_skip=2)
    first = client.get(PATH).json()
    assert client.post(PATH, json={**first, "sd_model_checkpoint": REALISTIC}).text == "null"
    second = client.get(PATH).json()
    assert {name for name in first if first[name] != second[name]} == {
        "sd_model_checkpoint",
        "sd_checkpoint_hash",
    }
    answer = client.post(PATH, json=second)
    assert (answer.status_code, answer.headers.get("x-warnings")) == (200, None)
    assert client.get(PATH).json() == second


def test_what_is_set_counts_for_the_pictures(draw: Draw, set_options: Draw, backend: FakeBackend) -> None:
    set_options(
        sd_model_checkpoint=REALISTIC,
        CLIP_stop_at_last_layers=3,
        eta_noise_seed_delta="31337",
        sd_vae="kl.safetensors",
        randn_source="NV",
        tiling=True,
    )
    assert draw(sampler_name="Euler a").status_code == 200
    job = backend.jobs[0]
    assert (
        job.checkpoint,
        job.clip_skip,
        job.eta_noise_seed_delta,
        job.vae,
        job.noise_source,
        job.tiling,
    ) == (
        "majicmixRealistic_v7",
        3,
        31337,
        "kl.safetensors",
        "nvidia",
        True,
    )


def test_the_request_wins_over_what_is_set(draw: Draw, set_options: Draw, backend: FakeBackend) -> None:
    set_options(sd_model_checkpoint=REALISTIC, CLIP_stop_at_last_layers=3, emphasis="No norm")
    draw(override_settings={"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "", "emphasis": None})
    draw(override_settings={"sd_model_checkpoint": "demo", "enable_emphasis": False})
    draw(model="demo")
    assert [(job.checkpoint, job.clip_skip, job.emphasis) for job in backend.jobs] == [
        ("majicmixRealistic_v7", 2, "No norm"),
        ("demo", 3, "None"),
        ("demo", 3, "No norm"),
    ]


def test_img2img_has_the_same_options(client: TestClient, set_options: Draw, backend: FakeBackend) -> None:
    set_options(img2img_fix_steps=True, CLIP_stop_at_last_layers=4)
    client.post("/sdapi/v1/img2img", json={"init_images": [picture()]})
    assert backend.jobs[0].clip_skip == 4
    assert backend.jobs[0].init
    assert backend.jobs[0].init.exact_steps


def test_an_infotext_gives_its_picture_whatever_is_set(
    draw: Draw, set_options: Draw, backend: FakeBackend
) -> None:
    """Also where it says nothing, which means a default."""
    body = {"prompt": "a (cat) # tail", "sampler_name": "Euler a", "seed": 5}
    draw(**body)
    set_options(
        CLIP_stop_at_last_layers=3,
        eta_noise_seed_delta=1,
        randn_source="NV",
        emphasis="None",
        enable_prompt_comments=True,
        tiling=True,
        eta_ancestral=0.5,
        use_old_scheduling=True,
    )
    draw(infotext=backend.jobs[0].infotext)
    first, again = backend.jobs
    assert again.infotext == first.infotext
    assert (again.clip_skip, again.noise_source, again.tiling) == (first.clip_skip, "cpu", False)
    draw(infotext=backend.jobs[0].infotext, override_settings={"CLIP_stop_at_last_layers": 7})
    assert backend.jobs[2].clip_skip == 7


def test_the_checkpoint_that_is_set_counts_beside_an_infotext(
    draw: Draw, set_options: Draw, backend: FakeBackend
) -> None:
    set_options(sd_model_checkpoint=REALISTIC)
    draw(infotext="cat\nSteps: 4, Sampler: Euler, Seed: 1, Size: 64x64, Model: demo")
    assert backend.jobs[0].checkpoint == "majicmixRealistic_v7"


def test_a_default_or_null_sets_an_option_no_more(
    make_client: Callable[..., TestClient], backend: FakeBackend
) -> None:
    """So it follows when the operator changes the default."""
    client = make_client()
    client.post(
        PATH, json={"jpeg_quality": 90, "n_rows": 4, "tiling": True, "sd_model_checkpoint": REALISTIC}
    )
    client.post(PATH, json={"jpeg_quality": 80, "n_rows": None, "sd_model_checkpoint": "demo"})
    found = client.get(PATH).json()
    assert found == {**client.get(PATH).json(), "jpeg_quality": 80.0, "n_rows": -1.0, "tiling": True}
    backend.offered = CHECKPOINTS[::-1]
    assert client.get(PATH).json()["sd_model_checkpoint"] == REALISTIC
    client.post(PATH, json={"sd_model_checkpoint": "demo"})
    assert client.get(PATH).json()["sd_model_checkpoint"] == "demo.safetensors"
    client.post(PATH, json={"sd_model_checkpoint": ""})
    assert client.get(PATH).json()["sd_model_checkpoint"] == REALISTIC


def test_the_older_name_of_emphasis_undoes_the_newer(
    draw: Draw, set_options: Draw, backend: FakeBackend
) -> None:
    set_options(emphasis="No norm")
    set_options(enable_emphasis=False)
    draw()
    set_options(enable_emphasis=False, emphasis="Ignore")
    draw()
    assert [job.emphasis for job in backend.jobs] == ["None", "Ignore"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"jpeg_quality": "high"}, "jpeg_quality: 'high' is not allowed"),
        ({"tiling": "perhaps"}, "tiling: 'perhaps' is not allowed"),
        ({"hidden_tabs": "none"}, "hidden_tabs: 'none' is not allowed"),
        ({"font": ["a"]}, "font: a list is not allowed"),
        ({"sd_checkpoint_cache": "x"}, "sd_checkpoint_cache"),
        ({"CLIP_stop_at_last_layers": 13}, "CLIP_stop_at_last_layers: 13 is not allowed"),
        ({"randn_source": "dice"}, "randn_source: 'dice' is not allowed"),
        ({"sigma_min": 0.1}, "sigma_min: 0.1 asks for a feature that this version does not have"),
        ({"face_restoration": True}, "face_restoration: true asks for a feature"),
        ({"s_churn": 3}, "s_churn: 3.0 asks for a feature"),
        ({"samples_format": "gif"}, "samples_format: 'gif' is not allowed"),
        ({"quicksettings_list": ["x" * 70000]}, "options: more than 65536 characters are not kept"),
        (
            {"sd_model_checkpiont": "demo"},
            "options: 'sd_model_checkpiont' is not known. Nearest: sd_model_checkpoint.",
        ),
        (
            {"forge_preset": "sd"},
            "options: 'forge_preset' is not known. Allowed: the keys of GET /sdapi/v1/options.",
        ),
    ],
)
def test_what_cannot_be_set_is_refused_by_name_and_nothing_is_set(
    client: TestClient, body: dict[str, Any], detail: str
) -> None:
    before = client.get(PATH).json()
    known = {} if detail.startswith("options: '") else {"n_rows": 3}
    answer = client.post(PATH, json=known | body)
    assert answer.status_code == 422
    assert list(answer.json()) == ["error", "detail", "body", "errors"]
    assert answer.json()["detail"].startswith(detail)
    assert client.get(PATH).json() == before


@pytest.mark.parametrize("content", [b"3", b"[1]", b"null", b'{"n_rows": NaN}', b'{"font": "\\ud800"}', b"{"])
def test_what_is_no_object_of_json_is_refused(client: TestClient, content: bytes) -> None:
    assert client.post(PATH, content=content).status_code == 422


def test_options_of_other_servers_are_left_out_with_a_warning(client: TestClient, set_options: Draw) -> None:
    answer = set_options(forge_preset="sd", sd_model_checkpoint=REALISTIC, sd_vea="None")
    assert json.loads(answer.headers["x-warnings"]) == [
        "options: 'forge_preset', 'sd_vea' not known (nearest: sd_vae), and left out"
    ]
    assert client.get(PATH).json()["sd_model_checkpoint"] == REALISTIC
    assert "forge_preset" not in client.get(PATH).json()


def test_unknown_overrides_are_left_out_with_a_warning(draw: Draw) -> None:
    answer = draw(override_settings={"filter_nsfw": True, "jpeg_quality": 3, "CLIP_stop_at_last_layer": 2})
    assert json.loads(answer.headers["x-warnings"]) == [
        "override_settings: 'filter_nsfw', 'CLIP_stop_at_last_layer' not known (nearest: "
        "CLIP_stop_at_last_layers), and left out"
    ]


def test_an_unknown_checkpoint_is_answered_as_the_original_does_but_for_the_status(
    client: TestClient,
) -> None:
    answer = client.post(PATH, json={"sd_model_checkpoint": "majicmix"})
    assert answer.status_code == 404
    assert answer.json()["error"] == "RuntimeError"
    assert answer.json()["errors"] == "model 'majicmix' not found"
    assert answer.json()["detail"].startswith("sd_model_checkpoint: 'majicmix' is not known. Nearest: ")
    assert answer.headers["x-should-retry"] == "false"


def test_a_companion_cannot_be_set(client: TestClient, backend: FakeBackend) -> None:
    backend.offered = (*CHECKPOINTS, Checkpoint(name="second", filename="second.safetensors", companion=True))
    answer = client.post(PATH, json={"sd_model_checkpoint": "second"})
    assert answer.status_code == 422
    assert "draws nothing alone" in answer.json()["detail"]


def test_a_checkpoint_that_has_gone_is_told_and_not_replaced(
    client: TestClient, draw: Draw, set_options: Draw, backend: FakeBackend
) -> None:
    set_options(sd_model_checkpoint=REALISTIC)
    backend.offered = CHECKPOINTS[:1]
    answer = draw()
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith(
        "options.sd_model_checkpoint: 'majicmixRealistic_v7' is not known"
    )
    assert backend.jobs == []
    found = client.get(PATH).json()
    assert (found["sd_model_checkpoint"], found["sd_checkpoint_hash"]) == ("majicmixRealistic_v7", "")
    assert draw(override_settings={"sd_model_checkpoint": "demo"}).status_code == 200
    set_options(sd_model_checkpoint="demo.safetensors")
    assert draw().status_code == 200


def test_what_nobody_sets_over_the_wire_passes_without_effect(client: TestClient, set_options: Draw) -> None:
    before = client.get(PATH).json()
    set_options(
        api_enable_requests=False,
        api_forbid_local_requests=False,
        api_useragent="x",
        sd_vae_explanation="<b>",
        sd_checkpoint_hash="0",
    )
    assert client.get(PATH).json() == before


def test_overrides_that_are_not_restored_stay(client: TestClient, draw: Draw, backend: FakeBackend) -> None:
    kept = {"CLIP_stop_at_last_layers": 3, "sd_model_checkpoint": "majicmixRealistic_v7", "unheard_of": 1}
    draw(override_settings={"CLIP_stop_at_last_layers": 5})
    draw()
    draw(override_settings=kept, override_settings_restore_afterwards=False)
    nothing = {"sd_model_checkpoint": "", "CLIP_stop_at_last_layers": None}
    draw(override_settings=nothing, override_settings_restore_afterwards=False)
    assert [job.clip_skip for job in backend.jobs] == [5, 1, 3, 3]
    assert client.get(PATH).json()["sd_model_checkpoint"] == REALISTIC


def test_overrides_of_a_request_that_fails_do_not_stay(
    client: TestClient, draw: Draw, backend: FakeBackend
) -> None:
    before = client.get(PATH).json()
    stays = {"override_settings_restore_afterwards": False}
    backend.fail = RuntimeError("unforeseen")
    assert draw(override_settings={"n_rows": 3}, **stays).status_code == 500
    backend.fail = None
    answer = draw(override_settings={"n_rows": "many"}, **stays)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("override_settings.n_rows: 'many' is not allowed")
    assert draw(override_settings={"n_rows": "many"}).status_code == 200
    assert client.get(PATH).json() == before


@pytest.fixture
def gateways(tmp_path: Path, backend: FakeBackend) -> Iterator[Callable[..., TestClient]]:
    """A gateway over the one file, and a client with that key, or without any if authentication is off."""
    keys = tuple(Key(id=name, sha256=hashlib.sha256(name.encode()).hexdigest()) for name in ("mia", "tom"))
    with ExitStack() as running:

        def make(key: str = "") -> TestClient:
            settings = Settings(
                keys=keys, auth="keys" if key else "off", database=f"sqlite:///{tmp_path}/file.sqlite"
            )
            headers = {"x-api-key": key} if key else {}
            return running.enter_context(TestClient(build_app(backend, settings), headers=headers))

        yield make


def test_what_is_set_through_one_gateway_counts_at_the_other(
    gateways: Callable[..., TestClient], backend: FakeBackend
) -> None:
    one, other = gateways("mia"), gateways("mia")
    one.post(PATH, json={"CLIP_stop_at_last_layers": 3})
    assert other.get(PATH).json()["CLIP_stop_at_last_layers"] == 3.0
    other.post("/sdapi/v1/txt2img", json={})
    assert backend.jobs[0].clip_skip == 3


def test_no_caller_sets_anothers_options(gateways: Callable[..., TestClient], backend: FakeBackend) -> None:
    mia, tom, anybody = gateways("mia"), gateways("tom"), gateways()
    mia.post(PATH, json={"CLIP_stop_at_last_layers": 3})
    anybody.post(PATH, json={"CLIP_stop_at_last_layers": 4})
    for client in (mia, tom, anybody):
        client.post("/sdapi/v1/txt2img", json={})
    assert [job.clip_skip for job in backend.jobs] == [3, 1, 4]


def test_without_its_database_the_service_says_that_it_cannot_answer_now(
    tmp_path: Path, backend: FakeBackend
) -> None:
    """Pictures that leave out what somebody has set would be other pictures."""
    settings = Settings(auth="off", database=f"sqlite:///{tmp_path}")
    with TestClient(build_app(backend, settings)) as client:
        for answer in (client.get(PATH), client.post("/sdapi/v1/txt2img", json={})):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
            assert answer.json()["detail"] == "The service's database is not available now."
    assert backend.jobs == []
