"""A tiny random BLIP, tokenizer and all, laid out as published ones: it says words, in milliseconds."""

from pathlib import Path

import torch
from transformers import BlipConfig
from transformers.models.bert.tokenization_bert import BertTokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.blip.modeling_blip import BlipForConditionalGeneration

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "red", "blue", "circle", "star", "square", "on", "field", "of", "the", "and", "two")
SIDE = 32


def write_blip(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {
        **sizes,
        "encoder_hidden_size": 32,
        "vocab_size": len(SPECIAL) + len(WORDS) + 2,
        "max_position_embeddings": 64,
        "bos_token_id": len(SPECIAL) + len(WORDS),  # the tokenizer does not know this one
        "eos_token_id": SPECIAL.index("[CLS]"),
        "sep_token_id": SPECIAL.index("[SEP]"),
        "pad_token_id": SPECIAL.index("[PAD]"),
    }
    config = BlipConfig(text_config=text, vision_config={**sizes, "image_size": SIDE, "patch_size": 8})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BlipForConditionalGeneration(config)
        for weight in model.parameters():  # so large that the picture counts
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
        words = torch.tensor([-50.0] * len(SPECIAL) + [0.0] * len(WORDS) + [-50.0] * 2)
        head = model.text_decoder.cls.predictions
        for bias in (head.bias, head.decoder.bias):
            bias.data.copy_(words)
    model.save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
