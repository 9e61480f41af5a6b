"""Run by scripts/compatibility in another environment, which has no kdscale.

    python compatibility_reader.py RANKERS TEXTS OUT

For every program that is installed here: load every folder in RANKERS, score the pairs of TEXTS,
and write {program: {ranker: scores, or what went wrong}} to OUT.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def transformers(folder, pairs):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        inputs = tokenizer(pairs, truncation=True, padding=True, return_tensors="pt")
        return model(**inputs).logits[:, 0].tolist()


def sentence_transformers(folder, pairs):
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(folder), device="cpu").predict(pairs).tolist()


def saved_again(folder, pairs):
    """What sentence-transformers read, it writes, and transformers reads that."""
    import tempfile

    from sentence_transformers import CrossEncoder

    with tempfile.TemporaryDirectory() as other:
        CrossEncoder(str(folder), device="cpu").save_pretrained(other)
        return sentence_transformers(other, pairs)


def rerankers(folder, pairs):
    from rerankers import Reranker

    ranker = Reranker(str(folder), model_type="cross-encoder", device="cpu", verbose=0)
    return [ranker.rank(query=q, docs=[p]).results[0].score for q, p in pairs]


def fastembed(folder, pairs, file="model.onnx"):
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    name = f"kdscale/{folder.name}-{file}"
    TextCrossEncoder.add_custom_model(model=name, sources=ModelSource(hf=name), model_file=file)
    ranker = TextCrossEncoder(name, specific_model_path=str(folder))
    return [float(score) for score in ranker.rerank_pairs(pairs, batch_size=16)]


def flashrank(folder, pairs, file="model.onnx"):
    from flashrank import Ranker, RerankRequest
    from flashrank.Config import model_file_map

    model_file_map[folder.name] = file
    ranker = Ranker(model_name=folder.name, cache_dir=str(folder.parent))
    scores = []
    for query, passage in pairs:
        (found,) = ranker.rerank(RerankRequest(query=query, passages=[{"text": passage}]))
        scores.append(float(found["score"]))
    return scores


def in_int8(reader):
    return lambda folder, pairs: reader(folder, pairs, "int8.onnx")


PROGRAMS = [
    ("transformers", "transformers", transformers),
    ("sentence-transformers", "sentence-transformers", sentence_transformers),
    ("sentence-transformers, saved by it again", "sentence-transformers", saved_again),
    ("rerankers", "rerankers", rerankers),
    ("fastembed", "fastembed", fastembed),
    ("fastembed, int8", "fastembed", in_int8(fastembed)),
    ("FlashRank", "flashrank", flashrank),
    ("FlashRank, int8", "flashrank", in_int8(flashrank)),
]


def main():
    rankers, texts, out = map(Path, sys.argv[1:])
    pairs = [tuple(pair) for pair in json.loads(texts.read_text())]
    found = {}
    for title, package, reader in PROGRAMS:
        try:
            name, comma, rest = title.partition(",")
            title = f"{name} {version(package)}{comma}{rest}"
        except PackageNotFoundError:
            continue
        found[title] = {}
        for folder in sorted(rankers.iterdir()):
            try:
                found[title][folder.name] = reader(folder, pairs)
            except Exception as error:  # of whatever kind a program raises
                found[title][folder.name] = f"{type(error).__name__}: {error}"[:200]
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
