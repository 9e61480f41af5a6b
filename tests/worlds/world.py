"""A world small enough for tests: a vocabulary, an encoder, a BEIR folder, a config, a sweep.

Every passage has a key word of its own topic, and its query names it, so that a ranker can learn
the task; the other words are shared, so that BM25 cannot solve it alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

WORDS = [f"word{i}" for i in range(60)]
KEYS = [f"key{i}" for i in range(40)]
SHAPES = [
    {"name": "narrow", "layers": 1, "hidden": 16, "heads": 2, "intermediate": 32},
    {"name": "wide", "layers": 1, "hidden": 24, "heads": 2, "intermediate": 48},
]
SPACE = {
    "strategy": {"grid": ["finetune", "lm_distill_ranker_distill"]},
    "shape": {"grid": SHAPES},
}


def make_encoder(path: Path, seed: int = 0, words: int = len(WORDS)) -> Path:
    """A BERT encoder (2 layers, hidden 32) with random weights and a word-level tokenizer that
    knows so many of the shared words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {word: i for i, word in enumerate(special + WORDS[:words] + KEYS)}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_beir(path: Path, passages: int = 160, seed: int = 0) -> Path:
    """A BEIR folder: queries train 60, dev 10, test 20, each with one relevant passage."""
    rng = np.random.default_rng(seed)
    (path / "qrels").mkdir(parents=True)
    corpus, queries, qrels = [], [], []
    for i in range(passages):
        key = KEYS[i % len(KEYS)]
        words = list(rng.choice(WORDS, size=int(rng.integers(6, 20))))
        corpus.append({"_id": f"p{i:03d}", "title": "", "text": " ".join([*words, key])})
        if i < 90:
            asked = [*rng.choice(words, size=2), key]
            queries.append({"_id": f"q{i:03d}", "text": " ".join(asked)})
            qrels.append((f"q{i:03d}", f"p{i:03d}"))
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for split, part in (("train", qrels[:60]), ("dev", qrels[60:70]), ("test", qrels[70:])):
        lines = ["query-id\tcorpus-id\tscore", *(f"{q}\t{p}\t1" for q, p in part)]
        (path / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return path


def make_config(directory: Path, **changes: object) -> Path:
    """A config file over `make_encoder` and `make_beir` in `directory`: seconds to run."""
    encoder, beir = directory / "encoder", directory / "beir"
    if not encoder.exists():
        make_encoder(encoder)
        make_beir(beir)
    train = {"max_steps": 4, "batch_size": 8, "log_every": 2, "lr": 1e-3, "checkpoint_every": 0}
    config = {
        "name": "tiny",
        "storage": {"uri": str(directory / "store")},
        "source": {"type": "beir", "path": str(beir)},
        "prepare": {
            "depth": {"train": 10, "dev": 10, "test": 10},
            "negatives": 4,
            "max_length": 32,
            "block_length": 16,
            "shards": 2,
        },
        "teacher": {"model": str(encoder), "group_size": 4, "train": train},
        "students": [{"name": "tiny", "layers": 1, "hidden": 16, "heads": 2, "intermediate": 32}],
        "lm": {"relation_heads": 2, "train": train},
        "ranker": {"group_size": 4, "train": train},
        "evaluate": {"depth": 10, "latency_queries": 3, "measures": ["RR@10", "nDCG@10"]},
        "cluster": {"workers": 1, "scorers": 1},
        **changes,
    }
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def make_sweep(
    directory: Path,
    space: dict | None = None,
    engine: str = "torch",
    file: str = "sweep.yaml",
    **changes: object,
) -> Path:
    """A sweep file in `directory`, whose sweeps have one world and one store; changes: of the
    section sweep, and of the config around it."""
    directory.mkdir(parents=True, exist_ok=True)
    section = {"space": SPACE if space is None else space}
    section |= {k: changes.pop(k) for k in ("search", "limits", "seed", "wandb") if k in changes}
    cluster = {"workers": 1, "scorers": 1, "engine": engine, **changes.pop("cluster", {})}
    path = make_config(directory, cluster=cluster, **{"students": SHAPES, **changes})
    data = yaml.safe_load(path.read_text())
    sweep = directory / file
    sweep.write_text(yaml.safe_dump({**data, "sweep": section}, sort_keys=False))
    return sweep
