"""Pictures whose opposite edges fit one another."""

from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint import LoadedCheckpoint
from engine.ops import Picture
from engine.tiling import circular
from tests.drawing import begun_with, drawn, enlarged
from tests.jobs import make_job
from tests.pictures import scene


def rolled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.roll((3, 2), dims=(-1, -2))


@torch.inference_mode()
def test_inside_the_module_has_no_edges(checkpoint: LoadedCheckpoint) -> None:
    """What goes in shifted round the edge comes out shifted so."""
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    decoder = checkpoint.decoder.vae.decoder
    plain = decoder(latent)
    with circular(decoder, wanted=True):
        seamless = decoder(latent)
        moved = decoder(rolled(latent))
    assert torch.allclose(moved, seamless.roll((24, 16), dims=(-1, -2)), atol=1e-4)
    assert not torch.allclose(decoder(rolled(latent)), plain.roll((24, 16), dims=(-1, -2)), atol=1e-2)
    assert torch.equal(decoder(latent), plain)


def seam(picture: Picture) -> float:
    """How much larger the step over the edge is than those inside."""
    wrapped = np.concatenate([picture, picture[:1]]).astype(float)
    steps = np.abs(np.diff(wrapped, axis=0)).mean(axis=(1, 2))
    return float(steps[-1] / steps[:-1].mean())


@pytest.mark.parametrize("kind", ["txt2img", "img2img", "hires"])
def test_tiling_jobs_run_beside_others_and_neither_notices(checkpoint: LoadedCheckpoint, kind: str) -> None:
    begins: dict[str, dict[str, Any]] = {
        "txt2img": {},
        "img2img": {"init": begun_with(scene(64, 64), denoising_strength=1.0)},
        "hires": {"hires": enlarged(96, 96)},
    }
    plain, tiling = (make_job(id=str(on), tiling=on, **begins[kind]) for on in (False, True))
    together, _ = drawn(checkpoint, plain, tiling)
    for job, picture in zip((plain, tiling), together, strict=True):
        (alone,), _ = drawn(checkpoint, job)
        assert np.abs(alone.astype(int) - picture.astype(int)).max() <= 1
    assert seam(together[1]) < 1.25
    assert not np.array_equal(together[0], together[1])
