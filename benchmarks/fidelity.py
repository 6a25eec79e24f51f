"""How far the samplers are from the published formulas: `python -m benchmarks.fidelity`.

Walks every sampler over every noise schedule in float32, as the engine does, with several numbers of steps
and eta, and compares the finished latents with independent loops in float64 (`tests/engine/oracles.py`).
Writes the largest relative errors to `docs/fidelity.md`.

With `--k-diffusion FOLDER`, also against k-diffusion's own code, which is not installed: the folder is what
`pip download --no-deps k-diffusion==0.1.1.post1` and unzipping the wheel leave.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from engine.samplers import SAMPLERS
from engine.schedules import SCHEDULES
from tests.engine.oracles import ORACLES, Oracle, Run, mixture
from tests.engine.trajectories import LEVELS, run

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "fidelity.md"
STEPS = 2, 5, 20, 31, 50
ETAS = 0.0, 0.6, 1.0

Errors = Mapping[str, float]
"""By schedule; "" is a sampler's own levels."""


def errors(name: str, oracle: Oracle, dtype: torch.dtype = torch.float32) -> Errors:
    """The largest over all numbers of steps and eta, for each schedule that the sampler does not ignore."""
    sampler = SAMPLERS[name]

    def largest(schedule: str) -> float:
        walks = [sampler.sigmas(schedule, LEVELS, steps) for steps in STEPS]
        return max(run(name, sigmas, eta=eta, dtype=dtype).error(oracle) for sigmas in walks for eta in ETAS)

    if sampler.schedule:
        return {"": largest("uniform")}
    return {schedule: largest(schedule) for schedule in SCHEDULES}


def k_diffusion(folder: Path) -> Mapping[str, Oracle]:
    """k-diffusion's samplers as oracles, in float64, without the rest of the package and what it needs."""
    names = "k_diffusion", "k_diffusion.utils", "torchdiffeq"
    package, utils, unused = map(ModuleType, names)
    package.__path__ = [str(folder / "k_diffusion")]
    utils.__dict__["append_dims"] = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
    unused.__dict__["odeint"] = None
    sys.modules.update({module.__name__: module for module in (package, utils, unused)})
    package.__dict__["utils"] = utils
    k: Any = importlib.import_module("k_diffusion.sampling")
    return {
        "DPM++ 2M": partial(_walked, k.sample_dpmpp_2m),
        "DPM++ SDE": partial(_noised, k.sample_dpmpp_sde),
        "DPM++ 2M SDE": partial(_noised, k.sample_dpmpp_2m_sde),
        "DPM++ 2M SDE Heun": partial(_noised, partial(k.sample_dpmpp_2m_sde, solver_type="heun")),
        "DPM++ 2S a": partial(_noised, k.sample_dpmpp_2s_ancestral),
        "DPM++ 3M SDE": partial(_noised, k.sample_dpmpp_3m_sde),
        "Euler a": partial(_noised, k.sample_euler_ancestral),
        "Euler": partial(_walked, k.sample_euler),
        "LMS": partial(_walked, k.sample_lms),
        "Heun": partial(_walked, k.sample_heun),
        "DPM2": partial(_walked, k.sample_dpm_2),
        "DPM2 a": partial(_noised, k.sample_dpm_2_ancestral),
        "DPM fast": partial(_solved, k.DPMSolver, fast=True),
        "DPM adaptive": partial(_solved, k.DPMSolver, fast=False),
    }


def _walked(sample: Callable[..., Tensor], run: Run, **options: Any) -> Tensor:
    with _float64():
        return sample(_denoised, run.x[None], torch.tensor(run.sigmas), disable=True, **options)[0]


def _noised(sample: Callable[..., Tensor], run: Run) -> Tensor:
    return _walked(sample, run, eta=run.eta, noise_sampler=partial(_drawn, run))


def _solved(solver: Callable[..., Any], run: Run, *, fast: bool) -> Tensor:
    with _float64():
        x, noise = run.x[None], partial(_drawn, run)
        start, end = (-torch.tensor(s).log() for s in (run.sigmas[0], min(s for s in run.sigmas if s > 0)))
        if fast:
            finished = solver(_denoised).dpm_solver_fast(
                x, start, end, len(run.sigmas) - 1, eta=run.eta, noise_sampler=noise
            )
        else:
            finished, _ = solver(_denoised).dpm_solver_adaptive(
                x, start, end, eta=run.eta, noise_sampler=noise
            )
        return Tensor(finished[0])


def _denoised(x: Tensor, sigma: Tensor) -> Tensor:
    return mixture(x, float(sigma))


