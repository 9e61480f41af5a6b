"""The check's verdict on each family of models is what the real code does with one."""

import io
from dataclasses import replace

import pytest
import torch
import transformers
from rich.console import Console
from transformers import AutoModel

from kdscale.config import Config, Lm, Prepare, Ranker, Shape, Teacher
from kdscale.doctor.experiment import check_training
from kdscale.errors import KdscaleError
from kdscale.experiment.context import DATASET, SCORES, TEACHER, TOKENS
from kdscale.experiment.load import load_config
from kdscale.experiment.rehearsal import check_models
from kdscale.experiment.run import run_steps
from kdscale.experiment.steps import build_steps
from kdscale.models.encode import PairEncoder
from kdscale.models.pretrained import load_encoder, load_tokenizer
from kdscale.models.ranker import build_ranker
from kdscale.models.students import build_student, map_layers
from kdscale.progress import Reporter
from kdscale.store import open_store
from kdscale.training.intermediate import IntermediateLosses
from tests.worlds.ids import step_id
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer, roberta_like_tokenizer
from tests.worlds.world import make_beir, make_config, make_encoder

SIZES = {
    "vocab_size": 80,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
OFFSET = {**SIZES, "max_position_embeddings": 66, "type_vocab_size": 1}
FROM_ZERO = {**SIZES, "max_position_embeddings": 64}
FAMILIES = {
    "bert": ("BertConfig", FROM_ZERO),
    "electra": ("ElectraConfig", {**FROM_ZERO, "embedding_size": 24}),
    "electra-narrow": ("ElectraConfig", {**FROM_ZERO, "embedding_size": 16}),
    "roberta": ("RobertaConfig", OFFSET),
    "xlm-roberta": ("XLMRobertaConfig", OFFSET),
    "camembert": ("CamembertConfig", OFFSET),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": 80, "dim": 24, "n_layers": 4, "n_heads": 4, "hidden_dim": 48,
         "max_position_embeddings": 64},
    ),
    "mpnet": ("MPNetConfig", {**SIZES, "max_position_embeddings": 66}),
    "deberta-v2": (
        "DebertaV2Config",
        {**FROM_ZERO, "relative_attention": True, "position_buckets": 16, "type_vocab_size": 0,
         "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm",
         "position_biased_input": False},
    ),
    "modernbert": (
        "ModernBertConfig",
        {**FROM_ZERO, "local_attention": 4, "pad_token_id": 0, "bos_token_id": 2,
         "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3},
    ),
    "t5": (
        "T5Config",
        {"vocab_size": 80, "d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 4, "num_heads": 4},
    ),
    "qwen3": ("Qwen3Config", {**FROM_ZERO, "num_key_value_heads": 2, "head_dim": 6}),
}  # fmt: skip
ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert", "mpnet")
NARROW = Shape("narrow", layers=2, hidden=12, heads=2, intermediate=20)
SAME = Shape("same", layers=2, hidden=24, heads=4, intermediate=48)
QKV = {"hidden": 1.0, "embedding": 1.0, "qkv": 1.0}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder of each family: random weights, settings, a tokenizer with CLS and SEP."""
    made = {}
    for name, (kind, settings) in FAMILIES.items():
        made[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**settings)
        AutoModel.from_config(config).save_pretrained(made[name])
        tokenizer = roberta_like_tokenizer() if name in ROBERTA_LIKE else bert_tokenizer()
        tokenizer.save_pretrained(made[name])
    return made


def config_of(folder, shape, init="random", losses=QKV, **ranker):
    return Config(
        prepare=Prepare(max_length=32, block_length=16),
        teacher=Teacher(model=str(folder)),
        students=[shape],
        lm=Lm(init=init, losses=losses, relation_heads=2),
        ranker=Ranker(**ranker),
    )


def verdict(config):
    """What the check says: None, or its line."""
    try:
        assert check_models(config, build_steps(config)) == []
    except KdscaleError as error:
        assert str(error).isprintable()
        return str(error)


def what_happens(config):
    """What the code of the stages does: None, or what it raises."""
    torch.manual_seed(0)
    try:
        teacher = load_encoder(config.teacher.model)
        encoder = PairEncoder(load_tokenizer(config.teacher.model), config.prepare.max_length)
        pairs = [tuple(encoder.tokenise(pair)) for pair in (("w1 w2", "w3"), ("w4", "w5 w6 w7"))]
        build_ranker(teacher, 0.0, 0).eval()(**encoder.collate(pairs))
        (shape,) = config.students
        numbers = map_layers(config.lm.layer_map, shape.layers, teacher.config.num_hidden_layers)
        blocks = torch.randint(5, 70, (8, 16))
        if any(s.startswith("lm_distill") for s in config.ranker.strategies):
            init, losses = config.lm.init, config.lm.losses
            student = build_student(shape, teacher, init, 0, blocks, numbers)
            intermediate = IntermediateLosses(
                shape.hidden, teacher, numbers, losses, config.lm.relation_heads, 0
            )
            intermediate(student, {"input_ids": blocks, "attention_mask": torch.ones_like(blocks)})
        else:
            student = build_student(shape, teacher, "random", 0)
        build_ranker(student, 0.0, 0).eval()(**encoder.collate(pairs))
    except Exception as error:
        return error


@pytest.mark.parametrize("shape", [NARROW, SAME], ids=lambda shape: shape.name)
@pytest.mark.parametrize("init", ["random", "layers", "svd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_verdict_is_what_happens(folders, family, init, shape):
    config = config_of(folders[family], shape, init)
    told, happened = verdict(config), what_happens(config)
    assert (told is None) == (happened is None), (told, happened)
    if isinstance(happened, KdscaleError):
        assert str(happened) in told


@pytest.mark.parametrize("family", FAMILIES)
def test_strategies_without_a_language_model_ask_less_of_a_teacher(folders, family):
    config = config_of(folders[family], NARROW, strategies=["finetune", "ranker_distill"])
    told, happened = verdict(config), what_happens(config)
    assert (told is None) == (happened is None), (told, happened)
    assert (told is None) == (family not in ("t5", "qwen3"))


def test_a_finished_ranker_is_told_to_lose_its_head(tmp_path):
    encoder = bert_encoder()
    tokenizer = bert_tokenizer()
    folders = {name: tmp_path / name for name in ("ranker", "sharded", "encoder", "renamed")}
    for folder in folders.values():
        tokenizer.save_pretrained(folder)
    ranker = build_ranker(encoder, 0.0, 0)
    ranker.save_pretrained(folders["ranker"])
    ranker.save_pretrained(folders["sharded"], max_shard_size="20KB")
    assert (folders["sharded"] / "model.safetensors.index.json").is_file()
    encoder.save_pretrained(folders["encoder"])
    encoder.save_pretrained(folders["renamed"])  # its settings alone come from a ranker
    ranker.config.save_pretrained(folders["renamed"])

    def warnings(name, **settings):
        config = config_of(folders[name], NARROW)
        return check_models(replace(config, **settings), build_steps(config))

    for name in ("ranker", "sharded"):
        (warning,) = warnings(name)
        assert warning.startswith(f"teacher.model {folders[name]} is a finished ranker")
        assert "BertForSequenceClassification" in warning and "a new one is trained" in warning
    assert warnings("encoder") == warnings("renamed") == []
    (warning,) = warnings("encoder", ensemble=[Teacher(model=str(folders["ranker"]))])
    assert warning.startswith("ensemble[0].model")


def test_lengths_and_losses_that_a_model_cannot_have_are_told(folders):
    for folder, changes, message in (
        ("camembert", {"prepare": Prepare(max_length=65, block_length=16)}, "at most 64 tokens"),
        ("mpnet", {"prepare": Prepare(max_length=32, block_length=65)}, "reads at most 64"),
        ("bert", {"lm": Lm(losses=QKV, relation_heads=5)}, "relation_heads: 5 does not divide"),
        ("bert", {"lm": Lm(losses={"attention": 1.0})}, "as many heads"),
        ("bert", {"lm": Lm(relation_heads=2, layer_map=[1, 9])}, r"lm\.layer_map: .* from 1 to 4"),
        (
            "bert",
            {"ranker": Ranker(["ranker_distill"], intermediate_losses={"attention": 1.0})},
            "as many heads",
        ),
    ):
        config = replace(config_of(folders[folder], NARROW), **changes)
        with pytest.raises(KdscaleError, match=message):
            check_models(config, build_steps(config))


def test_no_model_is_asked_for_what_a_step_does_not_need(folders):
    config = config_of(folders["modernbert"], NARROW, "svd")
    assert check_models(config, [DATASET, TOKENS, TEACHER, SCORES]) == []
    with pytest.raises(KdscaleError, match="does not have BERT's layers"):
        check_models(config, [step_id("lm:narrow")])


def test_a_hub_model_is_passed_over_where_nothing_may_be_fetched():
    config = config_of("kdscale-tests/no-such-model", NARROW)
    assert check_models(config, build_steps(config), download=False) == []


def test_run_dry_run_and_doctor_say_the_same(tmp_path):
    encoder = make_encoder(tmp_path / "encoder")
    make_beir(tmp_path / "beir")
    build_ranker(load_encoder(str(encoder)), 0.0, 0).save_pretrained(encoder)
    config = load_config(make_config(tmp_path))
    reporter = Reporter(Console(file=io.StringIO(), width=1000))
    run_steps(config, open_store(config.storage.uri), None, reporter, dry_run=True)
    (warning,) = check_models(config, build_steps(config))
    assert warning in reporter.console.file.getvalue()
    check = check_training(config)
    assert check.status == "warning" and warning in check.detail

    wide = replace(config.students[0], hidden=1024)  # than its teacher
    config = replace(config, students=[wide], lm=replace(config.lm, relation_heads=1))
    with pytest.raises(KdscaleError, match="is above the teacher's 32") as told:
        run_steps(config, open_store(config.storage.uri), None, reporter, dry_run=True)
    with pytest.raises(KdscaleError) as at_run:
        run_steps(config, open_store(config.storage.uri), None, reporter)
    check = check_training(config)
    assert check.status == "problem" and check.fix
    assert check.detail == str(told.value) == str(at_run.value)
