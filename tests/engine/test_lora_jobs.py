"""Jobs with LoRAs of their own share every call, and draw what merged weights would."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.checkpoint import LoadedCheckpoint, assemble
from engine.engine import Engine
from engine.infotext import completed
from engine.lora.job import MAX_LORAS, JobLoras, job_loras
from engine.lora.store import LoraSettings
from engine.ops import Picture
from engine.protocol import CheckpointError, InvalidJob, LoraError
from engine.worker import Worker
from tests import loras
from tests.drawing import drawn
from tests.jobs import make_job
from tests.tiny import tiny_modules

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def changes() -> dict[str, loras.Changes]:
    unet, _, text_encoder = tiny_modules()
    return {
        "ink": loras.random_changes(unet, text_encoder, seed=1, rank=3),
        "wash": loras.random_changes(unet, text_encoder, seed=2, rank=5, only=(".attn2.", ".conv")),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, loras.Changes]) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    loras.write(folder / "ink.safetensors", loras.kohya(changes["ink"]))
    loras.write(folder / "wash.safetensors", loras.kohya_ldm(changes["wash"], tiny_modules()[0]))
    k = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    xl = {f"{k}.lora_down.weight": torch.ones(4, 2048), f"{k}.lora_up.weight": torch.ones(640, 4)}
    loras.write(folder / "xl.safetensors", xl)
    return folder


def made(settings: LoraSettings) -> LoadedCheckpoint:
    return assemble(*tiny_modules(), device=CPU, dtype=torch.float32, loras=settings)


@pytest.fixture(scope="module")
def having(folder: Path) -> LoadedCheckpoint:
    """The tiny checkpoint, with LoRAs."""
    return made(LoraSettings(folder=folder))


def merged(changes: loras.Changes, unet_weight: float, text_encoder_weight: float) -> LoadedCheckpoint:
    unet, vae, text_encoder = (module.requires_grad_(False) for module in tiny_modules())
    loras.merge(unet, text_encoder, changes, unet_weight, text_encoder_weight)
    return assemble(unet, vae, text_encoder, device=CPU, dtype=torch.float32)


def difference(a: Picture, b: Picture) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_rows_with_two_loras_and_none_share_every_call(
    having: LoadedCheckpoint, checkpoint: LoadedCheckpoint, changes: dict[str, loras.Changes]
) -> None:
    jobs = [
        make_job(id="ink", prompt="a cat <lora:ink:0.8>", steps=3),
        make_job(id="none", prompt="a cat", steps=3),
        make_job(id="wash", prompt="<lora:wash:0:1.2>a cat", steps=3, guidance_scale=1.0),
    ]
    together, steps = drawn(having, *jobs)
    calls = [(s.jobs, s.rows) for s in steps if s.operation == "evaluate"]
    assert calls == [(3, 5)] * 3  # as many as one of them makes alone
    assert sum(s.operation == "encode" for s in steps) == 1

    references = [merged(changes["ink"], 0.8, 0.8), checkpoint, merged(changes["wash"], 1.2, 0.0)]
    for job, picture, reference in zip(jobs, together, references, strict=True):
        plain = dataclasses.replace(job, prompt="a cat")
        assert difference(picture, drawn(having, job)[0][0]) <= 1, job.id
        assert difference(picture, drawn(reference, plain)[0][0]) <= 1, job.id
    assert difference(together[0], together[1]) > 8


@torch.inference_mode()
def test_cond_and_uncond_are_encoded_with_the_lora(
    having: LoadedCheckpoint, changes: dict[str, loras.Changes]
) -> None:
    """Also where the same prompt without it was encoded before."""
    reference = merged(changes["ink"], 1.0, 0.5)
    plain = having.conditioner(PROMPTS, 1)
    weighted = job_loras(make_job(prompt="<lora:ink:0.5:1>"), having.loras).text_encoder
    mixed = having.conditioner([*PROMPTS, *PROMPTS], 1, [weighted, weighted, (), ()])
    for ours, theirs in zip(mixed, [*reference.conditioner(PROMPTS, 1), *plain], strict=True):
        assert torch.allclose(ours.context, theirs.context, atol=1e-5)
    assert not torch.allclose(mixed[0].context, mixed[2].context, atol=1e-2)


PROMPTS = [(("a cat", 1.0),), (("blue " * 80, 1.0),)]


def test_weights_of_one_name_add_up(having: LoadedCheckpoint) -> None:
    twice, _ = drawn(having, make_job(prompt="a <lora:ink:0.3><lyco:ink:0.4:0.2>", steps=2))
    once, _ = drawn(having, make_job(prompt="a <lora:ink:0.7:0.5>", steps=2))
    assert difference(twice[0], once[0]) <= 1


def test_every_part_of_an_and_has_the_lora(
    having: LoadedCheckpoint, changes: dict[str, loras.Changes]
) -> None:
    """Its model rows are not next to each other: a neighbour without LoRAs has some between."""
    text = "a cat AND a dog :0.5"
    both = make_job(prompt=f"{text} <lora:ink:0.6>", steps=2), make_job(id="none", prompt=text, steps=2)
    reference = merged(changes["ink"], 0.6, 0.6)
    together, steps = drawn(having, *both)
    assert {s.rows for s in steps if s.operation == "evaluate"} == {6}
    expected = [drawn(reference, both[1])[0][0], drawn(having, both[1])[0][0]]
    assert [difference(a, b) <= 1 for a, b in zip(together, expected, strict=True)] == [True, True]
    assert difference(*expected) > 8


def test_file_of_another_family_fails_its_own_job_only(having: LoadedCheckpoint) -> None:
    engine = Engine(having)
    engine.add(make_job(id="good", prompt="a <lora:ink:1>"))
    with pytest.raises(LoraError, match=r"'xl' does not fit .*attn2.to_k is 32×32 here and 640×2048"):
        engine.add(make_job(id="bad", prompt="a <lora:xl:1>"))
    done = []
    while len(engine):
        done += engine.step()
    assert [isinstance(d.outcome, np.ndarray) for d in done] == [True]


def test_row_keeps_its_loras_though_the_store_is_full(having: LoadedCheckpoint, folder: Path) -> None:
    both = job_loras(make_job(prompt="<lora:ink:1><lora:wash:1>"), having.loras).unet
    full = made(LoraSettings(folder=folder, max_bytes=max(lora.bytes for lora, _ in both)))
    jobs = [make_job(prompt=f"a <lora:{name}:1>", steps=2) for name in ("ink", "wash", "ink")]
    for picture, expected in zip(drawn(full, *jobs)[0], drawn(having, *jobs)[0], strict=True):
        assert difference(picture, expected) <= 1


def test_unknown_name_is_a_warning_and_else_as_if_not_there(having: LoadedCheckpoint, folder: Path) -> None:
    job = make_job(prompt="a cat <lora:nobody:1>", steps=2)
    found = job_loras(job, having.loras)
    assert found == JobLoras(warnings=("prompt: there is no LoRA 'nobody'.",))
    plain = dataclasses.replace(job, prompt="a cat")
    assert difference(drawn(having, job)[0][0], drawn(having, plain)[0][0]) == 0
    with pytest.raises(LoraError, match="there is no LoRA 'nobody'"):
        job_loras(job, made(LoraSettings(folder=folder, strict=True)).loras)


def test_the_nearest_name_is_told(having: LoadedCheckpoint) -> None:
    (warning,) = job_loras(make_job(prompt="a cat <lora:inq:1>"), having.loras).warnings
    assert warning == "prompt: there is no LoRA 'inq'. Nearest: ink."


def test_disabled_extra_networks_are_neither_applied_nor_text(having: LoadedCheckpoint) -> None:
    tagged = make_job(prompt="a cat <lora:ink:1><lora:xl:1>", extra_networks=False, steps=2)
    plain = make_job(prompt="a cat", steps=2)
    assert difference(drawn(having, tagged)[0][0], drawn(having, plain)[0][0]) == 0


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("<hypernet:x:1>", "hypernet networks are not available"),
        ("<lora:ink:1:1:2>", "dyn"),
        ("".join(f"<lora:{i}:1>" for i in range(MAX_LORAS + 1)), "17 LoRAs; allowed are up to 16"),
    ],
)
def test_what_cannot_be_applied_is_refused(having: LoadedCheckpoint, prompt: str, reason: str) -> None:
    with pytest.raises(InvalidJob, match=reason):
        Engine(having).add(make_job(prompt=prompt))


def test_missing_folder_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder nowhere") as caught:
        made(LoraSettings(folder=tmp_path / "nowhere"))
    assert str(tmp_path) not in str(caught.value)


async def test_result_tells_hashes_and_warnings(having: LoadedCheckpoint, folder: Path) -> None:
    worker = Worker(Engine(having))
    worker.start()
    prompt = "a <lora:ink:1><lora:nobody:1><lora:wash:0.5>"
    result = await worker.run(make_job(prompt=prompt, infotext=f"{prompt}\nSteps: 4, Version: v1.7.0"))
    with pytest.raises(LoraError, match="does not fit"):
        await worker.run(make_job(prompt="<lora:xl:1>"))
    await worker.stop()
    ink, wash = (
        hashlib.sha256(loras.content(folder / f"{name}.safetensors")).hexdigest()[:12]
        for name in ("ink", "wash")
    )
    assert result.lora_hashes == f"ink: {ink}, wash: {wash}"
    assert result.warnings == ("prompt: there is no LoRA 'nobody'.",)
    last = f'Steps: 4, Lora hashes: "ink: {ink}, wash: {wash}", Version: v1.7.0'
    assert result.infotext == f"{prompt}\n{last}"
    assert last.encode() in result.image


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nSteps: 4, Version: v1", 'a\nSteps: 4, Lora hashes: "x: 1", Version: v1'),
        ("a, Version: 2\nSteps: 4", 'a, Version: 2\nSteps: 4, Lora hashes: "x: 1"'),
    ],
)
def test_hashes_stand_before_the_version(text: str, expected: str) -> None:
    assert completed(text, {"Lora hashes": "x: 1"}) == expected
    assert completed(text, {"Lora hashes": ""}) == text
