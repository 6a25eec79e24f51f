"""Given pictures enlarged: sizes, networks, two of them blended, the file, and beside jobs that draw."""

import asyncio
import dataclasses
import io
import pickle
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio
import torch
from PIL import Image

from engine.checkpoint import LoadedCheckpoint
from engine.engine import Engine
from engine.enlargement import Given, sizes
from engine.protocol import (
    Enlargement,
    FileFormat,
    InvalidJob,
    NotFinite,
    StepStats,
    UpscalerError,
    UpscalerNotFound,
)
from engine.registry import Registry
from engine.upscalers.store import UpscalerSettings, UpscalerStore
from engine.worker import Worker
from tests import upscalers
from tests.jobs import make_job
from tests.pictures import png, scene

CPU = torch.device("cpu")
GIVEN = scene(40, 24)


def work(**changes: Any) -> Enlargement:
    """Twice as large by Lanczos."""
    plain = Enlargement(
        id="large",
        checkpoint="demo",
        image=png(GIVEN),
        scale=2.0,
        box=None,
        crop=True,
        max_pixels=512 * 512,
        upscaler="Lanczos",
        second="None",
        second_visibility=0.0,
        texts={},
    )
    return dataclasses.replace(plain, **changes)


@pytest.fixture(scope="module")
def having(checkpoint: LoadedCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """The tiny checkpoint, with upscalers."""
    folder = tmp_path_factory.mktemp("upscalers")
    for name, weights in {
        "2x": upscalers.compact(scale=2),
        "4x": upscalers.rrdb(),
        "8x": upscalers.compact(scale=8),
        "wild": {key: tensor * 1e20 for key, tensor in upscalers.compact().items()},
        "swin": {"layers.0.residual_group.blocks.0.norm1.weight": torch.ones(1)},
    }.items():
        upscalers.write(folder / f"{name}.safetensors", weights)
    store = UpscalerStore(UpscalerSettings(folder=folder), device=CPU, dtype=torch.float32)
    return Registry(checkpoint, upscalers=store)


@pytest.fixture
def steps() -> list[StepStats]:
    return []


@pytest_asyncio.fixture
async def worker(having: Registry, steps: list[StepStats]) -> AsyncIterator[Worker]:
    worker = Worker(Engine(having.own, on_step=steps.append), having)
    worker.start()
    yield worker
    await worker.stop()


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def far(one: Image.Image, other: Image.Image | npt.NDArray[np.float64]) -> int:
    """The largest difference of a value."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def network(having: Registry, name: str, picture: Image.Image = GIVEN) -> Image.Image:
    """What a network makes of a picture as a whole."""
    upscaler = having.upscalers.get(name)
    assert upscaler is not None
    return Image.fromarray(np.asarray(upscaler(np.asarray(picture))))


@pytest.mark.parametrize(
    ("own", "changes", "upscaled", "kept"),
    [
        ((40, 24), {"scale": 2.0}, (80, 48), (80, 48)),
        ((40, 24), {"scale": 1.1}, (40, 24), (40, 24)),
        ((33, 21), {"scale": 3.0}, (96, 56), (96, 56)),
        ((40, 24), {"scale": 0.5}, (16, 8), (16, 8)),
        ((9, 400), {"scale": 0.5}, (8, 200), (8, 200)),
        ((40, 24), {"box": (100, 100)}, (160, 100), (100, 100)),
        ((40, 24), {"box": (101, 30)}, (101, 56), (101, 30)),
        ((24, 40), {"box": (100, 100)}, (100, 160), (100, 100)),
        ((333, 333), {"box": (512, 512)}, (512, 512), (512, 512)),
        ((40, 24), {"box": (100, 100), "crop": False}, (96, 56), (96, 56)),
        ((333, 100), {"box": (512, 512), "crop": False}, (512, 152), (512, 152)),
        ((40, 24), {"box": (20, 20)}, (32, 20), (20, 20)),
    ],
)
def test_sizes(
    own: tuple[int, int], changes: dict[str, Any], upscaled: tuple[int, int], kept: tuple[int, int]
) -> None:
    assert sizes(own, work(**changes)) == (upscaled, kept)


@pytest.mark.parametrize(
    ("method", "resampling"),
    [("Lanczos", Image.Resampling.LANCZOS), ("Nearest", Image.Resampling.NEAREST)],
)
async def test_without_a_network_the_picture_is_resized_and_the_engine_idle(
    worker: Worker, steps: list[StepStats], method: str, resampling: Image.Resampling
) -> None:
    result = await worker.run(work(upscaler=method))
    assert far(opened(result.image), GIVEN.resize((80, 48), resampling)) == 0
    assert not steps
    assert (result.seed, result.evaluations, result.infotext) == (0, 0, "")


async def test_none_leaves_the_picture_as_it_is(worker: Worker) -> None:
    for changes in ({}, {"box": (100, 100)}, {"second": "4x", "second_visibility": 1.0}):
        result = await worker.run(work(upscaler="None", max_pixels=64, **changes))
        assert far(opened(result.image), GIVEN) == 0


async def test_a_network_enlarges_and_lanczos_does_the_rest(worker: Worker, having: Registry) -> None:
    whole = network(having, "4x")
    result = await worker.run(work(upscaler="4x", scale=4.0))
    assert far(opened(result.image), whole) <= 1
    result = await worker.run(work(upscaler="4x", scale=3.0))
    assert far(opened(result.image), whole.resize((120, 72), Image.Resampling.LANCZOS)) <= 1


async def test_a_network_runs_again_until_the_size_is_reached(worker: Worker, having: Registry) -> None:
    twice = network(having, "2x", network(having, "2x"))
    result = await worker.run(work(upscaler="2x", scale=4.0))
    assert far(opened(result.image), twice) <= 1


async def test_what_covers_a_box_is_cut_centred(worker: Worker) -> None:
    result = await worker.run(work(upscaler="Nearest", box=(48, 48)))
    whole = GIVEN.resize((80, 48), Image.Resampling.NEAREST)
    assert far(opened(result.image), whole.crop((16, 0, 64, 48))) == 0


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
async def test_the_second_upscalers_picture_is_blended_in(
    worker: Worker, having: Registry, share: float
) -> None:
    first = network(having, "2x")
    second = network(having, "4x").resize((80, 48), Image.Resampling.LANCZOS)
    result = await worker.run(work(upscaler="2x", second="4x", second_visibility=share))
    expected = np.asarray(first, float) * (1 - share) + np.asarray(second, float) * share
    assert far(opened(result.image), expected) <= 2
    result = await worker.run(work(upscaler="2x", second="Nearest", second_visibility=share))
    plain = np.asarray(GIVEN.resize((80, 48), Image.Resampling.NEAREST), float)
    assert far(opened(result.image), np.asarray(first, float) * (1 - share) + plain * share) <= 2


async def test_the_file_has_the_texts_and_the_format_that_were_asked_for(worker: Worker) -> None:
    texts = {"parameters": "a cat 猫\nSteps: 1", "postprocessing": "Postprocess upscale by: 2.0", "x": "y"}
    assert opened((await worker.run(work(texts=texts))).image).info == texts
    result = await worker.run(work(texts=texts, file_format=FileFormat(kind="JPEG")))
    assert opened(result.image).format == "JPEG"
    assert "猫".encode("utf-16-be") in result.image


async def test_pictures_are_upright_and_without_transparency(worker: Worker) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    GIVEN.save(turned, "PNG", exif=exif)
    assert opened((await worker.run(work(image=turned.getvalue()))).image).size == (48, 80)
    glass = png(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))
    assert opened((await worker.run(work(image=glass))).image).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": b"no picture"}, "^image: not a picture"),
        (
            {"scale": 8.0, "max_pixels": 61_439},
            "^upscaling_resize: a picture of 320 × 192 is not .* to 61439",
        ),
        (
            {"box": (100, 400), "crop": True, "max_pixels": 50_000},
            "^upscaling_resize_w × upscaling_resize_h: a picture of 664 × 400 is not",
        ),
        (
            {"upscaler": "8x", "scale": 1.0, "max_pixels": 40 * 24},
            "^upscaling_resize: a picture of 320 × 192 by '8x' on the way is not .* to 15360",
        ),
        ({"upscaler": "swin"}, "upscaler 'swin' is SwinIR"),
    ],
)
async def test_what_cannot_be_done_is_refused_before_any_work(
    worker: Worker, steps: list[StepStats], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidJob, match=reason):
        await worker.run(work(**changes))
    assert not steps


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"upscaler": "4x+"}, "upscaler_1"),
        ({"second": "4x+", "second_visibility": 0.5}, "upscaler_2"),
    ],
)
async def test_an_unknown_upscaler_is_told_with_the_nearest(
    worker: Worker, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(UpscalerNotFound) as caught:
        await worker.run(work(**changes))
    assert caught.value.message.startswith(f"{field}: '4x+' is not known. Nearest: 4x")
    assert "Allowed: None, Lanczos, Nearest, 2x, 4x, 8x" in caught.value.message
    assert caught.value.name == "4x+"


async def test_a_network_that_diverges_fails_its_own_enlargement_only(worker: Worker) -> None:
    good = asyncio.create_task(worker.run(work(upscaler="2x")))
    with pytest.raises(NotFinite):
        await worker.run(work(upscaler="wild"))
    assert opened((await good).image).size == (80, 48)


async def test_drawing_goes_on_between_the_tiles(worker: Worker, steps: list[StepStats]) -> None:
    large = work(image=png(scene(400, 400)), upscaler="2x", max_pixels=800 * 800)
    result, drawn = await asyncio.gather(worker.run(large), worker.run(make_job(steps=10)))
    assert opened(result.image).size == (800, 800)
    kinds = [step.operation for step in steps]
    assert kinds.count("upscale") == 9
    assert kinds.count("evaluate") == 10
    first, last = kinds.index("upscale"), len(kinds) - kinds[::-1].index("upscale")
    assert "evaluate" in kinds[first:last] or "upscale" in kinds[kinds.index("evaluate") :]
    assert drawn.evaluations == 10


async def test_a_cancelled_enlargement_leaves_the_engine(worker: Worker) -> None:
    call = asyncio.create_task(
        worker.run(work(image=png(scene(1500, 1500)), upscaler="2x", max_pixels=3000 * 3000))
    )
    async with asyncio.timeout(20):
        while worker.load == (0, 0):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while worker.load != (0, 0):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_without_a_folder_there_are_no_networks(checkpoint: LoadedCheckpoint) -> None:
    with pytest.raises(UpscalerError, match="Allowed: None, Lanczos, Nearest"):
        Given.of(work(upscaler="4x"), Registry(checkpoint).upscalers)


def test_a_large_picture_is_the_earlier_done_the_fewer_tiles_are_left(having: Registry) -> None:
    """So that the batcher knows what it has before it."""
    large = work(image=png(scene(400, 400)), upscaler="2x", max_pixels=800 * 800)
    (program,) = Given.of(large, having.upscalers).programs()
    remaining, result = [], None
    try:
        while True:
            operation = program.send(result)
            remaining.append(operation.remaining)
            (result,) = type(operation).run([operation])
    except StopIteration:
        assert remaining == [8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_what_crosses_processes_arrives() -> None:
    asked, error = work(texts={"parameters": "x"}), UpscalerNotFound("no such", "4x")
    assert pickle.loads(pickle.dumps(asked)) == asked
    assert pickle.loads(pickle.dumps(error)).name == "4x"
