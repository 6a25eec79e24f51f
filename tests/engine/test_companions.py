"""Other checkpoints in a replica: loaded when asked for, kept within bytes, never lost by who uses them."""

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint import LoadedCheckpoint, load_checkpoint, swap_checkpoint
from engine.companions import Companions
from engine.protocol import InvalidJob, JobFailed
from tests.drawing import drawn
from tests.jobs import make_job
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("companions")
    return {name: write_checkpoint(folder / f"{name}.safetensors", seed) for seed, name in enumerate("abc")}


class Loads:
    """Keeps in mind what was loaded: anew, or into what was there."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.swapped: list[str] = []

    def load(self, path: Path) -> LoadedCheckpoint:
        self.names.append(path.stem)
        return load_checkpoint(path, device="cpu", dtype="float16")

    def swap(self, loaded: LoadedCheckpoint, path: Path) -> LoadedCheckpoint:
        self.names.append(path.stem)
        self.swapped.append(path.stem)
        return swap_checkpoint(loaded, path)


def made(paths: dict[str, Path], room: float) -> tuple[Companions, Loads]:
    """With room for so many of the files."""
    loads = Loads()
    size = next(iter(paths.values())).stat().st_size
    return Companions(paths, loads.load, loads.swap, max_bytes=int(room * size)), loads


def test_a_checkpoint_is_loaded_once_and_the_least_lately_used_goes(paths: dict[str, Path]) -> None:
    companions, loads = made(paths, room=2.5)
    for name in "abacab":
        companions.get(name, "field")
    assert loads.names == ["a", "b", "c", "b"]
    assert loads.swapped == ["c", "b"]


def test_one_in_the_modules_of_another_draws_its_own_pictures(paths: dict[str, Path]) -> None:
    companions, loads = made(paths, room=1.5)
    first, lease = companions.get("a", "field")
    weights = [parameter.data_ptr() for parameter in first.denoiser.unet.parameters()]
    del lease
    swapped, _ = companions.get("b", "field")
    assert loads.swapped == ["b"]
    assert [parameter.data_ptr() for parameter in swapped.denoiser.unet.parameters()] == weights
    (picture,), _ = drawn(swapped, make_job())
    (expected,), _ = drawn(load_checkpoint(paths["b"], device="cpu", dtype="float16"), make_job())
    assert np.array_equal(picture, expected)


def test_one_of_another_architecture_is_loaded_when_there_is_room(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    larger = write_checkpoint(tmp_path / "xl.safetensors", family="sdxl")
    companions, loads = made({**paths, "xl": larger}, room=1.5)
    companions.get("a", "field")
    companions.get("xl", "field")
    assert (loads.names, loads.swapped) == (["a", "xl"], [])


def test_a_file_whose_header_is_bad_puts_nobody_out(paths: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no checkpoint")
    companions, loads = made({**paths, "bad": tmp_path / "bad.safetensors"}, room=1.5)
    companions.get("a", "field")
    with pytest.raises(JobFailed):
        companions.get("bad", "field")
    companions.get("a", "field")
    assert loads.names == ["a"]


def test_what_is_in_use_stays_and_who_needs_its_room_waits(paths: dict[str, Path]) -> None:
    companions, loads = made(paths, room=1.5)
    held = companions.get("a", "field")
    waiting = threading.Thread(target=companions.get, args=("b", "field"))
    waiting.start()
    time.sleep(0.2)
    assert loads.names == ["a"]
    del held
    gc.collect()
    waiting.join(10)
    assert loads.names == ["a", "b"]


def test_what_is_larger_than_all_room_may_be_alone(paths: dict[str, Path]) -> None:
    companions, loads = made(paths, room=0.5)
    for name in "ab":
        companions.get(name, "field")
    assert loads.names == ["a", "b"]


def test_an_unknown_name_is_the_requests_fault_and_a_bad_file_the_services(
    paths: dict[str, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no checkpoint")
    companions, _ = made({**paths, "bad": bad, "gone": tmp_path / "gone.safetensors"}, room=2)
    with pytest.raises(InvalidJob, match=r"refiner_checkpoint: 'x' .*: 'a', 'b', 'c', 'bad'"):
        companions.get("x", "refiner_checkpoint")
    for name in ("bad", "gone"):
        with pytest.raises(JobFailed) as failure:
            companions.get(name, "refiner_checkpoint")
        assert str(tmp_path) not in failure.value.message
