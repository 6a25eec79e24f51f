"""The published formulas of every sampler, as plain loops in float64, in the papers' own variables.

Written for comparison, not for speed or for float32: nothing here is shared with the engine. UniPC's is
diffusers' implementation. `benchmarks/fidelity.py` also compares with k-diffusion's code.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import diffusers
import numpy as np
import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Drawn = Callable[[], Tensor]

MEAN, VARIANCE = 0.7, 0.25


def mixture(x: Tensor, sigma: float) -> Tensor:
    """The exact denoiser of data that is N(μ, s²) or N(−μ, s²): bent, and nowhere trivial."""
    total = VARIANCE + sigma**2
    up, down = ((VARIANCE * x + sigma**2 * mean) / total for mean in (MEAN, -MEAN))
    share = torch.sigmoid(2 * MEAN * x / total)
    return share * up + (1 - share) * down


def unconditional(x: Tensor, sigma: float) -> Tensor:
    """Another exact denoiser, of N(0, 1)."""
    return x / (1 + sigma**2)


@dataclass(frozen=True)
class Run:
    """What an oracle is given. `drawn` repeats the noise that the engine's sampler drew, in its order."""

    x: Tensor
    sigmas: Sequence[float]
    drawn: Drawn
    eta: float

    def slope(self, x: Tensor, sigma: float) -> Tensor:
        return (x - mixture(x, sigma)) / sigma

    def renoised(self, x: Tensor, up: float) -> Tensor:
        return x + up * self.drawn() if up > 0 else x


Oracle = Callable[[Run], Tensor]


def ancestral(a: float, b: float, eta: float) -> tuple[float, float]:
    up = min(b, eta * (b**2 * (a**2 - b**2) / a**2) ** 0.5)
    return (b**2 - up**2) ** 0.5, up


def euler(run: Run) -> Tensor:
    x = run.x
    for a, b in pairwise(run.sigmas):
        x = x + (b - a) * run.slope(x, a)
    return x


def heun_steps(run: Run, x: Tensor, levels: Sequence[float]) -> Tensor:
    """Karras et al. 2022, algorithm 1."""
    for t, t_next in pairwise(levels):
        d = run.slope(x, t)
        x_next = x + (t_next - t) * d
        if t_next != 0:
            x_next = x + (t_next - t) * (d / 2 + run.slope(x_next, t_next) / 2)
        x = x_next
    return x


def heun(run: Run) -> Tensor:
    return heun_steps(run, run.x, run.sigmas)


def dpm_2_to(run: Run, x: Tensor, a: float, b: float) -> Tensor:
    d = run.slope(x, a)
    if b == 0:
        return x - a * d
    middle = math.exp((math.log(a) + math.log(b)) / 2)
    return x + (b - a) * run.slope(x + (middle - a) * d, middle)


def dpm_2(run: Run) -> Tensor:
    x = run.x
    for a, b in pairwise(run.sigmas):
        x = dpm_2_to(run, x, a, b)
    return x


def euler_ancestral(run: Run) -> Tensor:
    x = run.x
    for a, b in pairwise(run.sigmas):
        down, up = ancestral(a, b, run.eta)
        x = run.renoised(x + (down - a) * run.slope(x, a), up)
    return x


def dpm_2_ancestral(run: Run) -> Tensor:
    x = run.x
    for a, b in pairwise(run.sigmas):
        down, up = ancestral(a, b, run.eta)
        x = run.renoised(dpm_2_to(run, x, a, down), up)
    return x


def exponential_euler(x: Tensor, denoised: Tensor, a: float, b: float) -> Tensor:
    """DPM-Solver++ of order 1 with α = 1 and λ = −log σ (Lu et al. 2022, equation 7)."""
    h = math.log(a) - math.log(b)
    return b / a * x - (math.exp(-h) - 1) * denoised


def dpmpp_2s_ancestral(run: Run) -> Tensor:
    x = run.x
    for a, b in pairwise(run.sigmas):
        down, up = ancestral(a, b, run.eta)
        x0 = mixture(x, a)
        if down == 0:
            x = x0
            continue
        middle = math.exp((math.log(a) + math.log(down)) / 2)
        x0 = mixture(exponential_euler(x, x0, a, middle), middle)
        x = run.renoised(exponential_euler(x, x0, a, down), up)
    return x


