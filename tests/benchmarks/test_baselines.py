"""Other ways to serve do the work that the service does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.baselines.pipeline import Pipelines, settings_of
from benchmarks.baselines.swap import Swapping
from benchmarks.models import stand_in
from benchmarks.served import Served

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning"
)  # diffusers' own

BODY = {
    "prompt": "a red ring",
    "sampler_name": "Euler",
    "steps": 2,
    "cfg_scale": 7.0,
    "width": 64,
    "height": 64,
    "seed": 1,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("checkpoints")
    return Served(tuple(stand_in(folder, seed).path for seed in range(2)), threads=1)


def drawn(by: Pipelines | Swapping, body: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    (image,) = by.draw(settings_of(body), [body])
    assert isinstance(image, Image.Image)
    return np.asarray(image)


def test_a_server_that_swaps_draws_what_one_with_all_in_memory_draws(served: Served) -> None:
    resident, swapping = Pipelines(served), Swapping(served)
    bodies = [{**BODY, "model": name} for name in ("stand-in-0", "stand-in-1", "stand-in-1", "stand-in-0")]
    pictures = [drawn(resident, body) for body in bodies]
    assert not np.array_equal(pictures[0], pictures[1])
    for body, picture in zip(bodies, pictures, strict=True):
        np.testing.assert_array_equal(drawn(swapping, body), picture)
    assert swapping.count == 2
    np.testing.assert_array_equal(drawn(swapping, BODY), pictures[0])


def test_who_names_another_lora_or_checkpoint_shares_no_call() -> None:
    tagged = {**BODY, "prompt": "a red ring <lora:lora-7:0.8>"}
    settings = settings_of(tagged)
    assert settings.lora == ("lora-7", 0.8)
    assert len({settings, settings_of(BODY), settings_of({**BODY, "model": "stand-in-1"})}) == 3


def test_the_folder_of_loras_is_not_needed_without_one(served: Served, tmp_path: Path) -> None:
    assert drawn(Pipelines(Served(served.checkpoints[:1], 1, tmp_path / "none")), BODY).shape == (64, 64, 3)
