"""A tuned checkpoint draws the same pictures; it was measured once, and shares with those of its kind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint import LoadedCheckpoint, assemble
from engine.families.family import Kind
from engine.graphs import Graphs
from engine.protocol import CheckpointError
from engine.row_counts import RowCounts
from engine.tuning import Tuner, TuningSettings
from tests.drawing import drawn
from tests.jobs import make_job
from tests.tiny import FAMILIES, tiny_modules

CPU = torch.device("cpu")


def loaded(family: str = "sd1", seed: int = 0, **kind: Any) -> LoadedCheckpoint:
    channels = {"in_channels": 9} if kind.get("inpainting") else {}
    return assemble(
        *tiny_modules(seed, family, **channels),
        device=CPU,
        dtype=torch.float32,
        kind=Kind(family=FAMILIES[family], prediction="epsilon", **kind),
    )


def tuner(**settings: Any) -> Tuner:
    return Tuner(TuningSettings(**{"pictures": [(64, 64)], "row_counts": (2, 4), **settings}), CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws_tuned_what_it_draws_plain(family: str) -> None:
    checkpoint = loaded(family)
    tuner().tune(checkpoint)
    assert isinstance(checkpoint.denoiser.call, Graphs)
    assert len(checkpoint.denoiser.call) == 2
    jobs = [make_job(id=str(seed), seed=seed) for seed in range(2)]
    plain = drawn(loaded(family), *jobs)[0]
    for ours, theirs in zip(drawn(checkpoint, *jobs)[0], plain, strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_checkpoint_for_inpainting_is_warmed_up_with_what_it_takes() -> None:
    checkpoint = loaded(inpainting=True)
    tuner().tune(checkpoint)
    assert isinstance(checkpoint.denoiser.call, Graphs)
    assert len(checkpoint.denoiser.call) == 2


def test_what_was_measured_is_kept_for_the_next_start(tmp_path: Path) -> None:
    settings = {"row_counts": (), "max_rows": 4, "folder": tmp_path}
    first = loaded()
    tuner(**settings).tune(first)
    assert first.denoiser.row_counts
    assert first.denoiser.row_counts.largest(64) <= 4
    kept = {file: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    (file,) = (file for file, profile in kept.items() if "picture" in profile["key"])
    assert kept[file]["measured"].keys() == {"1", "2", "4"}
    file.write_text(json.dumps({**kept[file], "measured": {"1": 1.0, "2": 1.0, "4": 1.5}}))
    second = loaded()
    tuner(**settings).tune(second)
    assert second.denoiser.row_counts == RowCounts({64: (2, 4)})


def test_calls_have_at_most_the_rows_that_gain_something() -> None:
    checkpoint = loaded()
    tuner(row_counts=(2,)).tune(checkpoint)
    _, steps = drawn(checkpoint, *(make_job(id=str(seed), seed=seed) for seed in range(2)))
    assert {step.rows for step in steps if step.operation == "evaluate"} == {2}


def test_another_checkpoint_of_the_same_kind_has_the_same_and_its_own_recordings() -> None:
    tuning, own, alike, other = tuner(), loaded(), loaded(seed=1), loaded("sdxl")
    tuning.tune(own)
    for checkpoint in (alike, other):
        tuning.share(checkpoint)
    assert alike.denoiser.row_counts == own.denoiser.row_counts
    assert alike.denoiser.call is not own.denoiser.call
    assert other.denoiser.row_counts is None
    ours, theirs = (drawn(checkpoint, make_job())[0][0] for checkpoint in (alike, loaded(seed=1)))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_kernel_that_is_not_installed_is_named() -> None:
    with pytest.raises(CheckpointError, match="attention: xformers is not installed"):
        tuner(attention="xformers").tune(loaded())