def dpmpp_sde(run: Run) -> Tensor:
    x = run.x
    for a, b in pairwise(run.sigmas):
        x0 = mixture(x, a)
        if b == 0:
            return x0
        middle = math.exp((math.log(a) + math.log(b)) / 2)
        down, up = ancestral(a, middle, run.eta)
        x0 = mixture(run.renoised(exponential_euler(x, x0, a, down), up), middle)
        down, up = ancestral(a, b, run.eta)
        x = run.renoised(exponential_euler(x, x0, a, down), up)
    return x


def dpmpp_2m(run: Run) -> Tensor:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2."""
    x, sigmas, x0 = run.x, run.sigmas, list[Tensor]()
    for i, (a, b) in enumerate(pairwise(sigmas)):
        x0.append(mixture(x, a))
        if b == 0:
            return x0[-1]
        d = x0[-1]
        if i > 0:
            r = math.log(sigmas[i - 1] / a) / math.log(a / b)
            d = (1 + 1 / (2 * r)) * x0[-1] - 1 / (2 * r) * x0[-2]
        x = exponential_euler(x, d, a, b)
    return x


def sde_noise(a: float, b: float, eta: float) -> float:
    return b * math.sqrt(1 - (b / a) ** (2 * eta))


def dpmpp_2m_sde(run: Run, *, heun: bool = False) -> Tensor:
    """SDE-DPM-Solver++(2M), with η-scaled noise; the Heun variant weighs the difference with φ_2."""
    x, sigmas, x0 = run.x, run.sigmas, list[Tensor]()
    for i, (a, b) in enumerate(pairwise(sigmas)):
        x0.append(mixture(x, a))
        if b == 0:
            return x0[-1]
        h = math.log(a / b)
        k = (1 + run.eta) * h
        x = math.exp(-k) * x + (1 - math.exp(-k)) * x0[-1]
        if i > 0:
            r = math.log(sigmas[i - 1] / a) / h
            weight = (math.exp(-k) - 1) / k + 1 if heun else (1 - math.exp(-k)) / 2
            x = x + weight / r * (x0[-1] - x0[-2])
        x = run.renoised(x, sde_noise(a, b, run.eta))
    return x


def dpmpp_3m_sde(run: Run) -> Tensor:
    """The estimate as the polynomial through the last three, integrated against the exponential kernel.

    x_b = e^{−k} x_a + ∫_0^k e^{v−k} x̂0(v) dv, with v = (1 + η)(λ − λ_a) and x̂0 a Lagrange polynomial; the
    quadratic term of an exact integral has weight 2 φ_3 where the published update has φ_3.
    """
    x, sigmas, x0, at = run.x, run.sigmas, list[Tensor](), list[float]()
    for a, b in pairwise(sigmas):
        x0.insert(0, mixture(x, a))
        at.insert(0, -math.log(a))
        if b == 0:
            return x0[0]
        h = -math.log(b) - at[0]
        k = (1 + run.eta) * h
        first = [(p - q) / (s - t) for (p, q), (s, t) in zip(pairwise(x0[:3]), pairwise(at[:3]), strict=True)]
        update = math.exp(-k) * x + (1 - math.exp(-k)) * x0[0]
        phi_2 = (math.exp(-k) - 1 + k) / k
        if len(first) == 1:
            update = update + phi_2 * h * first[0]
        elif first:
            second = (first[0] - first[1]) / (at[0] - at[2])
            derivative = first[0] + (at[0] - at[1]) * second
            phi_3 = (phi_2 - k / 2) / k
            update = update + phi_2 * h * derivative - phi_3 * h**2 * second
        x = run.renoised(update, sde_noise(a, b, run.eta))
    return x


def lms(run: Run) -> Tensor:
    """Adams–Bashforth of order 4 on unequal steps; polynomials integrated by numpy."""
    x, sigmas, slopes = run.x, run.sigmas, list[Tensor]()
    for i, (a, b) in enumerate(pairwise(sigmas)):
        slopes = [run.slope(x, a), *slopes[:3]]
        nodes = [sigmas[i - j] for j in range(len(slopes))]
        for j, slope in enumerate(slopes):
            others = [node for k, node in enumerate(nodes) if k != j]
            basis = np.polynomial.Polynomial.fromroots(others) if others else np.polynomial.Polynomial([1.0])
            integral = (basis / float(basis(nodes[j]))).integ()
            x = x + float(integral(b) - integral(a)) * slope
    return x


def solver_1(run: Run, x: Tensor, t: float, h: float) -> Tensor:
    """DPM-Solver-1: Lu et al. 2022 (DPM-Solver), equation 3.7, with α = 1 and λ = t = −log σ."""
    return x - math.exp(-t - h) * math.expm1(h) * run.slope(x, math.exp(-t))


def solver_2(run: Run, x: Tensor, t: float, h: float, r: float = 0.5) -> Tensor:
    e = run.slope(x, math.exp(-t))
    s = t + r * h
    e_s = run.slope(x - math.exp(-s) * math.expm1(r * h) * e, math.exp(-s))
    end = math.exp(-t - h)
    return x - end * math.expm1(h) * e - end / (2 * r) * math.expm1(h) * (e_s - e)


def solver_3(run: Run, x: Tensor, t: float, h: float) -> Tensor:
    """Algorithm 2 of the same."""
    r1, r2 = 1 / 3, 2 / 3
    e = run.slope(x, math.exp(-t))
    s1, s2 = t + r1 * h, t + r2 * h
    d1 = run.slope(x - math.exp(-s1) * math.expm1(r1 * h) * e, math.exp(-s1)) - e
    u2 = x - math.exp(-s2) * math.expm1(r2 * h) * e
    u2 = u2 - math.exp(-s2) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = run.slope(u2, math.exp(-s2)) - e
    end = math.exp(-t - h)
    return x - end * math.expm1(h) * e - end / r2 * (math.expm1(h) / h - 1) * d2


def solver_down(t: float, t_next: float, end: float, eta: float) -> tuple[float, float]:
    down, _ = ancestral(math.exp(-t), math.exp(-t_next), eta)
    t_down = min(end, -math.log(down))
    return t_down, math.sqrt(max(math.exp(-2 * t_next) - math.exp(-2 * t_down), 0.0)) if eta else 0.0


def dpm_fast(run: Run) -> Tensor:
    x, n = run.x, len(run.sigmas) - 1
    start, end = -math.log(run.sigmas[0]), -math.log(min(s for s in run.sigmas if s > 0))
    m = n // 3 + 1
    orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
    for (t, t_next), order in zip(pairwise(np.linspace(start, end, m + 1).tolist()), orders, strict=True):
        t_down, up = solver_down(t, t_next, end, run.eta)
        x = (solver_1, solver_2, solver_3)[order - 1](run, x, t, t_down - t)
        x = run.renoised(x, up)
    return x


def dpm_adaptive(run: Run) -> Tensor:
    """DPM-Solver-23 with k-diffusion's controller at its defaults."""
    x = previous = run.x
    t, end = -math.log(run.sigmas[0]), -math.log(min(s for s in run.sigmas if s > 0))
    h = 0.05
    while t < end - 1e-5:
        t_next = min(end, t + h)
        t_down, up = solver_down(t, t_next, end, run.eta)
        low = solver_2(run, x, t, t_down - t, r=1 / 3)
        high = solver_3(run, x, t, t_down - t)
        delta = torch.maximum(torch.full_like(x, 0.0078), 0.05 * torch.maximum(low.abs(), previous.abs()))
        error = float(torch.linalg.norm((low - high) / delta)) / x.numel() ** 0.5
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / (1.5 if run.eta else 3)) - 1)
        h *= factor
        if factor >= 0.81:
            previous, x, t = low, run.renoised(high, up), t_next
    return x


