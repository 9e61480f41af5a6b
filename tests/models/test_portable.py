"""What transformers 4, sentence-transformers and FlashRank look for in a saved ranker.

They themselves are run by scripts/compatibility, in environments of their own.
"""

import json
import random

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

from kdscale.models.encode import PairEncoder
from kdscale.models.ranker import Scorer, build_ranker, load_ranker, save_ranker
from tests.models.test_ranker import FAMILIES, SIZES
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer, random_pairs

# The classes that tests here use and transformers 4.57 has.
KNOWN_TO_4 = {"BertTokenizer", "PreTrainedTokenizerFast"}


def generic_bert_tokenizer():
    """BERT's, of no class of its own, with a special token that no model names."""
    return PreTrainedTokenizerFast(
        tokenizer_object=bert_tokenizer().backend_tokenizer,
        additional_special_tokens=["river"],
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")},
    )


RANKERS = FAMILIES | {"generic": (bert_encoder, generic_bert_tokenizer)}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=RANKERS)
def saved(request, tmp_path):
    body, tokenizer = RANKERS[request.param]
    encoder = PairEncoder(tokenizer(), 21)
    model = build_ranker(body(), 0.0, seed=1)
    save_ranker(model, encoder, tmp_path)
    return tmp_path, model, encoder


def test_the_tokenizer_is_of_a_class_that_transformers_4_knows(saved):
    path, _, encoder = saved
    settings = read(path / "tokenizer_config.json")
    assert settings["tokenizer_class"] in KNOWN_TO_4
    if settings["tokenizer_class"] == "PreTrainedTokenizerFast":  # which knows of no types
        assert ("token_type_ids" in settings["model_input_names"]) == encoder.uses_types
    assert not isinstance(settings.get("extra_special_tokens", {}), list)


def test_flashrank_finds_all_that_it_reads(saved):
    path, _, encoder = saved
    settings, config = read(path / "tokenizer_config.json"), read(path / "config.json")
    assert settings["model_max_length"] == 21
    assert settings["pad_token"] == encoder.tokenizer.pad_token
    assert config["pad_token_id"] == encoder.pad_id
    # As FlashRank and fastembed build it, the tokenizer cuts and numbers pairs as ours does.
    backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    backend.enable_truncation(21)
    backend.enable_padding(pad_id=config["pad_token_id"], pad_token=settings["pad_token"])
    for token in read(path / "special_tokens_map.json").values():
        backend.add_special_tokens([AddedToken(**token)])
    texts = random_pairs(random.Random(2), 12, 24)
    batch = encoder.collate([tuple(encoder.tokenise(list(pair))) for pair in texts])
    found = backend.encode_batch(texts)
    assert [one.ids for one in found] == batch["input_ids"].tolist()
    if encoder.uses_types:
        assert [one.type_ids for one in found] == batch["token_type_ids"].tolist()


def test_the_special_tokens_keep_their_options(tmp_path):
    tokenizer = generic_bert_tokenizer()
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    PairEncoder(tokenizer, 21).save(tmp_path)
    named = read(tmp_path / "special_tokens_map.json")
    assert named["mask_token"] == {
        "content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False,
        "single_word": False,
    }  # fmt: skip
    assert named["cls_token"]["content"] == "[CLS]" and not named["cls_token"]["lstrip"]


def test_what_is_saved_is_read_back_the_same(saved):
    path, model, encoder = saved
    texts = random_pairs(random.Random(4), 10, 24)
    pairs = [tuple(encoder.tokenise(list(pair))) for pair in texts]
    again = PairEncoder.load(path)
    assert again.uses_types == encoder.uses_types and again.pad_id == encoder.pad_id
    assert again.tokenizer.all_special_tokens == encoder.tokenizer.all_special_tokens
    scores = Scorer(load_ranker(path), again).score(
        [tuple(again.tokenise(list(pair))) for pair in texts]
    )
    np.testing.assert_allclose(scores, Scorer(model, encoder).score(pairs), atol=1e-6)
    assert read(path / "config.json")["sentence_transformers"] == {
        "activation_fn": "torch.nn.modules.linear.Identity"
    }


def test_a_modern_bert_tells_transformers_4_its_angles_and_its_layers(tmp_path):
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    config = ModernBertConfig(
        vocab_size=len(bert_tokenizer()), max_position_embeddings=64, global_rope_theta=5_000.0,
        layer_types=["full_attention", "sliding_attention"], bos_token_id=2, eos_token_id=3,
        **special, **SIZES,
    )  # fmt: skip
    model = build_ranker(ModernBertModel(config), 0.0, seed=1)
    save_ranker(model, PairEncoder(bert_tokenizer(), 21), tmp_path)
    saved = read(tmp_path / "config.json")
    assert saved["global_rope_theta"] == 5_000 and saved["local_rope_theta"] == 10_000
    assert saved["global_attn_every_n_layers"] == 2
    assert saved["rope_parameters"]["full_attention"]["rope_theta"] == 5_000
