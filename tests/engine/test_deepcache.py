"""The class deepcache: rows that reuse features, each at its own turn, whoever else is there."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint import LoadedCheckpoint, assemble, in_quality, make_strict
from engine.deepcache import Kept, Turn, turns
from engine.engine import Engine
from engine.families.family import Kind
from engine.images import Picture
from engine.lora.store import LoraSettings
from engine.ops import Evaluate
from engine.protocol import Job, Refiner
from engine.quality import quality_of
from engine.worker import Worker
from tests import loras
from tests.drawing import drawn, enlarged
from tests.jobs import make_job
from tests.tiny import FAMILIES, tiny_modules

CPU = torch.device("cpu")
THIRD = quality_of("deepcache", 3)

Calls = list[tuple[bool, int]]
"""Of each evaluation: whether it was a full one, and of how many jobs."""


def assembled(family: str = "sd1", **options: Any) -> LoadedCheckpoint:
    modules = tiny_modules(family=family)
    kind = Kind(family=FAMILIES[family])
    exact = assemble(*modules, device=CPU, dtype=torch.float32, kind=kind, **options)
    return in_quality(exact, THIRD)


@pytest.fixture(scope="module")
def cached() -> LoadedCheckpoint:
    return assembled()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made: Calls = []
    run = Evaluate.run

    def watched(batch: Sequence[Evaluate]) -> Sequence[object]:
        full = {each.turn is None or each.turn.full for each in batch}
        assert len(full) == 1
        made.append((full.pop(), len(batch)))
        return run(batch)

    monkeypatch.setattr(Evaluate, "run", staticmethod(watched))
    return made


def distance(picture: Picture, other: Picture) -> float:
    return float(np.abs(picture.astype(float) - other).mean())


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_outer_blocks_make_of_an_evaluations_own_features_its_very_result(family: str) -> None:
    """With prompts of two lengths, and rows of three conditionings and of one."""
    checkpoint = assembled(family)
    texts = ("a cat", "a dog, " * 40, "", "a bird")
    encoded = checkpoint.conditioner([((text, 1.0),) for text in texts], 1)
    score, _ = checkpoint.kind.family.aesthetic_scores or (None, None)
    first, long, empty, third = (replace(cond, aesthetic_score=score) for cond in encoded)
    kept = [Kept(), Kept()]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def evaluate(order: Sequence[int], full: bool) -> dict[int, torch.Tensor]:
        conds = [[(first, 1.0), (third, 0.5)], [(long, 1.0)]]
        results = checkpoint.denoiser.reusing([Turn(kept[i], full) for i in order])(
            x=[x[i] for i in order],
            sigma=[[3.0, 1.0][i] for i in order],
            conds=[conds[i] for i in order],
            uncond=[[empty, None][i] for i in order],
            guidance_scale=[[5.0, 1.0][i] for i in order],
        )
        return dict(zip(order, results, strict=True))

    whole = evaluate([0, 1], full=True)
    again = evaluate([1, 0], full=False)
    for row in whole:
        assert torch.allclose(again[row], whole[row], atol=1e-5)
    shapes = [tuple(row.features.shape) for row in kept if row.features is not None]
    assert [shape[0] for shape in shapes] == [3, 1]


def test_every_third_evaluation_is_full() -> None:
    made = list(islice(turns(3), 7))
    assert [turn.full for turn in made if turn] == [True, False, False, True, False, False, True]
    kept = [turn.kept for turn in made if turn]
    assert kept[0] is kept[1] is kept[2] is not kept[3]


def test_exact_rows_keep_nothing() -> None:
    assert list(islice(turns(1), 4)) == [None] * 4


def test_rows_of_other_turns_share_no_call(cached: LoadedCheckpoint, calls: Calls) -> None:
    """A row that comes in the middle of another's interval begins with a full evaluation of its own."""
    engine = Engine(cached)
    engine.add(make_job(steps=6))
    for _ in range(3):  # encodes, then two evaluations
        engine.step()
    engine.add(make_job(id="later", seed=2, steps=6))
    while len(engine):
        engine.step()
    assert calls[:2] == [(True, 1), (False, 1)]
    assert sum(count for full, count in calls if full) == 4
    assert sum(count for full, count in calls if not full) == 8
    assert max(count for _, count in calls) == 2


