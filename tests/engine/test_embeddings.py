"""Embeddings: read in every layout, refused with a reason, found by name, put into the text encoder."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint import LoadedCheckpoint, assemble
from engine.conditioning import Conditioner, Vector, chunked
from engine.embeddings import Embeddings, Vocabulary, load_embeddings
from engine.prompts import parse_emphasis
from engine.protocol import CheckpointError
from engine.tokenizer import load_tokenizer
from tests.tiny import TINY_TEXT, tiny_modules

TOKENIZER = load_tokenizer()
WIDTH: int = TINY_TEXT["hidden_size"]


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def vocabulary(**named: Tensor) -> Vocabulary:
    return Vocabulary((TOKENIZER.encode(name, add_special_tokens=False), v) for name, v in named.items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, tensors in {
        "auto1111": {"emb_params": vectors(3)},
        "diffusers": {"<style>": vectors(1)[0]},
        "many": {"<style>": vectors(2)},
        "half": {"emb_params": vectors(2).half()},
        "single": {"clip_l": vectors(2)},
        "sdxl": {"clip_l": vectors(2), "clip_g": vectors(2, width=1280)},
        "uneven": {"clip_l": vectors(1), "clip_g": vectors(2, width=1280)},
        "wide": {"emb_params": vectors(1, width=768)},
        "long": {"emb_params": vectors(76)},
        "empty": {"emb_params": torch.zeros(0, WIDTH)},
        "broken": {"emb_params": torch.full((1, WIDTH), torch.nan)},
        "lora": {"a.lora_up": vectors(1), "a.lora_down": vectors(1)},
        "deep": {"emb_params": vectors(2)[None]},
    }.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / "nonsense.safetensors").write_bytes(b"nonsense")
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x04.")
    return tmp_path


def test_every_layout_is_read(folder: Path) -> None:
    loaded = load_embeddings(folder, WIDTH).loaded
    assert {name: tuple(v.shape) for name, v in loaded.items()} == {
        "auto1111": (3, WIDTH),
        "diffusers": (1, WIDTH),
        "half": (2, WIDTH),
        "many": (2, WIDTH),
        "single": (2, WIDTH),
    }
    assert all(v.dtype is torch.float32 for v in loaded.values())


def test_what_cannot_be_used_is_left_out_with_the_reason(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        embeddings = load_embeddings(folder, WIDTH)
    for name, reason in {
        "sdxl": "is left out: its width is 1312, the checkpoint's 32",
        "wide": "is left out: its width is 768, the checkpoint's 32",
        "long": "cannot be read: it has 76 vectors; 1 to 75",
        "empty": "cannot be read: it has 0 vectors",
        "broken": "cannot be read: it has values that are not finite",
        "lora": "cannot be read: it has 2 tensors",
        "deep": "cannot be read: its shapes are (1, 2, 32)",
        "uneven": "cannot be read: its shapes are (1, 32), (2, 1280)",
        "nonsense": "cannot be read",
    }.items():
        assert f"embedding {name!r} {reason}" in caplog.text
    assert "pickle" not in caplog.text
    assert str(folder) not in caplog.text
    skipped = [file for file in embeddings.listing() if not file.usable]
    assert [(file.name, file.width, file.vectors) for file in skipped] == [
        ("sdxl", 1312, 2),
        ("wide", 768, 1),
    ]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder of embeddings") as caught:
        load_embeddings(tmp_path / "none", WIDTH)
    assert str(tmp_path) not in str(caught.value)


def test_names_are_found_whatever_their_case_and_longest_first() -> None:
    short, long = vectors(1, 1), vectors(2, 2)
    names = vocabulary(badhands=short, **{"badhands v2": long})
    tokens = TOKENIZER.encode("a BadHands, badhands V2 badhandsome", add_special_tokens=False)
    found = [token for token in names.inserted(tokens) if isinstance(token, Tensor)]
    assert [len(v) for v in found] == [1, 2]


@given(st.lists(st.integers(0, 3), max_size=30))
def test_tokens_that_are_no_name_are_left_in_order(tokens: list[int]) -> None:
    name, learnt = [1, 2], vectors(1)
    inserted = list(Vocabulary([(name, learnt)]).inserted(tokens))
    restored = [t for item in inserted for t in (name if isinstance(item, Tensor) else [item])]
    assert restored == tokens
    assert sum(isinstance(item, Tensor) for item in inserted) == sum(
        tokens[i : i + 2] == name for i in range(len(tokens))
    )


def test_an_embedding_is_never_split_over_two_chunks() -> None:
    prompt = parse_emphasis("a " * 70 + "(thing:1.5) b")
    chunks = chunked(prompt, TOKENIZER, vocabulary(thing=vectors(8)))
    assert [len(chunk.tokens) for chunk in chunks] == [70, 9]
    assert chunks[1].weights == [1.5] * 8 + [1.0]
    fits = chunked(prompt, TOKENIZER, vocabulary(thing=vectors(5)))
    assert [len(chunk.tokens) for chunk in fits] == [75, 1]


class RecordingEncoder:
    width = 32

    def encode(
        self, tokens: Tensor, clip_skip: int, vectors: Sequence[Vector]
    ) -> tuple[Tensor, Tensor | None]:
        self.tokens, self.vectors = tokens, vectors
        return tokens.float()[:, :, None].expand(-1, -1, 2), None


def test_vectors_stand_behind_the_token_that_begins_a_chunk() -> None:
    encoder = RecordingEncoder()
    learnt = vectors(2)
    embeddings = Embeddings({"thing": learnt}, {})
    Conditioner([encoder], TOKENIZER, torch.device("cpu"), embeddings=embeddings)(
        [parse_emphasis("a thing BREAK thing")], 1
    )
    assert [(row, position) for row, position, _ in encoder.vectors] == [(0, 2), (0, 3), (1, 1), (1, 2)]
    assert all(torch.equal(v, learnt[i % 2]) for i, (_, _, v) in enumerate(encoder.vectors))


@torch.inference_mode()
def test_vectors_take_the_place_of_the_tokens_own(checkpoint: LoadedCheckpoint) -> None:
    """An embedding that is the words' own vectors changes nothing; another one does."""
    text_encoder: Any = tiny_modules()[2]
    ids = TOKENIZER.encode("red circle", add_special_tokens=False)
    own = text_encoder.get_input_embeddings()(torch.tensor(ids))

    def encoded(text: str, learnt: Tensor) -> Tensor:
        made = assemble(
            *tiny_modules(),
            device=torch.device("cpu"),
            dtype=torch.float32,
            embeddings=Embeddings({"thing": learnt}, {}),
        )
        return made.conditioner([parse_emphasis(text)], 1)[0].context

    plain = checkpoint.conditioner([parse_emphasis("a red circle, b")], 1)[0].context
    assert torch.equal(encoded("a thing, b", own), plain)
    assert torch.equal(encoded("a red circle, b", vectors(2)), plain)
    assert not torch.allclose(encoded("a thing, b", vectors(2)), plain)
