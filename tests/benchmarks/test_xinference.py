"""What Xinference is given: requests in its words, and the checkpoint as a folder."""

import json
import random
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from benchmarks.baselines.pipeline import SCHEDULERS, Pipeline, settings_of
from benchmarks.baselines.xinference import MODEL, export, translated, version
from benchmarks.models import stand_in
from benchmarks.workloads import SAMPLERS, WORKLOADS, request

ITS_SAMPLERS = {"default", "Euler", "Euler a", "Heun", "DPM++ 2M Karras", "DPM++ 2M SDE Karras"}


def test_requests_keep_all_but_the_name_of_a_sampler_that_it_lacks() -> None:
    for sampler in SAMPLERS:
        body = request(random.Random(0), 64, sampler_name=sampler).body
        its = translated(body)
        assert its["sampler_name"] in ITS_SAMPLERS
        assert its == {**body, "model": MODEL, "sampler_name": its["sampler_name"]}


def test_only_ddim_is_the_folders_sampler() -> None:
    defaults = {name for name in SAMPLERS if translated({"sampler_name": name})["sampler_name"] == "default"}
    assert defaults == {"DDIM"}


def test_its_versions_are_told() -> None:
    assert version() == "4.1.0 with its own diffusers 0.39.0 and transformers 5.17.0"


def test_it_meets_no_workload_of_several_checkpoints_of_loras_or_of_two_replicas() -> None:
    its = {site for site in {each.site for each in WORKLOADS.values()} if "xinference" in site.systems}
    assert {(site.several, site.loras, site.replicas) for site in its} == {(False, False, 1)}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of diffusers
def test_the_folder_draws_the_files_picture_and_has_its_samplers_settings(tmp_path: Path) -> None:
    model, folder = stand_in(tmp_path), tmp_path / "folder"
    export(model.path, folder)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert isinstance(pipeline.scheduler, diffusers.DDIMScheduler)
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    body = request(random.Random(0), model.size, steps=4).body
    (its,) = pipeline(
        body["prompt"],
        negative_prompt=body["negative_prompt"],
        num_inference_steps=4,
        guidance_scale=body["cfg_scale"],
        width=model.size,
        height=model.size,
        generator=torch.Generator().manual_seed(body["seed"]),
    ).images
    (ours,) = Pipeline(model.path, threads=1).draw(settings_of(body), [body])
    assert np.array_equal(np.asarray(its), np.asarray(ours))

    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    for name in set(SAMPLERS) - {"DDIM"}:
        other = SCHEDULERS[name]()
        same = type(other).from_config(
            config, use_karras_sigmas="Karras" in name, algorithm_type=other.config.get("algorithm_type")
        )
        other.set_timesteps(20)
        same.set_timesteps(20)
        assert torch.equal(same.sigmas, other.sigmas), name
