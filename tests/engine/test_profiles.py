"""What was measured once is not measured again, and what is kept is never an obstacle."""

from pathlib import Path
from typing import Any

import pytest

from engine.profiles import Profiles, cache_folder

KEY = {"device": "one", "rows": (1, 2)}


def refused() -> Any:
    raise AssertionError("measured again")


def test_a_later_start_reads_what_an_earlier_one_measured(tmp_path: Path) -> None:
    first = Profiles(tmp_path / "new").get(KEY, lambda: {1: 0.5})
    assert first == {"1": 0.5}
    assert Profiles(tmp_path / "new").get(KEY, refused) == first


def test_another_key_is_measured(tmp_path: Path) -> None:
    Profiles(tmp_path).get(KEY, lambda: 1)
    assert Profiles(tmp_path).get({**KEY, "device": "two"}, lambda: 2) == 2
    assert Profiles(tmp_path).get(KEY, refused) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": {}, "measured": 7}', "\xff"])
def test_a_file_that_is_no_profile_of_this_key_is_measured_anew(tmp_path: Path, content: str) -> None:
    Profiles(tmp_path).get(KEY, lambda: 1)
    (file,) = tmp_path.iterdir()
    file.write_text(content, "latin-1")
    assert Profiles(tmp_path).get(KEY, lambda: 2) == 2
    assert Profiles(tmp_path).get(KEY, refused) == 2


def test_a_folder_that_cannot_be_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Profiles(tmp_path / "file" / "folder").get(KEY, lambda: 3) == 3
    assert Profiles(None).get(KEY, lambda: 4) == 4


def test_the_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "atelier" / "profiles"