def karras_levels(high: float, low: float, count: int) -> list[float]:
    return [
        (high ** (1 / 7) + i / (count - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(count)
    ]


def restart(run: Run) -> Tensor:
    """Xu et al. 2023, algorithm 1, with one interval [0.1, 2]: once from 20 steps on, twice from 36."""
    steps = len(run.sigmas) - 1
    if steps < 20:
        return heun(run)
    inside, times = (9, 1) if steps < 36 else (steps // 4, 2)
    low = min(s for s in run.sigmas if s > 0)
    levels = karras_levels(run.sigmas[0], low, steps - inside * times)
    bottom = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.1))
    top = min(range(len(levels)), key=lambda i: abs(levels[i] - 2))
    x = heun_steps(run, run.x, levels[: bottom + 1])
    for _ in range(times):
        x = run.renoised(x, math.sqrt(levels[top] ** 2 - levels[bottom] ** 2))
        x = heun_steps(run, x, karras_levels(levels[top], levels[bottom], inside + 1))
    return heun_steps(run, x, [*levels[bottom:], 0.0])


def alpha_bar(sigma: float) -> float:
    return 1 / (1 + sigma**2)


def ddim(run: Run, direction: Denoise = mixture) -> Tensor:
    """Song et al. 2021, equations 12 and 16, in their scaling x = √ᾱ x_0 + √(1 − ᾱ) ε.

    With another denoiser for the direction: CFG++ (Chung et al. 2024), algorithm 2.
    """
    x = run.x * math.sqrt(alpha_bar(run.sigmas[0]))
    for s, s_next in pairwise(run.sigmas):
        a, b = alpha_bar(s), alpha_bar(s_next)
        x0 = mixture(x / math.sqrt(a), s)
        epsilon = (x - math.sqrt(a) * direction(x / math.sqrt(a), s)) / math.sqrt(1 - a)
        tau = run.eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = run.renoised(math.sqrt(b) * x0 + math.sqrt(1 - b - tau**2) * epsilon, tau)
    return x


def plms(run: Run) -> Tensor:
    """Liu et al. 2022 (PNDM), equations 9 and 11 to 13, in the same scaling."""

    def epsilon(x: Tensor, s: float) -> Tensor:
        a = alpha_bar(s)
        return (x - math.sqrt(a) * mixture(x / math.sqrt(a), s)) / math.sqrt(1 - a)

    def transfer(x: Tensor, e: Tensor, s: float, s_next: float) -> Tensor:
        a, b = alpha_bar(s), alpha_bar(s_next)
        return math.sqrt(b) * (x - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e

    x, past = run.x * math.sqrt(alpha_bar(run.sigmas[0])), list[Tensor]()
    for s, s_next in pairwise(run.sigmas):
        e = epsilon(x, s)
        match past:
            case []:
                e_mean = (e + epsilon(transfer(x, e, s, s_next), s_next)) / 2
            case [e1]:
                e_mean = (3 * e - e1) / 2
            case [e1, e2]:
                e_mean = (23 * e - 16 * e1 + 5 * e2) / 12
            case [e1, e2, e3]:
                e_mean = (55 * e - 59 * e1 + 37 * e2 - 9 * e3) / 24
        past = [e, *past[:2]]
        x = transfer(x, e_mean, s, s_next)
    return x


def unipc(run: Run) -> Tensor:
    """diffusers' UniPC on these levels."""
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min"
    )
    steps = len(run.sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.arange(steps)
    scheduler.sigmas = torch.tensor(run.sigmas, dtype=torch.float64)
    x = run.x * math.sqrt(alpha_bar(run.sigmas[0]))
    for t, s in enumerate(run.sigmas[:-1]):
        a = alpha_bar(s)
        epsilon = (x - math.sqrt(a) * mixture(x / math.sqrt(a), s)) / math.sqrt(1 - a)
        x = scheduler.step(epsilon, torch.tensor(t), x, return_dict=False)[0]
    return x


def timesteps_of(sigmas: Sequence[float]) -> Iterator[int]:
    """Of Stable Diffusion's training schedule."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    trained = np.sqrt(1 / np.cumprod(1 - betas) - 1)
    return (int(np.abs(trained - sigma).argmin()) for sigma in sigmas)


def lcm(run: Run) -> Tensor:
    """Luo et al. 2023, algorithm 3, with their boundary scaling (σ_data 0.5, timesteps times 10)."""
    x = run.x * math.sqrt(alpha_bar(run.sigmas[0]))
    for t, (s, s_next) in zip(timesteps_of(run.sigmas[:-1]), pairwise(run.sigmas), strict=True):
        c_skip = 0.25 / ((10 * t) ** 2 + 0.25)
        c_out = 10 * t / math.sqrt((10 * t) ** 2 + 0.25)
        x0 = c_out * mixture(x / math.sqrt(alpha_bar(s)), s) + c_skip * x
        b = alpha_bar(s_next)
        x = run.renoised(math.sqrt(b) * x0, math.sqrt(1 - b))
    return x


ORACLES: Mapping[str, Oracle] = {
    "DPM++ 2M": dpmpp_2m,
    "DPM++ SDE": dpmpp_sde,
    "DPM++ 2M SDE": dpmpp_2m_sde,
    "DPM++ 2M SDE Heun": lambda run: dpmpp_2m_sde(run, heun=True),
    "DPM++ 2S a": dpmpp_2s_ancestral,
    "DPM++ 3M SDE": dpmpp_3m_sde,
    "Euler a": euler_ancestral,
    "Euler": euler,
    "LMS": lms,
    "Heun": heun,
    "DPM2": dpm_2,
    "DPM2 a": dpm_2_ancestral,
    "DPM fast": dpm_fast,
    "DPM adaptive": dpm_adaptive,
    "Restart": restart,
    "DDIM": ddim,
    "DDIM CFG++": lambda run: ddim(run, unconditional),
    "PLMS": plms,
    "UniPC": unipc,
    "LCM": lcm,
}
