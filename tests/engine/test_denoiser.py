"""The one UNet call: guidance, scaling, contexts of different lengths."""

import torch

from engine.checkpoint import LoadedCheckpoint
from engine.conditioning import Cond
from engine.denoiser import Denoiser
from engine.schedules import scaled_linear


def latent(seed: int) -> torch.Tensor:
    return torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) * 3


def context(seed: int, chunks: int = 1) -> Cond:
    return Cond(torch.randn(77 * chunks, 32, generator=torch.Generator().manual_seed(seed)))


@torch.inference_mode()
def test_guidance_extrapolates_from_uncond_to_cond(checkpoint: LoadedCheckpoint) -> None:
    x, cond, uncond = latent(1), context(2), context(3)

    def unguided(c: Cond) -> torch.Tensor:
        return checkpoint.denoiser(
            x=[x], sigma=[3.0], conds=[[(c, 1.0)]], uncond=[None], guidance_scale=[1.0]
        )[0]

    guided = checkpoint.denoiser(
        x=[x], sigma=[3.0], conds=[[(cond, 1.0)]], uncond=[uncond], guidance_scale=[7.5]
    )[0]
    assert torch.allclose(guided, unguided(uncond) + 7.5 * (unguided(cond) - unguided(uncond)), atol=1e-4)


@torch.inference_mode()
def test_row_does_not_depend_on_the_length_of_a_neighbours_prompt(checkpoint: LoadedCheckpoint) -> None:
    x, cond = latent(1), context(2)
    alone = checkpoint.denoiser(
        x=[x], sigma=[3.0], conds=[[(cond, 1.0)]], uncond=[None], guidance_scale=[1.0]
    )[0]
    mixed = checkpoint.denoiser(
        x=[latent(5), x, latent(6)],
        sigma=[0.5, 3.0, 11.0],
        conds=[[(context(7, 2), 1.0)], [(cond, 1.0)], [(context(8, 3), 1.0)]],
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
    (denoised,) = wrapped(
        x=[x], sigma=[2.0], conds=[[(context(2), 1.0)]], uncond=[None], guidance_scale=[1.0]
    )
    assert torch.allclose(seen["x"][0], x / 5**0.5)
    assert torch.allclose(denoised, x - 2.0)
    assert seen["t"].dtype is torch.float32
    assert seen["t"].item() % 1 != 0


@torch.inference_mode()
def test_joined_conds_add_what_each_changes(checkpoint: LoadedCheckpoint) -> None:
    x, a, b, uncond = latent(1), context(2), context(3, 2), context(4)

    def estimate(*conds: tuple[Cond, float], uncond: Cond | None = None) -> torch.Tensor:
        scale = 1.0 if uncond is None else 5.0
        return checkpoint.denoiser(
            x=[x], sigma=[3.0], conds=[conds], uncond=[uncond], guidance_scale=[scale]
        )[0]

    base = estimate((uncond, 1.0))
    changes = 1.5 * (estimate((a, 1.0)) - base) - 0.5 * (estimate((b, 1.0)) - base)
    assert torch.allclose(estimate((a, 1.5), (b, -0.5), uncond=uncond), base + 5 * changes, atol=1e-4)
    # Where the weights sum to 1, an unguided row needs no uncond.
    assert torch.allclose(estimate((a, 1.5), (b, -0.5)), base + changes, atol=1e-4)


@torch.inference_mode()
def test_row_does_not_depend_on_how_many_conds_a_neighbour_has(checkpoint: LoadedCheckpoint) -> None:
    x, cond, uncond = latent(1), context(2), context(3)
    alone = checkpoint.denoiser(
        x=[x], sigma=[3.0], conds=[[(cond, 1.0)]], uncond=[uncond], guidance_scale=[7.0]
    )[0]
    joined = [(context(seed), 0.5) for seed in (7, 8, 9)]
    mixed = checkpoint.denoiser(
        x=[latent(5), x, latent(6)],
        sigma=[0.5, 3.0, 11.0],
        conds=[joined, [(cond, 1.0)], joined[:2]],
        uncond=[context(10), uncond, None],
        guidance_scale=[4.0, 7.0, 1.0],
    )[1]
    assert (alone - mixed).abs().max() <= 1e-5 * alone.abs().max()  # guidance 7 enlarges rounding 13 times


@torch.inference_mode()
def test_both_answers_the_estimates_with_and_without_guidance(checkpoint: LoadedCheckpoint) -> None:
    x, cond, uncond = latent(1), context(2), context(3)
    guided, unguided = (
        checkpoint.denoiser(x=[x], sigma=[3.0], conds=[[(c, 1.0)]], uncond=[u], guidance_scale=[scale])[0]
        for c, u, scale in ((cond, uncond, 0.6), (uncond, None, 1.0))
    )
    neighbour, pair = checkpoint.denoiser(
        x=[latent(5), x],
        sigma=[0.5, 3.0],
        conds=[[(context(7), 1.0)], [(cond, 1.0)]],
        uncond=[context(9), uncond],
        guidance_scale=[4.0, 0.6],
        both=[False, True],
    )
    assert neighbour.shape == x.shape
    assert torch.allclose(pair, torch.stack([guided, unguided]), atol=1e-4)
