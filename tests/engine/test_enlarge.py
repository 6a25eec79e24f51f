"""Pictures enlarged by networks: as often as needed, in tiles, each row for itself, within jobs."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.checkpoint import LoadedCheckpoint
from engine.engine import Engine
from engine.enlarge import enlarged
from engine.images import Picture
from engine.ops import Operation, Resize, Upscale
from engine.prepared import Prepared
from engine.protocol import InvalidJob, Job, NotFinite, UpscalerError
from engine.registry import Registry
from engine.upscalers.store import UpscalerSettings, UpscalerStore
from engine.upscalers.tiles import spans
from engine.upscalers.upscaler import Upscaler
from engine.worker import Worker
from tests import drawing, upscalers
from tests.drawing import drawn
from tests.jobs import make_job

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upscalers")
    for name, weights in {
        "1x": upscalers.compact(scale=1),
        "2x": upscalers.compact(scale=2),
        "4x": upscalers.rrdb(),
        "8x": upscalers.compact(scale=8),
        "shuffled": upscalers.rrdb(shuffle=2),
        "wild": {key: tensor * 1e20 for key, tensor in upscalers.compact().items()},
        "swin": {"layers.0.residual_group.blocks.0.norm1.weight": torch.ones(1)},
    }.items():
        upscalers.write(folder / f"{name}.safetensors", weights)
    return folder


@pytest.fixture(scope="module")
def having(checkpoint: LoadedCheckpoint, folder: Path) -> Registry:
    """The tiny checkpoint, with upscalers."""
    store = UpscalerStore(UpscalerSettings(folder=folder), device=CPU, dtype=torch.float32)
    return Registry(checkpoint, upscalers=store)


@pytest.fixture
def by(having: Registry) -> Callable[[str], Upscaler]:
    def by(name: str) -> Upscaler:
        upscaler = having.upscalers.get(name)
        assert upscaler is not None
        return upscaler

    return by


def picture(width: int, height: int) -> Picture:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def run(given: Picture, size: tuple[int, int], by: Upscaler | str) -> tuple[Picture, list[Operation]]:
    """The picture, and the operations that it took."""
    program = enlarged(given, size, by, device=CPU, remaining=3)
    operations: list[Operation] = []
    result: Any = None
    try:
        while True:
            operations.append(program.send(result))
            (result,) = operations[-1].run(operations[-1:])
    except StopIteration as finished:
        return finished.value, operations


@pytest.mark.parametrize(
    ("name", "size", "steps"),
    [
        ("2x", (32, 16), ["upscale"]),
        ("2x", (128, 64), ["upscale"] * 3),
        ("2x", (256, 128), [*["upscale"] * 3, "resize"]),
        ("2x", (32, 24), [*["upscale"] * 2, "resize"]),
        ("2x", (16, 8), ["upscale", "resize"]),
        ("4x", (32, 16), ["upscale", "resize"]),
        ("1x", (16, 8), ["upscale"]),
        ("1x", (32, 16), ["upscale", "resize"]),
    ],
)
def test_a_network_runs_until_the_size_is_reached_and_lanczos_does_the_rest(
    by: Callable[[str], Upscaler], name: str, size: tuple[int, int], steps: list[str]
) -> None:
    large, operations = run(picture(16, 8), size, by(name))
    assert large.shape == (size[1], size[0], 3)
    assert [operation.name for operation in operations] == steps
    assert all(operation.method == "Lanczos" for operation in operations if isinstance(operation, Resize))
    assert {operation.remaining for operation in operations} == {3}


@pytest.mark.parametrize("method", ["Nearest", "Lanczos"])
def test_without_a_network_it_is_resized_if_need_be(method: str) -> None:
    given = picture(16, 8)
    (resized,) = run(given, (32, 24), method)[1]
    assert isinstance(resized, Resize)
    assert resized.method == method
    assert run(given, (16, 8), method) == (given, [])


def test_what_is_left_to_lanczos_is_the_networks_own_picture(by: Callable[[str], Upscaler]) -> None:
    given = picture(20, 12)
    large, _ = run(given, (30, 18), by("4x"))
    whole = Image.fromarray(np.asarray(by("4x")(given)))
    expected = np.asarray(whole.resize((30, 18), Image.Resampling.LANCZOS))
    assert np.abs(large.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["2x", "4x", "shuffled"])
def test_tiles_make_the_picture_that_the_whole_makes(by: Callable[[str], Upscaler], name: str) -> None:
    given, upscaler = picture(300, 230), by(name)
    tiled, operations = run(given, (300 * upscaler.scale, 230 * upscaler.scale), upscaler)
    whole = np.asarray(upscaler(given))
    assert len(operations) == 2 * 2
    assert np.abs(tiled.astype(int) - whole).max() <= 1


def test_tiles_depend_on_the_size_alone(by: Callable[[str], Upscaler]) -> None:
    _, operations = run(picture(400, 100), (800, 200), by("2x"))
    shapes = [operation.pixels.shape for operation in operations if isinstance(operation, Upscale)]
    assert shapes == [(100, right - left, 3) for left, right in spans(400)]


def test_a_rows_result_is_the_same_to_the_bit_in_any_company(by: Callable[[str], Upscaler]) -> None:
    rows = [Upscale(upscaler=by("4x"), pixels=picture(40, 24 + i), remaining=1) for i in (0, 0, 1)]
    assert (rows[0].key, rows[0].max_rows) == (rows[1].key, 1)
    assert rows[0].key != rows[2].key
    alone = Upscale.run(rows[:1])[0]
    assert all(np.array_equal(np.asarray(result), np.asarray(alone)) for result in Upscale.run(rows)[:2])


def hires_job(upscaler: str, **changes: Any) -> Job:
    """64 × 64 to 128 × 128."""
    return make_job(hires=drawing.enlarged(128, 128, upscaler=upscaler), **changes)


@pytest.mark.parametrize("name", ["1x", "2x", "4x", "8x"])
def test_networks_enlarge_in_the_hires_fix(having: Registry, name: str) -> None:
    (drawn_by_it, plain), steps = drawn(having.own, hires_job(name), hires_job("Lanczos"), registry=having)
    assert drawn_by_it.shape == (128, 128, 3)
    assert np.abs(drawn_by_it.astype(int) - plain.astype(int)).max() > 8
    assert sum(step.operation == "upscale" for step in steps) == 1


def test_strangers_do_not_change_what_a_network_makes(having: Registry) -> None:
    jobs = [hires_job("4x", seed=1), hires_job("4x", seed=2), hires_job("2x", seed=1), hires_job("Latent")]
    together, steps = drawn(having.own, *jobs, registry=having)
    for job, picture in zip(jobs, together, strict=True):
        assert (
            np.abs(picture.astype(int) - drawn(having.own, job, registry=having)[0][0].astype(int)).max() <= 1
        )
    assert {step.jobs for step in steps if step.operation == "upscale"} == {1}
    assert max(step.jobs for step in steps if step.operation == "evaluate") == 4


def test_a_network_that_diverges_fails_its_own_row_only(having: Registry) -> None:
    engine = Engine(having.own)
    jobs = [hires_job(name, id=name) for name in ("wild", "2x")]
    rows = [engine.add(job, Prepared.of(job, having)) for job in jobs]
    done: dict[int, object] = {}
    while len(engine):
        done |= {left.row.id: left.outcome for left in engine.step()}
    assert isinstance(done[rows[0]], NotFinite)
    assert isinstance(done[rows[1]], np.ndarray)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "4x+",
            r"hr_upscaler: '4x\+' is not known. Nearest: 4x, .* Allowed: Latent, .*, Lanczos, .*, 4x, 8x",
        ),
        ("qwvb", r"hr_upscaler: 'qwvb' is not known. Allowed: Latent, "),
        ("x" * 9999, r"hr_upscaler: 'x{80}' is not known"),
        ("swin", "upscaler 'swin' is SwinIR"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(having: Registry, name: str, reason: str) -> None:
    with pytest.raises(InvalidJob, match=reason):
        Prepared.of(hires_job(name), having)


def test_row_keeps_its_upscaler_though_the_store_is_full(checkpoint: LoadedCheckpoint, folder: Path) -> None:
    settings = UpscalerSettings(folder=folder, max_bytes=100_000)
    store = UpscalerStore(settings, device=CPU, dtype=torch.float32)
    jobs = [hires_job(name) for name in ("2x", "4x", "2x", "8x")]
    (first, _, third, _), _ = drawn(checkpoint, *jobs, registry=Registry(checkpoint, upscalers=store))
    assert np.abs(first.astype(int) - third).max() <= 1


async def test_worker_loads_off_the_event_loops_thread(
    having: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_by = []
    get = UpscalerStore.get

    def recorded(store: UpscalerStore, name: str) -> Upscaler | None:
        asked_by.append(threading.current_thread())
        return get(store, name)

    monkeypatch.setattr(UpscalerStore, "get", recorded)
    worker = Worker(Engine(having.own), having)
    worker.start()
    text = "a\nSteps: 4, Hires upscaler: 4x, Version: v1.7.0"
    result = await worker.run(hires_job("4x", infotext=text))
    with pytest.raises(UpscalerError):
        await worker.run(hires_job("nobody"))
    await worker.stop()
    assert result.infotext == text
    assert len(asked_by) == 2
    assert threading.main_thread() not in asked_by
