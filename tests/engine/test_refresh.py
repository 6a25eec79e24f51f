"""Folders looked through again while jobs run: later jobs get what is new, earlier ones keep theirs."""

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint import LoadedCheckpoint, load_checkpoint
from engine.companions import Companions
from engine.embeddings import load_embeddings
from engine.engine import Engine
from engine.images import Picture
from engine.lora.store import LoraSettings
from engine.memory import device_memory
from engine.prepared import Prepared
from engine.protocol import CheckpointError
from engine.registry import Registry
from engine.vae import VaeStore
from engine.worker import Worker
from tests.drawing import drawn
from tests.jobs import make_job
from tests.tiny import TINY_TEXT, tiny_modules, write_checkpoint

WIDTH: int = TINY_TEXT["hidden_size"]
JOB = make_job(prompt="a thing", negative_prompt="", steps=2)


def learnt(seed: int = 0, count: int = 2, width: int = WIDTH) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def learn(folder: Path, name: str = "thing", seed: int = 0, *, width: int = WIDTH) -> None:
    """Write an embedding, with a time of its own: a test may be quicker than a file system's clock."""
    path = folder / f"{name}.safetensors"
    save_file({"emb_params": learnt(seed, width=width)}, path)
    os.utime(path, ns=(seed, seed))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny.safetensors")


def loaded(file: Path, embeddings: Path) -> LoadedCheckpoint:
    return load_checkpoint(file, device="cpu", dtype="float32", embeddings=embeddings)


def picture(file: Path, embeddings: Path) -> Picture:
    return drawn(loaded(file, embeddings), JOB)[0][0]


def test_what_has_changed_is_read_and_nothing_else(tmp_path: Path) -> None:
    for seed, name in enumerate(("kept", "changed", "gone"), start=1):
        learn(tmp_path, name, seed)
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    before = load_embeddings(tmp_path, WIDTH)
    assert before.rescanned() is before

    learn(tmp_path, "changed", 7)
    learn(tmp_path, "new", 8)
    learn(tmp_path, "wide", 9, width=768)
    (tmp_path / "gone.safetensors").unlink()
    now = before.rescanned()
    assert {file.name: file.usable for file in now.listing()} == {
        "changed": True,
        "kept": True,
        "new": True,
        "wide": False,
    }
    assert now.loaded["kept"] is before.loaded["kept"]
    assert torch.equal(now.loaded["changed"], learnt(7))
    assert now.hashes["changed"] != before.hashes["changed"]
    assert set(before.loaded) == {"kept", "changed", "gone"}
    assert torch.equal(before.loaded["changed"], learnt(2))


def test_a_bad_file_is_complained_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    embeddings = load_embeddings(tmp_path, WIDTH)
    for _ in range(2):
        embeddings = embeddings.rescanned()
    assert caplog.text.count("embedding 'bad' cannot be read") == 1


def test_a_folder_that_is_gone_is_an_error_and_what_was_read_stays(tmp_path: Path, file: Path) -> None:
    folder = tmp_path / "embeddings"
    folder.mkdir()
    learn(folder)
    registry = Registry(loaded(file, folder))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="no folder of embeddings"):
        registry.refresh("embeddings")
    assert list(registry.own.embeddings.loaded) == ["thing"]


def run(engine: Engine, *prepared: Prepared) -> list[Picture]:
    rows = [engine.add(JOB, each) for each in prepared]
    done = {}
    while len(engine):
        done.update({left.row.id: left.outcome for left in engine.step()})
    pictures = [done[row] for row in rows]
    return [each for each in pictures if isinstance(each, np.ndarray)]


