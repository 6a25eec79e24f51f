"""`save_images`: into a folder, and with the grid that then comes first."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from ingress.app import build_app
from ingress.settings import Settings
from ingress.store.pictures import PictureStore
from tests.ingress.fakes import FakeBackend

BODY = {"prompt": "a cat", "seed": 7, "steps": 4, "save_images": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


@pytest.fixture
def saving(make_client: Callable[..., TestClient], folder: Path) -> Callable[..., Any]:
    client = make_client(save_dir=str(folder))
    return lambda **changes: client.post("/sdapi/v1/txt2img", json=BODY | changes)


def saved(folder: Path) -> dict[str, bytes]:
    """Files by their paths in the folder, without when and for which job they were made."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        re.sub(r"\d{4}-\d\d-\d\d/\d{6}|[0-9a-f]{32}", "*", str(path.relative_to(folder))): path.read_bytes()
        for path in files
    }


def test_one_picture_is_saved_by_its_seed_and_answered_as_without(
    saving: Callable[..., Any], folder: Path
) -> None:
    answer = saving().json()
    assert saved(folder) == {"*-7-*.png": base64.b64decode(answer["images"][0])}
    info = json.loads(answer["info"])
    assert (info["index_of_first_image"], len(info["infotexts"])) == (0, 1)


def test_of_several_pictures_a_grid_comes_first(saving: Callable[..., Any], folder: Path) -> None:
    answer = saving(batch_size=2, n_iter=2).json()
    images = [base64.b64decode(image) for image in answer["images"]]
    assert [Image.open(io.BytesIO(image)).size for image in images] == [(16, 16), *[(8, 8)] * 4]
    info = json.loads(answer["info"])
    assert info["index_of_first_image"] == 1
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert len(info["infotexts"]) == 5
    assert info["infotexts"][0] == info["infotexts"][1]
    for image, text in zip(images, info["infotexts"], strict=True):
        assert Image.open(io.BytesIO(image)).info["parameters"] == text
    files = saved(folder)
    assert sorted(files) == ["*-10-*.png", "*-7-*.png", "*-8-*.png", "*-9-*.png", "*-grid-*.png"]
    assert [files["*-grid-*.png"], files["*-7-*.png"]] == images[:2]


@pytest.mark.parametrize(
    ("options", "shown", "kept"),
    [
        ({"return_grid": False}, 2, ["*-7-*.png", "*-8-*.png", "*-grid-*.png"]),
        ({"return_grid": False, "grid_save": False}, 2, ["*-7-*.png", "*-8-*.png"]),
        ({"grid_save": False}, 3, ["*-7-*.png", "*-8-*.png"]),
        ({"samples_save": False}, 3, ["*-grid-*.png"]),
    ],
)
def test_options_say_what_of_it_is_saved_and_shown(
    saving: Callable[..., Any], folder: Path, options: dict[str, Any], shown: int, kept: list[str]
) -> None:
    answer = saving(batch_size=2, override_settings=options).json()
    assert len(answer["images"]) == shown
    assert sorted(saved(folder)) == kept


def test_what_is_not_sent_is_saved_all_the_same(saving: Callable[..., Any], folder: Path) -> None:
    assert saving(send_images=False).json()["images"] == []
    assert list(saved(folder)) == ["*-7-*.png"]


def test_files_are_named_after_their_format(saving: Callable[..., Any], folder: Path) -> None:
    saving(override_settings={"samples_format": "jpeg"})
    assert list(saved(folder)) == ["*-7-*.jpg"]


def test_nothing_is_saved_and_no_grid_made_unless_asked_for(saving: Callable[..., Any], folder: Path) -> None:
    answer = saving(save_images=False, batch_size=2).json()
    assert len(answer["images"]) == 2
    assert not folder.exists()


def test_without_a_place_to_save_it_is_refused_by_name(client: TestClient, backend: FakeBackend) -> None:
    answer = client.post("/sdapi/v1/txt2img", json=BODY)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("save_images: true")
    assert not backend.jobs


def test_a_place_that_cannot_be_written_to_is_an_error_that_names_no_path(
    saving: Callable[..., Any], folder: Path
) -> None:
    folder.write_text("a file where the folder should be")
    answer = saving()
    assert answer.status_code == 500
    assert list(answer.json()) == ["error", "detail", "body", "errors"]
    assert answer.json()["detail"].startswith("save_images: the pictures were drawn and could not be saved")
    assert str(folder) not in answer.text


async def test_any_filesystem_of_fsspecs_will_do() -> None:
    store = PictureStore("memory://pictures/of")
    await store.save({"2026-01-02/a.png": b"a", "2026-01-02/b.png": b"b"})
    files = store._files
    assert files.cat("/pictures/of/2026-01-02/b.png") == b"b"
    files.rm("/pictures", recursive=True)


def test_an_address_that_is_not_understood_ends_the_start_by_name() -> None:
    with pytest.raises(ValueError, match=r"^save_dir: .*nothing"):
        build_app(FakeBackend(), Settings(auth="off", save_dir="nothing://bucket"))
