"""Model folders that somebody made to run code, to read other files, or to break the reader."""

import json
import os
import shutil
import sys

import pytest
import torch
from transformers import AutoModel, dynamic_module_utils

from kdscale.doctor.experiment import check_model
from kdscale.errors import KdscaleError
from kdscale.evaluation.rerank import rerank
from kdscale.models.encode import PairEncoder
from kdscale.models.pretrained import load_encoder, load_tokenizer, resolve_model
from kdscale.models.ranker import Scorer, build_ranker, load_ranker, save_ranker
from kdscale.progress import Reporter
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer

CLASSES = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoModelForSequenceClassification": "evil.EvilRanker",
    "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
}
EVIL = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer
class EvilConfig(BertConfig): pass
class EvilModel(BertModel): config_class = EvilConfig
class EvilRanker(BertForSequenceClassification): pass
class EvilTokenizer(BertTokenizer): pass
"""


@pytest.fixture(scope="module")
def ranker_dir(tmp_path_factory):
    """An honest ranker."""
    path = tmp_path_factory.mktemp("models") / "ranker"
    save_ranker(build_ranker(bert_encoder(), 0.0, seed=1), PairEncoder(bert_tokenizer(), 32), path)
    return path


@pytest.fixture
def model(ranker_dir, tmp_path):
    return shutil.copytree(ranker_dir, tmp_path / "model")


@pytest.fixture
def mark(model, tmp_path, monkeypatch):
    """A file that the model's code makes when it runs, however much the user asks for it."""
    mark = tmp_path / "code was run"
    (model / "evil.py").write_text(EVIL.format(mark=str(mark)))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for name in ("TRUST_REMOTE_CODE", "HF_TRUST_REMOTE_CODE", "TRANSFORMERS_TRUST_REMOTE_CODE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return mark


def change(path, **settings):
    """Settings of a JSON file, None to remove one."""
    values = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def _rank(path):
    texts = path.parent / "texts.tsv"
    texts.write_text("a\triver bank\nb\ttax rates\n")
    (path.parent / "run.txt").write_text("a Q0 a 1 2 t\na Q0 b 2 1 t\n")
    rerank(
        str(path), queries=texts, passages=texts, run=path.parent / "run.txt",
        output=path.parent / "out.txt", depth=None, batch_tokens=64, reporter=Reporter(),
    )  # fmt: skip


def _doctor(path):
    check = check_model(str(path), None, "problem")
    if check.status != "ok":
        raise KdscaleError(check.detail)


LOADERS = {
    "encoder": lambda path: load_encoder(str(path)),
    "ranker": load_ranker,
    "tokenizer": lambda path: load_tokenizer(str(path)),
    "rank": _rank,
    "doctor": _doctor,
}


def refused(load, path, message=""):
    with pytest.raises(KdscaleError, match=message) as caught:
        load(path)
    assert str(caught.value).isprintable()


def test_the_model_would_run_its_code_if_it_were_trusted(model, mark):
    change(model / "config.json", auto_map=CLASSES, model_type="evil")
    AutoModel.from_pretrained(model, trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("kind", ["evil", None])
def test_a_kind_that_only_the_models_code_knows_is_refused(model, mark, load, kind):
    change(model / "config.json", auto_map=CLASSES, model_type=kind, trust_remote_code=True)
    change(
        model / "tokenizer_config.json",
        auto_map=CLASSES,
        tokenizer_class="EvilTokenizer",
        trust_remote_code=True,
    )
    refused(load, model, "cannot read the model")
    assert not mark.exists()


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_code_beside_a_kind_that_is_known_is_ignored(model, mark, load):
    change(model / "config.json", auto_map=CLASSES)
    change(model / "tokenizer_config.json", auto_map=CLASSES)
    load(model)
    assert not mark.exists()


def test_what_we_write_names_no_code_of_the_model_it_was_made_from(model, tmp_path):
    change(model / "config.json", auto_map=CLASSES, transformers_weights="x.safetensors")
    change(model / "tokenizer_config.json", auto_map=CLASSES)
    ranker = build_ranker(load_encoder(str(model)), 0.0, seed=1)
    save_ranker(ranker, PairEncoder.load(model), tmp_path / "ours")
    for path in (tmp_path / "ours").glob("*.json"):
        assert "evil" not in path.read_text() and "auto_map" not in path.read_text()


@pytest.mark.parametrize("name", ["evil/kernel", "evil/kernel@main:attention", "paged|evil/k"])
def test_attention_is_never_fetched_from_the_hub(model, name):
    change(model / "config.json", _attn_implementation=name, attn_implementation=name)
    assert load_ranker(model).config._attn_implementation == "sdpa"
    assert load_encoder(str(model)).config._attn_implementation == "sdpa"


def _shards(model, name, **files):
    """Turn the weights into one shard that an index calls `name`."""
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_ranker(model).state_dict(), name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").rename(model / "shard.safetensors")


def test_sharded_weights_are_read(model):
    _shards(model, "shard.safetensors")
    assert load_ranker(model).config.num_labels == 1


@pytest.mark.parametrize("name", ["../other/shard.safetensors", "/shard.safetensors", "evil.bin"])
def test_an_index_names_only_safetensors_beside_it(model, tmp_path, name):
    torch.save(load_ranker(model).state_dict(), model / "evil.bin")
    _shards(model, name)
    shutil.copytree(model, tmp_path / "other")
    refused(load_ranker, model, "no safetensors file beside it")


@pytest.mark.parametrize(
    "index",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "[" * 100_000,
     '{"weight_map": {"a": "gone.safetensors"}}', '{"weight_map": {"a": "a\\u0000.safetensors"}}'],
    ids=lambda index: index[:25],
)  # fmt: skip
def test_a_damaged_index_is_named(model, index):
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(index)
    refused(load_ranker, model, r"model\.safetensors\.index\.json")


@pytest.mark.parametrize("load", [v for k, v in LOADERS.items() if k != "tokenizer"])
def test_pickled_weights_alone_are_refused(model, load):
    torch.save(load_ranker(model).state_dict(), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    refused(load, model, r"pickled weights \(pytorch_model\.bin\) are not read")


def test_weights_by_another_name_are_not_read(model):
    torch.save(load_ranker(model).state_dict(), model / "pytorch_model.bin")
    expected = load_ranker(model).state_dict()
    for name in ("pytorch_model.bin", "../model/model.safetensors"):
        change(model / "config.json", transformers_weights=name)
        found = load_ranker(model).state_dict()
        assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_an_adapter_is_refused(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    refused(lambda path: resolve_model(str(path)), model, "is an adapter")


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "torchao"}},
        {"quantization_config": "x"},
        {"hidden_size": "x"},
        {"hidden_size": 0},
        {"hidden_size": -24},
        {"num_attention_heads": 0},
        {"vocab_size": 10**15},
        {"hidden_act": "os.system"},
        {"hidden_act": ["gelu"]},
        {"id2label": "x"},
        {"dtype": "os"},
        {"pad_token_id": "x"},
        {"max_position_embeddings": 10**9},
        {"more": json.loads("[" * 500 + "]" * 500)},
    ],
    ids=lambda settings: str(settings)[:30],
)
def test_settings_that_cannot_be_are_one_line(model, settings):
    change(model / "config.json", **settings)
    refused(load_ranker, model, "cannot read the model")