def _drawn(run: Run, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """k-diffusion also draws noise that it then multiplies with 0; the engine draws none there."""
    try:
        return run.drawn()[None]
    except StopIteration:
        return torch.zeros_like(run.x)[None]


@contextmanager
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def document(published: Mapping[str, Errors], adaptive_float64: float, peer: Mapping[str, Errors]) -> str:
    walked = {name: found for name, found in published.items() if "" not in found}
    own = {name: found[""] for name, found in published.items() if "" in found}
    lines = [
        INTRODUCTION.format(
            date=date.today(),
            torch=torch.__version__,
            steps=", ".join(map(str, STEPS)),
            etas=", ".join(map(str, ETAS)),
            adaptive=f"{adaptive_float64:.0e}",
        ),
        _row("sampler", SCHEDULES),
        _row("---", ["---"] * len(SCHEDULES)),
        *(_row(name, map("{:.0e}".format, found.values())) for name, found in walked.items()),
        "",
        _row("sampler with levels of its own", ["error"]),
        _row("---", ["---"]),
        *(_row(name, [f"{error:.0e}"]) for name, error in own.items()),
    ]
    if peer:
        lines += [
            PEER,
            _row("sampler", ["largest over all schedules"]),
            _row("---", ["---"]),
            *(_row(name, [f"{max(found.values()):.0e}"]) for name, found in peer.items()),
        ]
    return "\n".join(lines) + "\n"


def _row(head: str, cells: Iterable[str]) -> str:
    return f"| {head} | {' | '.join(cells)} |"


INTRODUCTION = """# Fidelity

## Programs

`pytest tests/engine/test_parity.py tests/engine/test_parity_families.py` draws the same jobs with diffusers'
pipelines, over the same weights, seeds and levels, in float32: txt2img (StableDiffusionPipeline), img2img
(StableDiffusionImg2ImgPipeline, 2, 5 and 8 steps of 10), hires fix (the first, a latent enlarged, the
second), SD 2.x with v-prediction, SDXL (StableDiffusionXLPipeline), SDXL handed to its refiner at 0.75
(StableDiffusionXLImg2ImgPipeline), and a checkpoint for inpainting (StableDiffusionInpaintPipeline, all of it
masked). It fails where a latent is more than 1e-5 off, relatively; 3e-5 with zero terminal SNR. Inpainting
with plain checkpoints has no counterpart there: diffusers blends the noised picture into x, we and the
original the picture into the denoised estimate.

## Samplers

The largest relative error ‖ours − oracle‖ / ‖oracle‖ of the finished latent, for {steps} steps with η
{etas}. Ours runs in float32 as in the service. The oracles are the published formulas as independent loops in
float64 (`tests/engine/oracles.py`); UniPC's is diffusers' implementation. Both are given the same start, the
same levels, the same noise, and the exact denoiser of a mixture of two Gaussians in place of a UNet, so this
says how exact the samplers are and nothing about pictures.

Made by `python -m benchmarks.fidelity` on {date} with torch {torch}, on a CPU.

* DPM adaptive chooses its step sizes by an error that rounding moves, and its result with them. In float64 it
  is within {adaptive} of its oracle.
* The Brownian samplers (DPM++ SDE, 2M SDE, 2M SDE Heun, 3M SDE) are given their noise here. That it is
  torchsde's `BrownianTree` of the image's seed, to 2e-6, is tested in `tests/engine/test_brownian.py`.
* LCM's oracle has the boundary scaling that the sampler leaves out.
* Restart goes through σ = 0.1 to 2 again, once in nine steps from 20 steps on, twice in a quarter of the
  steps from 36 on. These numbers are the original's as far as is known; they were not checked against it.
"""

PEER = """
### Against k-diffusion

The same runs against the code of k-diffusion 0.1.1.post1 in float64, by
`python -m benchmarks.fidelity --k-diffusion FOLDER`. LMS' coefficients are integrated there to a tolerance
of 1e-4.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k-diffusion", type=Path, metavar="FOLDER", help="an unzipped wheel of k-diffusion")
    arguments = parser.parse_args()
    peers = k_diffusion(arguments.k_diffusion.resolve()) if arguments.k_diffusion else {}
    published = {name: errors(name, ORACLES[name]) for name in tqdm(SAMPLERS)}
    adaptive = max(errors("DPM adaptive", ORACLES["DPM adaptive"], torch.float64).values())
    peer = {name: errors(name, oracle) for name, oracle in tqdm(peers.items())}
    DOCUMENT.write_text(document(published, adaptive, peer))
    print(f"written: {DOCUMENT.name}")


if __name__ == "__main__":
    main()
