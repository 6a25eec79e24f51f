"""Prompts to conditionings: CLIP's tokens, 75-token chunks, emphasis that keeps the mean, a cache."""

from collections.abc import Sequence

import pytest
import torch

from engine.checkpoint import LoadedCheckpoint
from engine.conditioning import CHUNK, Conditioner, Vector, chunked
from engine.embeddings import Vocabulary
from engine.prompts import parse_emphasis
from engine.protocol import InvalidJob
from engine.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer()


def lengths(text: str) -> list[int]:
    return [len(chunk.tokens) for chunk in chunked(parse_emphasis(text), TOKENIZER, Vocabulary([]))]


def test_tokenizer_is_clips() -> None:
    ids = TOKENIZER.encode("a photo of an astronaut riding a horse", add_special_tokens=False)
    assert ids == [320, 1125, 539, 550, 18376, 6765, 320, 4558]
    assert (len(TOKENIZER), TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (49408, 49406, 49407)


def test_prompt_of_75_tokens_is_one_chunk_and_76_are_two() -> None:
    assert lengths("a " * 75) == [75]
    assert lengths("a " * 76) == [75, 1]
    assert lengths("") == [0]


def test_break_closes_a_chunk() -> None:
    assert lengths("a a BREAK a") == [2, 1]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (70, 10, [71, 10]),  # a comma 4 tokens before the end: what follows it moves along
        (55, 30, [56, 30]),  # 20 tokens before the overflowing one
        (54, 30, [75, 10]),  # 21: too far back
    ],
)
def test_chunk_breaks_behind_a_near_comma(before: int, after: int, expected: list[int]) -> None:
    assert lengths("a " * before + "," + " a" * after) == expected


def test_chunks_are_padded_with_the_end_token(checkpoint: LoadedCheckpoint) -> None:
    encoder = RecordingEncoder()
    conditioner = Conditioner([encoder], TOKENIZER, torch.device("cpu"))
    (conditioning,) = conditioner([parse_emphasis("a " * 76)], 1)
    assert conditioning.context.shape == (2 * 77, 3)
    (tokens,) = encoder.calls
    assert tokens.shape == (2, 77)
    assert tokens[:, 0].tolist() == [49406, 49406]
    assert tokens[1, 1:].tolist() == [320] + [49407] * (CHUNK)


class RecordingEncoder:
    """hidden = (token id mod 7) + 1 in every channel."""

    width = 3

    def __init__(self) -> None:
        self.calls: list[torch.Tensor] = []

    def encode(
        self, tokens: torch.Tensor, clip_skip: int, vectors: Sequence[Vector]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        self.calls.append(tokens)
        return (tokens % 7 + 1).float()[:, :, None].expand(-1, -1, 3) * clip_skip, None


def test_emphasis_multiplies_its_tokens_and_keeps_the_mean() -> None:
    conditioner = Conditioner([RecordingEncoder()], TOKENIZER, torch.device("cpu"))
    plain, weighted = (
        cond.context for cond in conditioner([parse_emphasis("a cat"), parse_emphasis("a (cat:1.5)")], 1)
    )
    assert weighted.mean().item() == pytest.approx(plain.mean().item(), rel=1e-5)
    ratio = weighted / plain
    assert ratio[2, 0].item() / ratio[1, 0].item() == pytest.approx(1.5, rel=1e-5)
    assert torch.allclose(ratio[3:], ratio[0])


def test_each_prompt_keeps_its_own_mean() -> None:
    """Encoded together or alone: the neighbour's weights do not leak."""
    prompts = [parse_emphasis("(a:3)"), parse_emphasis("b"), parse_emphasis("(c:0.2) d")]
    together = Conditioner([RecordingEncoder()], TOKENIZER, torch.device("cpu"))(prompts, 1)
    for prompt, expected in zip(prompts, together, strict=True):
        alone = Conditioner([RecordingEncoder()], TOKENIZER, torch.device("cpu"))
        assert torch.equal(alone([prompt], 1)[0].context, expected.context)


def test_repeated_prompts_are_encoded_once_and_cached_per_clip_skip() -> None:
    encoder = RecordingEncoder()
    conditioner = Conditioner([encoder], TOKENIZER, torch.device("cpu"), cache_size=2)
    conditioner([parse_emphasis("a"), parse_emphasis("a"), parse_emphasis("b")], 1)
    assert [len(call) for call in encoder.calls] == [2]
    conditioner([parse_emphasis("b")], 1)
    assert len(encoder.calls) == 1
    conditioner([parse_emphasis("b")], 2)
    assert len(encoder.calls) == 2
    conditioner([parse_emphasis("a")], 1)  # the oldest of three: evicted
    assert len(encoder.calls) == 3


def test_clip_skip_takes_an_earlier_layer(checkpoint: LoadedCheckpoint) -> None:
    last, earlier, deepest, beyond = (
        checkpoint.conditioner([parse_emphasis("a cat")], n)[0].context for n in (1, 2, 3, 12)
    )
    assert not torch.allclose(last, earlier)
    assert torch.equal(deepest, beyond)


def test_without_keeping_the_mean_emphasis_only_multiplies() -> None:
    conditioner = Conditioner([RecordingEncoder()], TOKENIZER, torch.device("cpu"))
    plain = conditioner([parse_emphasis("a cat")], 1)[0].context
    weighted = conditioner([parse_emphasis("a (cat:1.5)")], 1, keep_mean=False)[0].context
    assert torch.equal(weighted[2], plain[2] * 1.5)
    assert torch.equal(weighted[[0, 1, *range(3, 77)]], plain[[0, 1, *range(3, 77)]])
    kept = conditioner([parse_emphasis("a (cat:1.5)")], 1)[0].context
    assert not torch.allclose(kept, weighted)


def test_prompts_of_too_many_chunks_are_refused_by_field() -> None:
    conditioner = Conditioner([RecordingEncoder()], TOKENIZER, torch.device("cpu"))
    longest = parse_emphasis("a " * 75 * 16)
    conditioner.check([parse_emphasis("a"), longest], "prompt")
    with pytest.raises(InvalidJob, match=r"^hr_prompt: 17 chunks of 75 tokens; allowed are up to 16$"):
        conditioner.check([parse_emphasis("a " * (75 * 16 + 1))], "hr_prompt")
    with pytest.raises(InvalidJob, match="18 chunks"):
        conditioner.check([parse_emphasis("BREAK " * 17)], "prompt")
