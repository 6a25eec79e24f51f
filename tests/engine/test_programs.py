"""Programs, stepped by hand: what a job's prompts make its operations be."""

from typing import Any

import pytest
import torch

from engine.checkpoint import LoadedCheckpoint
from engine.conditioning import Cond
from engine.noise import Noise
from engine.ops import Decode, Encode, Evaluate
from engine.prepared import Prepared
from engine.programs import txt2img
from engine.protocol import InvalidJob
from engine.registry import Registry
from tests.jobs import make_job

Asked = list[tuple[list[tuple[str, float]], str | None]]
"""For every evaluation, the texts and weights of its conds, and its uncond's text."""


def asked(checkpoint: LoadedCheckpoint, **changes: Any) -> tuple[Encode, Asked]:
    """What a job asks for; texts are told apart by what their conditionings are made to be."""
    job = make_job(**changes)
    program = txt2img(job, Prepared.of(job, Registry(checkpoint)))
    encode = next(program)
    assert isinstance(encode, Encode)
    conditionings = [Cond(torch.full((77, 32), float(i))) for i in range(len(encode.prompts))]

    def text(conditioning: Cond) -> str:
        return "".join(run or "" for run, _ in encode.prompts[int(conditioning.context[0, 0])])

    seen: Asked = []
    operation = program.send(conditionings)
    while isinstance(operation, Evaluate):
        conds = [(text(cond), weight) for cond, weight in operation.conds]
        seen.append((conds, None if operation.uncond is None else text(operation.uncond)))
        operation = program.send(torch.zeros(operation.x.shape))
    return encode, seen


def test_all_texts_are_encoded_at_once_and_each_evaluation_has_its_own(checkpoint: LoadedCheckpoint) -> None:
    encode, seen = asked(checkpoint, prompt="[a:b:2]", negative_prompt="[x|y]", steps=5)
    assert [prompt[0][0] for prompt in encode.prompts] == ["a", "b", "x", "y"]
    assert [conds[0][0] for conds, _ in seen] == ["a", "a", "a", "b", "b"]
    assert [uncond for _, uncond in seen] == ["x", "x", "y", "x", "y"]


def test_schedules_count_the_evaluations_of_samplers_that_make_two_a_step(
    checkpoint: LoadedCheckpoint,
) -> None:
    _, seen = asked(checkpoint, prompt="[a:b:4] [c:d:0.5]", steps=4, sampler="Heun")
    assert [conds[0][0] for conds, _ in seen] == ["a c"] * 5 + ["b d"] * 2


def test_parts_joined_by_and_are_conds_with_weights(checkpoint: LoadedCheckpoint) -> None:
    _, seen = asked(checkpoint, prompt="a :0.3 AND b", negative_prompt="x AND y", steps=1)
    assert seen == [([("a", 0.3), ("b", 1.0)], "x AND y")]


@pytest.mark.parametrize(
    ("prompt", "guidance_scale", "uncond"),
    [("a", 1.0, None), ("a", 2.0, "x"), ("a :0.5", 2.0, None), ("a AND b", 1.0, "x"), ("a :2", 1.0, "x")],
)
def test_uncond_is_left_out_only_where_it_cancels_out(
    checkpoint: LoadedCheckpoint, prompt: str, guidance_scale: float, uncond: str | None
) -> None:
    _, seen = asked(checkpoint, prompt=prompt, negative_prompt="x", guidance_scale=guidance_scale, steps=1)
    assert seen[0][1] == uncond


def test_emphasis_is_read_as_the_job_says(checkpoint: LoadedCheckpoint) -> None:
    prompts = {}
    for mode, keeps_mean in {"Original": True, "No norm": False, "Ignore": True, "None": True}.items():
        encode, _ = asked(checkpoint, prompt="(a:1.5)", emphasis=mode, steps=1)
        assert encode.keep_mean is keeps_mean
        prompts[mode] = encode.prompts[0]
    assert prompts["Original"] == prompts["No norm"] == (("a", 1.5),)
    assert (prompts["Ignore"], prompts["None"]) == ((("a", 1.0),), (("(a:1.5)", 1.0),))


def test_old_scheduling_is_the_jobs_choice(checkpoint: LoadedCheckpoint) -> None:
    _, seen = asked(checkpoint, prompt="[a:b:2.0]", old_scheduling=True, steps=4)
    assert [conds[0][0] for conds, _ in seen] == ["a", "a", "a", "b"]


@torch.inference_mode()
def test_noise_is_drawn_while_the_model_runs_and_none_for_nobody(
    checkpoint: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, ...]] = []
    draw = Noise.step

    def watched(noise: Noise, *step: float) -> torch.Tensor:
        drawn.append(step)
        return draw(noise, *step)

    monkeypatch.setattr(Noise, "step", watched)
    job = make_job(sampler="Euler a", steps=4)
    program = txt2img(job, Prepared.of(job, Registry(checkpoint)))
    operation = next(program)
    counts = []
    while not isinstance(operation, Decode):
        (result,) = operation.run([operation])
        counts.append(len(drawn))
        operation = program.send(result)
        assert len(drawn) == counts[-1]
    assert counts == [0, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a " * 1201}, "prompt: 17 chunks"),
        ({"negative_prompt": "a " * 1201}, "negative_prompt: 17 chunks"),
        ({"negative_prompt": "(" * 33}, "negative_prompt: brackets"),
        ({"prompt": "a" * 4001}, "prompt: 4001 characters"),
        ({"emphasis": "Fancy"}, "emphasis 'Fancy'"),
    ],
)
def test_prompts_beyond_the_limits_are_refused_at_the_first_step(
    checkpoint: LoadedCheckpoint, changes: dict[str, Any], message: str
) -> None:
    job = make_job(**changes)
    program = txt2img(job, Prepared.of(job, Registry(checkpoint)))
    with pytest.raises(InvalidJob) as caught:
        next(program)
    assert caught.value.message.startswith(message)