TOKENIZER_SETTINGS = [
    {"tokenizer_class": ["x"]},
    {"model_max_length": "x"},
    {"model_max_length": -5},
    {"model_max_length": 3},
    {"cls_token": 3},
    {"pad_token": None},
    {"added_tokens_decoder": {"x": "y"}},
    {"added_tokens_decoder": {"-1": {"content": "a"}}},
    {"extra_special_tokens": [f"t{i}" for i in range(100)]},
    {"tokenizer_file": "/etc/passwd", "vocab_file": "/etc/passwd"},
    {"truncation_side": "left"},
    {"do_lower_case": "x"},
    {"chat_template": "{% for x in range(10**9) %}{{ x }}{% endfor %}"},
    {"deep": json.loads("[" * 500 + "]" * 500)},
]


@pytest.mark.parametrize("settings", TOKENIZER_SETTINGS, ids=lambda settings: str(settings)[:30])
def test_tokenizer_settings_work_or_are_one_line(model, settings):
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    _works_or_one_line(model)


def _mutated(text, **parts):
    return json.dumps({**json.loads(text), **parts})


TOKENIZERS = {
    "nothing": lambda _: "",
    "no object": lambda _: "[]",
    "an empty object": lambda _: "{}",
    "not UTF-8": lambda _: b"\xff\xfe",
    "cut short": lambda text: text[: len(text) // 2],
    "too deep": lambda _: "[" * 100_000,
    "no model": lambda text: _mutated(text, model=None),
    "no words": lambda text: _mutated(
        text, model={"type": "WordLevel", "vocab": {}, "unk_token": "?"}, added_tokens=[]
    ),
    "an id of 10**12": lambda text: _mutated(
        text, model={"type": "WordLevel", "vocab": {"a": 10**12}, "unk_token": "a"}
    ),
    "an id of 10**9": lambda text: _mutated(
        text, model={"type": "WordLevel", "vocab": {"a": 10**9}, "unk_token": "a"}
    ),
    "a negative id": lambda text: _mutated(
        text, model={"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}
    ),
    "a bad pattern": lambda text: _mutated(
        text,
        pre_tokenizer={
            "type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False,
        },
    ),
    "nothing is left of a text": lambda text: _mutated(
        text, normalizer={"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    ),
    "an unknown post-processor": lambda text: _mutated(text, post_processor={"type": "Evil"}),
    "special tokens that are none": lambda text: _mutated(
        text, added_tokens=[{"id": 10**6, "content": "[CLS]", "special": True}]
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers_work_or_are_one_line(model, damage):
    path = model / "tokenizer.json"
    content = damage(path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    _works_or_one_line(model)


def _works_or_one_line(model):
    before = {p for p in model.parent.rglob("*") if p.name != "out.txt"}
    try:
        _rank(model)
    except KdscaleError as error:
        assert str(error).isprintable()
    made = {p for p in model.parent.rglob("*")} - before
    assert {p.name for p in made} <= {"out.txt", "run.txt", "texts.tsv"}


def test_a_tokenizer_of_another_model_is_refused(model):
    tokenizer = bert_tokenizer()
    tokenizer.add_tokens([f"new{i}" for i in range(200)])
    encoder = PairEncoder(tokenizer, 32)
    with pytest.raises(KdscaleError, match="273 tokens, the model only 73"):
        Scorer(load_ranker(model), encoder)


@pytest.mark.parametrize("name", ["~no_such_user/model", "a\0b", "./" + "x" * 300])
def test_a_name_that_can_be_no_folder(name):
    refused(resolve_model, name, "model: cannot use the path")
    refused(load_tokenizer, name, "model: cannot use the path")


def test_links_of_the_hub_cache_are_followed(model, tmp_path):
    """The hub's cache keeps every file elsewhere, with links to it."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(model.iterdir()):
        os.rename(path, blobs / path.name)
        path.symlink_to(os.path.relpath(blobs / path.name, model))
    assert load_ranker(model).config.num_labels == 1
