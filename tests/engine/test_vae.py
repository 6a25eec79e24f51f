"""A VAE of its own file in place of the checkpoint's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoint import LoadedCheckpoint, assemble
from engine.engine import Engine
from engine.families.family import Kind
from engine.prepared import Prepared
from engine.protocol import InvalidJob, JobFailed
from engine.registry import Registry
from engine.vae import VaeStore
from engine.worker import Worker
from tests.drawing import begun_with, drawn, enlarged
from tests.jobs import make_job
from tests.pictures import scene
from tests.tiny import FAMILIES, SIZES, tiny_modules
from tools.ldm_layout import ldm_vae

CPU = torch.device("cpu")


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, tensor in state.items():
        for new, old in names.items():
            name = name.replace(new, old)
        renamed[name] = tensor
    return renamed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same VAE in the layouts that files have, and what is none."""
    folder = tmp_path_factory.mktemp("vae")
    state = tiny_modules(seed=5)[1].state_dict()
    original = ldm_vae(state)
    layouts = {
        "original": original,
        "whole": {f"first_stage_model.{name}": tensor for name, tensor in original.items()},
        "diffusers": dict(state),
        "old diffusers": old_names(state),
        "xl": {name: tensor[:1] for name, tensor in original.items()},
    }
    for name, tensors in layouts.items():
        save_file({key: t.contiguous() for key, t in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "bad.safetensors").write_bytes(b"pickle")
    return folder


@pytest.fixture(scope="module")
def own() -> LoadedCheckpoint:
    return assemble(*tiny_modules(), device=CPU, dtype=torch.float32, kind=tiny_kind())


def tiny_kind() -> Kind:
    return Kind(family=FAMILIES["sd1"], sizes=json.dumps(SIZES["sd1"]))


@pytest.fixture(scope="module")
def registry(own: LoadedCheckpoint, folder: Path) -> Registry:
    return Registry(own, "demo", None, VaeStore(folder, own, max_bytes=2**30))


@pytest.mark.parametrize("name", ["original", "whole.safetensors", "diffusers", "old diffusers"])
@pytest.mark.parametrize("begun", [False, True])
def test_every_layout_decodes_and_encodes_as_its_vae_in_the_checkpoint_would(
    own: LoadedCheckpoint, registry: Registry, name: str, begun: bool
) -> None:
    job = make_job(init=begun_with(scene(64, 64)) if begun else None)
    unet, _, text_encoder = tiny_modules()
    inside = assemble(unet, tiny_modules(seed=5)[1], text_encoder, device=CPU, dtype=torch.float32)
    (expected,), _ = drawn(inside, job)
    (picture,), _ = drawn(own, replace(job, vae=name), registry=registry)
    assert np.array_equal(picture, expected)


def test_all_passes_have_it(own: LoadedCheckpoint, registry: Registry) -> None:
    job = make_job(vae="original", hires=enlarged(96, 96, upscaler="Lanczos"))
    prepared = Prepared.of(job, registry)
    decoders = {id(model.checkpoint.decoder) for model in prepared.models()}
    assert len(decoders) == 1
    assert id(own.decoder) not in decoders


def test_strangers_with_the_same_one_share_its_calls(own: LoadedCheckpoint, registry: Registry) -> None:
    jobs = [make_job(id=str(i), seed=i, vae=vae) for i, vae in enumerate(("original", "original", "", ""))]
    pictures, steps = drawn(own, *jobs, registry=registry)
    assert [step.jobs for step in steps if step.operation == "decode"] == [2, 2]
    assert not np.array_equal(pictures[1], drawn(own, make_job(seed=1))[0][0])


def test_an_unknown_name_is_a_warning_and_the_checkpoints_own_is_used(registry: Registry) -> None:
    prepared = Prepared.of(make_job(vae="nobody"), registry)
    assert prepared.warnings == ("override_settings.sd_vae: there is no VAE 'nobody'",)
    assert prepared.first[0].checkpoint is registry.own


@pytest.mark.parametrize(("name", "error"), [("xl", InvalidJob), ("bad", JobFailed)])
def test_a_file_that_cannot_be_used_is_named_without_its_path(
    registry: Registry, folder: Path, name: str, error: type[InvalidJob | JobFailed]
) -> None:
    with pytest.raises(error, match=f"override_settings.sd_vae: '{name}'") as caught:
        Prepared.of(make_job(vae=name), registry)
    assert str(folder) not in caught.value.message


async def test_the_result_and_the_infotext_name_it(own: LoadedCheckpoint, registry: Registry) -> None:
    worker = Worker(Engine(own), registry)
    worker.start()
    try:
        result = await worker.run(make_job(vae="original", infotext="a\nSteps: 4, Version: v1.7.0"))
    finally:
        await worker.stop()
    assert result.vae == "original.safetensors"
    assert len(result.vae_hash) == 10
    assert result.infotext == (
        f"a\nSteps: 4, VAE hash: {result.vae_hash}, VAE: original.safetensors, Version: v1.7.0"
    )