def test_jobs_keep_the_embeddings_that_they_were_prepared_with(tmp_path: Path, file: Path) -> None:
    """Side by side in one engine: none yet, the first version, the second."""
    plain = picture(file, tmp_path)
    registry = Registry(loaded(file, tmp_path))
    prepared = [Prepared.of(JOB, registry)]
    expected = [plain]
    for seed in (1, 2):
        learn(tmp_path, seed=seed)
        registry.refresh("embeddings")
        prepared.append(Prepared.of(JOB, registry))
        expected.append(picture(file, tmp_path))
    assert [bool(each.embeddings) for each in prepared] == [False, True, True]
    assert prepared[1].embeddings != prepared[2].embeddings
    for drew, alone in zip(run(Engine(registry.own), *prepared), expected, strict=True):
        assert np.abs(drew.astype(int) - alone).max() <= 1
    for one, other in ((0, 1), (1, 2)):
        assert np.abs(expected[one].astype(int) - expected[other]).max() > 1


def test_looking_again_at_nothing_new_keeps_what_was_encoded(tmp_path: Path, file: Path) -> None:
    learn(tmp_path)
    registry = Registry(loaded(file, tmp_path))
    own = registry.own
    registry.refresh("embeddings")
    assert registry.own is own


def test_strict_mode_survives(tmp_path: Path, file: Path) -> None:
    registry = Registry(loaded(file, tmp_path))
    registry.own.conditioner.singly = True
    learn(tmp_path)
    registry.refresh("embeddings")
    assert registry.own.conditioner.singly


def test_companions_look_again_too(tmp_path: Path, file: Path) -> None:
    companions = Companions({"other": file}, lambda path: loaded(path, tmp_path), max_bytes=2**30)
    registry = Registry(loaded(file, tmp_path), "own", companions)
    before, _ = registry.checkpoint("other", "field")
    learn(tmp_path)
    registry.refresh("embeddings")
    after, _ = registry.checkpoint("other", "field")
    assert (list(before.embeddings.loaded), list(after.embeddings.loaded)) == ([], ["thing"])
    assert after.denoiser is before.denoiser


async def test_refreshing_without_end_disturbs_no_job(tmp_path: Path, file: Path) -> None:
    """Each picture is the one of the embedding that its result names."""
    expected = {}
    for seed in (1, 2):
        learn(tmp_path, seed=seed)
        registry = Registry(loaded(file, tmp_path))
        expected[Prepared.of(JOB, registry).embeddings] = drawn(registry.own, JOB)[0][0]
    worker = Worker(Engine(registry.own), registry)
    worker.start()
    over = threading.Event()

    def change() -> None:
        seed = 1
        while not over.is_set():
            (tmp_path / "new").mkdir(exist_ok=True)
            learn(tmp_path / "new", seed=seed)
            (tmp_path / "new" / "thing.safetensors").replace(tmp_path / "thing.safetensors")
            registry.refresh("embeddings")
            seed = 3 - seed

    changing = threading.Thread(target=change)
    changing.start()
    try:
        results = [await worker.run(JOB) for _ in range(20)]
    finally:
        over.set()
        changing.join()
        await worker.stop()
    for result in results:
        drew = np.asarray(Image.open(io.BytesIO(result.image)))
        assert np.array_equal(drew, expected[result.embedding_hashes])
    assert len({result.embedding_hashes for result in results}) == 2


def test_loras_and_vaes_are_looked_for_again(tmp_path: Path, file: Path) -> None:
    for name in ("loras", "vaes"):
        (tmp_path / name).mkdir()
    checkpoint = load_checkpoint(file, device="cpu", loras=LoraSettings(folder=tmp_path / "loras"))
    registry = Registry(checkpoint, vaes=VaeStore(tmp_path / "vaes", checkpoint, max_bytes=2**30))
    vae = {key: tensor.contiguous() for key, tensor in tiny_modules()[1].state_dict().items()}
    save_file(vae, tmp_path / "vaes" / "kl.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "loras" / "ink.safetensors")
    assert (registry.own.loras.listing(), registry.vaes.listing()) == ([], [])
    registry.refresh("loras")
    registry.refresh("vaes")
    assert [file.name for file in registry.own.loras.listing()] == ["ink"]
    assert [file.name for file in registry.vaes.listing()] == ["kl.safetensors"]


def test_a_cpu_has_no_memory_of_a_device() -> None:
    assert device_memory(torch.device("cpu")) is None
