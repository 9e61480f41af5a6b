"""Tiny models and tokenizers, made here: no download, random weights from a seed."""

from __future__ import annotations

import random

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(60)] + ["river", "bank", "tax", "rates", "flow", "why", "how"]


def bert_tokenizer() -> BertTokenizer:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *WORDS]
    return BertTokenizer(vocab={token: i for i, token in enumerate(vocab)})


def roberta_like_tokenizer() -> PreTrainedTokenizerFast:
    """<s> q </s></s> p </s>, no token types, padding id 1: the layout of RoBERTa."""
    vocab = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocab)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        sep_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def decoder_tokenizer() -> PreTrainedTokenizerFast:
    """Texts one after the other, without marks; padding id 1."""
    vocab = ["<unk>", "<pad>", "</s>", "a", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(vocab)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )


def bert_encoder(
    layers: int = 2, hidden: int = 24, heads: int = 4, intermediate: int = 48, seed: int = 0
) -> BertModel:
    config = BertConfig(
        vocab_size=len(bert_tokenizer()),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=64,
        initializer_range=0.2,  # far from zero, so that a wrong input changes the output
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    model = BertModel(config)
    with torch.no_grad():  # biases are drawn as zero, which would hide a bias that is lost
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model.eval()


def random_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def random_pairs(rng: random.Random, count: int, longest: int) -> list[tuple[str, str]]:
    return [
        (random_text(rng, rng.randint(1, longest)), random_text(rng, rng.randint(1, longest)))
        for _ in range(count)
    ]


def as_arrays(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.int32)
