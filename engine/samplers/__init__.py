"""The samplers by canonical name, in the original's order."""

from collections.abc import Mapping
from types import MappingProxyType

from engine.samplers import (
    ancestral,
    dpm_solver,
    karras,
    multistep,
    restart,
    sde,
    timesteps,
    unipc,
)
from engine.samplers.sampler import Evaluations, Sampler, Settings, StepNoise, twice_a_step
from engine.schedules import LCM_STEPS, ddim_walk, ends, lcm_walk, unipc_walk

__all__ = ["SAMPLERS", "Evaluations", "Sampler", "Settings", "StepNoise"]

CFGPP_GUIDANCE = 1 / 12.5
"""CFG++ guides by 0 to 1 where others do by 1 to 12.5."""

_ALL = (
    Sampler(name="DPM++ 2M", run=multistep.dpmpp_2m),
    Sampler(name="DPM++ SDE", run=sde.dpmpp_sde, evaluations=twice_a_step, brownian=True, second_order=True),
    Sampler(name="DPM++ 2M SDE", run=sde.dpmpp_2m_sde, brownian=True),
    Sampler(name="DPM++ 2M SDE Heun", run=sde.dpmpp_2m_sde_heun, brownian=True),
    Sampler(name="DPM++ 2S a", run=ancestral.dpmpp_2s_ancestral, evaluations=twice_a_step, second_order=True),
    Sampler(name="DPM++ 3M SDE", run=sde.dpmpp_3m_sde, brownian=True, discards_next_to_last=True),
    Sampler(name="Euler a", run=ancestral.euler_ancestral),
    Sampler(name="Euler", run=karras.euler),
    Sampler(name="LMS", run=multistep.lms),
    Sampler(name="Heun", run=karras.heun, evaluations=twice_a_step, second_order=True),
    Sampler(
        name="DPM2",
        run=karras.dpm_2,
        evaluations=twice_a_step,
        discards_next_to_last=True,
        second_order=True,
    ),
    Sampler(
        name="DPM2 a",
        run=ancestral.dpm_2_ancestral,
        evaluations=twice_a_step,
        discards_next_to_last=True,
        second_order=True,
    ),
    Sampler(name="DPM fast", run=dpm_solver.dpm_fast, schedule=ends),
    Sampler(
        name="DPM adaptive",
        run=dpm_solver.dpm_adaptive,
        evaluations=dpm_solver.adaptive_evaluations,
        schedule=ends,
        adaptive=True,
    ),
    Sampler(name="Restart", run=restart.restart, evaluations=restart.evaluations, second_order=True),
    Sampler(name="DDIM", run=timesteps.ddim, schedule=ddim_walk, unit_variance=True),
    Sampler(
        name="DDIM CFG++",
        run=timesteps.ddim_cfgpp,
        schedule=ddim_walk,
        unit_variance=True,
        needs_uncond=True,
        guidance_factor=CFGPP_GUIDANCE,
    ),
    Sampler(
        name="PLMS",
        run=timesteps.plms,
        evaluations=timesteps.plms_evaluations,
        schedule=ddim_walk,
        unit_variance=True,
    ),
    Sampler(name="UniPC", run=unipc.unipc, schedule=unipc_walk, unit_variance=True),
    Sampler(name="LCM", run=timesteps.lcm, schedule=lcm_walk, max_steps=LCM_STEPS),
)

SAMPLERS: Mapping[str, Sampler] = MappingProxyType({sampler.name: sampler for sampler in _ALL})
