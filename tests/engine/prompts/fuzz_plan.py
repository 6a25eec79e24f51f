"""Many prompts made of the grammar's own pieces: `make fuzz`. Not collected by a plain test run."""

import math

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.prompts import Timeline, parse, parse_negative
from engine.protocol import EMPHASIS, MAX_PROMPT_CHARS, InvalidJob

PIECES = (
    *("(", ")", "[", "]", ":", "|", "\\", "<", ">", " ", "\n", ",", "=", ".", "-", "+", "#"),
    *("a", "cat", "é", "猫", "\x00", "1", "0.5", ".5", "1e9", "-3", "99999", "٣", "nan", "inf"),
    *("BREAK", "AND", " AND ", "BREAKS", "[a:b:3]", "[a|b]", "(a:1.2)", "<lora:x:1>", "<lora:x:te=.5>"),
)

prompts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=400).map("".join)
timelines = st.builds(Timeline, steps=st.integers(1, 60), before=st.integers(0, 60), old=st.booleans())


@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(prompts, timelines, st.sampled_from(EMPHASIS), st.booleans())
def test_every_prompt_is_a_sound_plan_or_refused(
    text: str, timeline: Timeline, emphasis: str, negative: bool
) -> None:
    refused = ""
    try:
        plan = (parse_negative if negative else parse)(text, timeline, emphasis=emphasis)
    except InvalidJob as error:
        refused = error.message
    if refused:
        assert refused.startswith("negative_prompt: " if negative else "prompt: ")
        return
    assert len(text) <= MAX_PROMPT_CHARS
    assert len(plan.parts) == 1 or not negative
    for part in plan.parts:
        lasts = [last for last, _ in part.spans]
        assert lasts == sorted(set(lasts))
        assert lasts[0] >= 1
        assert lasts[-1] == timeline.steps
        assert math.isfinite(part.weight)
        for _, prompt in part.spans:
            assert prompt
            assert all(abs(weight) <= 1000 for _, weight in prompt)
    assert all(math.isfinite(n.te) and math.isfinite(n.unet) and n.name is not None for n in plan.networks)
