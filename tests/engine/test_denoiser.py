"""The one UNet call: guidance, scaling, contexts of different lengths."""

import torch

from engine.checkpoint import LoadedCheckpoint
from engine.denoiser import Denoiser
from engine.schedules import scaled_linear


def latent(seed: int) -> torch.Tensor:
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) * 3


def context(seed: int, chunks: int = 1) -> torch.Tensor:
    return torch.randn(77 * chunks, 32, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_guidance_extrapolates_from_uncond_to_cond(checkpoint: LoadedCheckpoint) -> None:
    x, cond, uncond = latent(1), context(2), context(3)

    def unguided(c: torch.Tensor) -> torch.Tensor:
        return checkpoint.denoiser(x=[x], sigma=[3.0], cond=[c], uncond=[None], guidance_scale=[1.0])[0]

    guided = checkpoint.denoiser(x=[x], sigma=[3.0], cond=[cond], uncond=[uncond], guidance_scale=[7.5])[0]
    assert torch.allclose(guided, unguided(uncond) + 7.5 * (unguided(cond) - unguided(uncond)), atol=1e-4)


@torch.inference_mode()
def test_row_does_not_depend_on_the_length_of_a_neighbours_prompt(checkpoint: LoadedCheckpoint) -> None:
    x, cond = latent(1), context(2)
    alone = checkpoint.denoiser(x=[x], sigma=[3.0], cond=[cond], uncond=[None], guidance_scale=[1.0])[0]
    mixed = checkpoint.denoiser(
        x=[latent(5), x, latent(6)],
        sigma=[0.5, 3.0, 11.0],
        cond=[context(7, 2), cond, context(8, 3)],
        uncond=[context(9), None, context(10, 2)],
        guidance_scale=[4.0, 1.0, 9.0],
    )[1]
    assert torch.allclose(alone, mixed, atol=1e-5)


@torch.inference_mode()
def test_unet_sees_scaled_latents_and_fractional_timesteps() -> None:
    class Ones(torch.nn.Linear):
        def forward(self, x: torch.Tensor, t: torch.Tensor, **_: object) -> tuple[torch.Tensor]:  # type: ignore[override]
            seen.update(x=x, t=t)
            return (torch.ones_like(x),)

    seen: dict[str, torch.Tensor] = {}
    wrapped = Denoiser(Ones(1, 1), scaled_linear())
    x = latent(1)
    (denoised,) = wrapped(x=[x], sigma=[2.0], cond=[context(2)], uncond=[None], guidance_scale=[1.0])
    assert torch.allclose(seen["x"][0], x / 5**0.5)
    assert torch.allclose(denoised, x - 2.0)
    assert seen["t"].dtype is torch.float32
    assert seen["t"].item() % 1 != 0
