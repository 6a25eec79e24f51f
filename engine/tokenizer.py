"""CLIP's byte-pair tokenizer, built from the merges alone: the vocabulary follows from them."""

import gzip
from importlib.resources import files
from typing import Any, cast

from transformers import CLIPTokenizer


def load_tokenizer() -> CLIPTokenizer:
    """The tokenizer of SD 1.x and of SDXL's first encoder: 49,408 tokens, lower case."""
    merges = _merges()
    symbols = _byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges)]
    vocabulary = [*words, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=cast(Any, merges),  # pairs; the annotation upstream knows only strings
        model_max_length=1 << 30,  # chunks are ours; without this every long prompt warns
    )


def _merges() -> list[tuple[str, str]]:
    packed = files("engine").joinpath("assets/clip_bpe_merges.txt.gz").read_bytes()
    pairs = (line.split() for line in gzip.decompress(packed).decode().splitlines())
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]


def _byte_symbols() -> list[str]:
    """One printable character for each byte: itself if it prints, else one from 256 on."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    return [chr(byte) for byte in printing] + [chr(256 + i) for i in range(len(others))]