JOBS = [
    make_job(steps=7),
    make_job(id="other", seed=7, sampler="Heun", steps=5, prompt="a blue star"),
    make_job(id="unguided", seed=8, guidance_scale=1.0, steps=6),
    make_job(id="parts", seed=10, prompt="a cat AND a dog AND a bird", steps=6),
    make_job(id="long", seed=9, prompt="a red circle, " * 30, steps=4, tiling=True),
]


@pytest.mark.parametrize("job", JOBS, ids=[job.id for job in JOBS])
def test_picture_does_not_depend_on_batch_neighbours(cached: LoadedCheckpoint, job: Job) -> None:
    (alone,), _ = drawn(cached, job)
    engine = Engine(cached, max_rows=64)
    others = [each for each in JOBS if each is not job]
    for each in others[:2]:
        engine.add(each)
    for _ in range(4):  # so that its turns are other than theirs
        engine.step()
    own = engine.add(job)
    for each in others[2:]:
        engine.add(each)
    done = {left.row.id: left.outcome for left in all_left(engine)}
    picture = done[own]
    assert isinstance(picture, np.ndarray)
    assert int(np.abs(picture.astype(int) - alone).max()) <= 1


def all_left(engine: Engine) -> Iterator[Any]:
    while len(engine):
        yield from engine.step()


def test_strict_pictures_are_bit_equal_in_any_company() -> None:
    strict = assembled()
    make_strict(strict)
    (alone,), _ = drawn(strict, make_job(steps=5))
    (_, beside), _ = drawn(strict, make_job(seed=7), make_job(steps=5))
    assert np.array_equal(beside, alone)


def test_pictures_are_near_the_exact_ones_and_say_their_class(
    cached: LoadedCheckpoint, checkpoint: LoadedCheckpoint
) -> None:
    job = make_job(steps=9)
    (exact,), _ = drawn(checkpoint, job)
    (picture,), _ = drawn(cached, job)
    assert 0 < distance(picture, exact) < 6
    assert cached.quality.shown == "deepcache 3"


async def test_result_says_the_class_in_its_infotext_too(cached: LoadedCheckpoint) -> None:
    worker = Worker(Engine(cached))
    worker.start()
    result = await worker.run(make_job(infotext="a\nSteps: 4, Version: v1.7.0"))
    await worker.stop()
    assert result.quality == "deepcache 3"
    assert result.infotext == "a\nSteps: 4, Quality: deepcache 3, Version: v1.7.0"


def test_second_pass_begins_with_a_full_evaluation(cached: LoadedCheckpoint, calls: Calls) -> None:
    drawn(cached, make_job(steps=2, hires=enlarged(96, 96)))
    assert [full for full, _ in calls[:2]] == [True, False]
    assert calls[2][0]


def test_refiner_begins_with_a_full_evaluation(cached: LoadedCheckpoint, calls: Calls) -> None:
    drawn(cached, make_job(steps=6, refiner=Refiner(checkpoint="demo", switch_at=0.2, by_timestep=False)))
    assert [full for full, _ in calls] == [True, False, True, False, False, True]


def test_row_that_overflows_is_evaluated_again_at_the_same_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, *others = tiny_modules()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_v" in name:
                parameter.mul_(40)
    half = in_quality(assemble(unet, *others, device=CPU, dtype=torch.float16), THIRD)
    made: list[tuple[bool, bool]] = []
    run = Evaluate.run

    def watched(batch: Sequence[Evaluate]) -> Sequence[object]:
        assert batch[0].turn is not None
        made.append((batch[0].turn.full, batch[0].precise))
        return run(batch)

    monkeypatch.setattr(Evaluate, "run", staticmethod(watched))
    drawn(half, make_job(prompt="(a circle:1000)", emphasis="No norm", steps=4))
    assert made == [(full, precise) for full in (True, False, False, True) for precise in (False, True)]


def test_loras_change_the_outer_blocks_too(tmp_path: Path) -> None:
    only = ("unet.down_blocks.0", "unet.up_blocks.3")
    changes = loras.random_changes(*tiny_modules()[::2], seed=1, strength=1.0, only=only)
    loras.write(tmp_path / "ink.safetensors", loras.kohya(changes))
    settings = LoraSettings(folder=tmp_path, strict=True)
    exact = assemble(*tiny_modules(), device=CPU, dtype=torch.float32, loras=settings)
    plain, inked = make_job(steps=6), make_job(prompt="a red circle<lora:ink:1>", steps=6)
    (without, expected), _ = drawn(exact, plain, inked)
    (_, picture), _ = drawn(assembled(loras=settings), plain, inked)
    assert distance(picture, expected) < distance(expected, without) / 2
