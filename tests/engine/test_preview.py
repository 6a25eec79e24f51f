"""Previews: colours of latents without a VAE's decoder, and when they are made."""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from engine import preview
from engine.checkpoint import LoadedCheckpoint, load_checkpoint
from engine.engine import Engine
from engine.images import Picture
from engine.ops import Decode, EncodeImage, Estimate
from engine.prepared import Model
from engine.preview import NO_PREVIEW, Colours, Previews, jpeg, patchwork
from engine.protocol import NotFinite
from tests.drawing import drawn
from tests.jobs import make_job
from tests.pictures import scene

MODELS = Path(__file__).resolve().parents[2] / "models"
PROMPTS = (
    "a large green circle on a white background",
    "a blue star on a yellow background",
    "a red circle and a brown square on a gray background",
    "a large purple ring on an orange background",
)


def smaller(picture: Picture) -> npt.NDArray[np.float32]:
    """The mean of each 8 × 8 pixels."""
    height, width, _ = picture.shape
    blocks = picture.reshape(height // 8, 8, width // 8, 8, 3).astype(np.float32)
    means: npt.NDArray[np.float32] = blocks.mean(axis=(1, 3))
    return means


def test_the_demo_checkpoints_latents_look_like_the_pictures_that_they_are_decoded_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    demo = load_checkpoint(MODELS / "demo.safetensors", device="cpu")
    decode, made = Decode.run, list[tuple[Tensor, object]]()

    def watched(batch: Sequence[Decode]) -> Sequence[object]:
        pictures = decode(batch)
        made.extend(zip((operation.x for operation in batch), pictures, strict=True))
        return pictures

    monkeypatch.setattr(Decode, "run", staticmethod(watched))
    plain = make_job(negative_prompt="", width=256, height=256, steps=12, sampler="DPM++ 2M")
    drawn(demo, *(replace(plain, prompt=prompt) for prompt in PROMPTS))
    colours = fitted(demo)
    assert len(made) == len(PROMPTS)
    for latent, picture in made:
        assert isinstance(picture, np.ndarray)
        estimated, real = colours(latent.numpy()).astype(np.float32), smaller(picture)
        assert np.corrcoef(estimated.ravel(), real.ravel())[0, 1] > 0.94
        assert np.abs(estimated - real).mean() < 17


@torch.inference_mode()
def fitted(checkpoint: LoadedCheckpoint) -> Colours:
    (latent,) = checkpoint.encoder([patchwork()])
    return Colours.fitted(latent.numpy(), patchwork())


def test_colours_that_are_linear_in_the_latent_are_found_exactly() -> None:
    made = np.random.default_rng(1)
    to_latent, offset = made.normal(size=(3, 4)) / 100, made.normal(size=4)

    def latent(picture: Picture) -> npt.NDArray[np.float32]:
        return (smaller(picture) @ to_latent + offset).transpose(2, 0, 1).astype(np.float32)

    colours = Colours.fitted(latent(patchwork()), patchwork())
    other = np.asarray(scene(96, 64))
    assert np.abs(colours(latent(other)) - smaller(other)).max() < 0.6


def test_a_jpeg_keeps_the_colour_of_every_pixel() -> None:
    picture = np.array([[[255, 0, 0], [0, 0, 255]] * 8, [[0, 255, 0], [255, 255, 255]] * 8], np.uint8)
    read = np.asarray(Image.open(io.BytesIO(jpeg(picture))))
    assert read.shape == (2, 16, 3)
    assert np.abs(read.astype(int) - picture).max() < 64


class Asked:
    """Operations are answered when the test says so."""

    def __init__(self, checkpoint: LoadedCheckpoint) -> None:
        self._engine = Engine(checkpoint)
        self.waiting: list[tuple[EncodeImage, Callable[[object], None]]] = []

    def __call__(self, operation: EncodeImage, answered: Callable[[object], None]) -> None:
        self.waiting.append((operation, answered))

    def answer(self, answer: object = None) -> None:
        while self.waiting:
            operation, answered = self.waiting.pop()
            answered(self._engine.answer(operation) if answer is None else answer)


@pytest.fixture
def asked(checkpoint: LoadedCheckpoint) -> Asked:
    return Asked(checkpoint)


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def previews(thread: ThreadPoolExecutor, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Previews:
    """At once, as often as there is something new."""
    monkeypatch.setattr(preview, "SECONDS", 0.0)
    return Previews(thread, asked)


@pytest.fixture
def settle(thread: ThreadPoolExecutor) -> Callable[[], None]:
    """Wait for what the thread was given."""
    return lambda: thread.submit(lambda: None).result()


def estimate(checkpoint: LoadedCheckpoint, seed: int = 0) -> Estimate:
    latent = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(seed))
    return Estimate(latent, Model(checkpoint))


def test_nothing_is_done_for_jobs_that_are_not_watched(
    checkpoint: LoadedCheckpoint, previews: Previews, asked: Asked
) -> None:
    previews.watch(["another"])
    previews.refresh({"job": estimate(checkpoint)})
    assert asked.waiting == []
    assert previews.latest("job") == previews.latest("another") == NO_PREVIEW


def test_the_vae_is_asked_once_and_previews_follow(
    checkpoint: LoadedCheckpoint, previews: Previews, asked: Asked, settle: Callable[[], None]
) -> None:
    previews.watch(["one", "two"])
    estimates = {"one": estimate(checkpoint, 1), "two": estimate(checkpoint, 2)}
    previews.refresh(estimates)
    previews.refresh(estimates)
    assert len(asked.waiting) == 1
    asked.answer()
    previews.refresh(estimates)
    settle()
    one, two = (previews.latest(job_id) for job_id in estimates)
    assert {one.id, two.id} == {1, 2}
    assert one.jpeg != two.jpeg
    assert Image.open(io.BytesIO(one.jpeg)).size == (9, 6)
    assert asked.waiting == []


def test_there_is_a_new_preview_only_of_a_new_estimate_and_with_a_higher_id(
    checkpoint: LoadedCheckpoint, previews: Previews, asked: Asked, settle: Callable[[], None]
) -> None:
    def shown(latest: Estimate) -> preview.Preview:
        previews.refresh({"job": latest})
        settle()
        return previews.latest("job")

    previews.watch(["job"])
    first, second = estimate(checkpoint, 1), estimate(checkpoint, 2)
    shown(first)
    asked.answer()
    before = shown(first)
    assert shown(first) is before
    after = shown(second)
    assert after.id > before.id > 0
    assert after.jpeg != before.jpeg
    previews.watch([])
    assert shown(first) == NO_PREVIEW
    previews.watch(["job"])
    assert shown(first).id > after.id


def test_previews_of_a_job_have_their_distance_in_time(
    checkpoint: LoadedCheckpoint,
    previews: Previews,
    asked: Asked,
    settle: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preview, "SECONDS", 3600.0)
    previews.watch(["job"])
    previews.refresh({"job": estimate(checkpoint)})
    asked.answer()
    for seed in range(3):
        previews.refresh({"job": estimate(checkpoint, seed)})
        settle()
    assert previews.latest("job").id == 1


def test_none_are_made_while_others_are(
    checkpoint: LoadedCheckpoint, previews: Previews, asked: Asked, thread: ThreadPoolExecutor
) -> None:
    previews.watch(["job"])
    previews.refresh({"job": estimate(checkpoint)})
    asked.answer()
    busy = Event()
    thread.submit(busy.wait, 20)
    for seed in range(5):
        previews.refresh({"job": estimate(checkpoint, seed)})
    busy.set()
    thread.submit(lambda: None).result()
    assert previews.latest("job").id == 1


def test_a_vae_that_fails_is_not_asked_again(
    checkpoint: LoadedCheckpoint,
    previews: Previews,
    asked: Asked,
    caplog: pytest.LogCaptureFixture,
) -> None:
    previews.watch(["job"])
    previews.refresh({"job": estimate(checkpoint)})
    asked.answer(NotFinite("the latent is not finite"))
    previews.refresh({"job": estimate(checkpoint)})
    assert asked.waiting == []
    assert previews.latest("job") == NO_PREVIEW
    assert "no previews" in caplog.text
