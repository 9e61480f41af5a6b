import pytest
import torch

from kdscale.losses.lm import hidden_mse
from kdscale.losses.ranking import listwise_kl, margin_mse
from kdscale.models.ranker import build_ranker
from kdscale.training.blocks import BlockBatch
from kdscale.training.groups import GroupBatch
from kdscale.training.intermediate import IntermediateLosses
from kdscale.training.modules import LmTraining, RankerTraining
from tests.worlds.tiny_models import bert_encoder

LOSSES = {"hidden": 1.0, "embedding": 1.0, "qkv": 1.0}


def _tokens(batch=3, length=8):
    torch.manual_seed(0)
    input_ids = torch.randint(5, 60, (batch, length))
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def _groups(pairs):
    """Two groups, of three and two pairs, in two chunks."""
    return GroupBatch(
        chunks=[{k: v[:2] for k, v in pairs.items()}, {k: v[2:] for k, v in pairs.items()}],
        slots=torch.tensor([4, 0, 3, 1, 2]),
        labels=torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        teacher=torch.tensor([[3.0, 1.0, -1.0], [2.0, 0.5, 0.0]]),
    )


def _wide(seed=0):
    return bert_encoder(seed=seed, layers=2, hidden=32, intermediate=64)


def _narrow(seed=1):
    return bert_encoder(seed=seed, layers=1, hidden=16, intermediate=32)


def _lm(student, teacher, layer_map, losses, relation_heads):
    width = student.config.hidden_size
    intermediate = IntermediateLosses(width, teacher, layer_map, losses, relation_heads, seed=0)
    return LmTraining(student, intermediate)


def test_a_ranker_sees_its_groups():
    ranker = build_ranker(bert_encoder(seed=0), 0.0, 0).eval()
    pairs = _tokens(5)
    batch = _groups(pairs)
    module = RankerTraining(ranker, {"margin_mse": 1.0, "listwise_kl": 1.0}, temperature=2.0)
    terms = module(batch)
    logits = ranker(**pairs).logits[:, 0]
    zero = torch.zeros(())
    scores = torch.stack([logits[1], logits[3], logits[4], logits[2], logits[0], zero]).view(2, 3)
    expected = margin_mse(scores, batch.teacher, batch.labels, batch.mask)
    assert terms["margin_mse"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    expected = listwise_kl(scores, batch.teacher, batch.mask, 2.0)
    assert terms["listwise_kl"].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_ranker_beside_its_teacher_has_a_value_a_group_for_each_intermediate_term():
    teacher, losses = _wide(), ["listwise_kl", "hidden", "cosine", "embedding", "qkv", "attention"]
    intermediate = IntermediateLosses(16, teacher, [2], losses, 2, seed=0)
    ranker = build_ranker(_narrow(), 0.0, 0).eval()
    pairs = _tokens(5)
    batch = _groups(pairs)
    module = RankerTraining(ranker, dict.fromkeys(losses, 1.0), 1.0, intermediate)
    terms = module(batch)
    assert set(terms) == set(losses) and all(t.shape == (2,) for t in terms.values())
    with torch.no_grad():
        states = intermediate.projections["hidden"](ranker.bert(**pairs)[0])
        value = hidden_mse(states, teacher(**pairs)[0], pairs["attention_mask"].bool())
    expected = [(value[1] + value[3] + value[4]) / 3, (value[2] + value[0]) / 2]
    assert terms["hidden"].tolist() == pytest.approx([v.item() for v in expected], rel=1e-5)
    bare = RankerTraining(ranker, {"listwise_kl": 1.0})(batch)
    torch.testing.assert_close(terms["listwise_kl"], bare["listwise_kl"])


def test_padding_of_the_pairs_changes_no_intermediate_term():
    losses = dict.fromkeys(["hidden", "cosine", "embedding", "qkv", "attention_kl"], 1.0)
    intermediate = IntermediateLosses(16, _wide(), [2], losses, 2, seed=0)
    module = RankerTraining(build_ranker(_narrow(), 0.0, 0).eval(), losses, 1.0, intermediate)
    terms = module(_groups(_tokens(5)))
    padded = {
        "input_ids": torch.cat([_tokens(5)["input_ids"], torch.zeros(5, 3).long()], 1),
        "attention_mask": torch.cat([torch.ones(5, 8), torch.zeros(5, 3)], 1).long(),
    }
    for name, value in module(_groups(padded)).items():
        torch.testing.assert_close(value, terms[name], rtol=1e-4, atol=1e-6)


def test_a_language_model_that_is_its_teacher_has_nothing_to_learn():
    module = _lm(_wide(), _wide(), [1, 2], LOSSES, relation_heads=4)
    module.intermediate.start_projections(torch.eye(32))
    for term in module(BlockBatch(**_tokens())).values():
        assert term.shape == (3,)
        assert term.abs().max() < 1e-6


def test_the_teacher_is_frozen_and_no_part_of_what_is_trained_or_saved():
    teacher, ranker = _wide(), build_ranker(_narrow(), 0.0, 0)
    intermediate = IntermediateLosses(16, teacher, [2], LOSSES, 2, seed=0)
    modules = [
        (
            _lm(_narrow(), teacher, [2], LOSSES, relation_heads=2),
            BlockBatch(**_tokens()),
            "student",
        ),
        (RankerTraining(ranker, LOSSES, 1.0, intermediate), _groups(_tokens(5)), "ranker"),
    ]
    for module, batch, part in modules:
        sum(term.mean() for term in module(batch).values()).backward()
        assert all(p.grad is None for p in teacher.parameters())
        assert module.intermediate.projections["hidden"].weight.grad.abs().sum() > 0
        names = {name for name in module.state_dict() if not name.startswith(f"{part}.")}
        assert names == {f"intermediate.projections.{n}.weight" for n in ("hidden", "embedding")}


@pytest.mark.parametrize("name", ["cosine", "attention", "attention_kl"])
def test_every_term_works_alone(name):
    terms = _lm(_narrow(), _wide(), [2], {name: 1.0}, relation_heads=2)(BlockBatch(**_tokens()))
    assert list(terms) == [name] and terms[name].shape == (3,)


def test_projections_depend_on_the_seed_alone():
    one, same, other = (
        IntermediateLosses(16, _wide(), [2], LOSSES, 2, seed).projections["hidden"].weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_projections_are_fitted_to_the_pairs_without_their_padding():
    teacher, student = _wide(), _narrow()
    intermediate = IntermediateLosses(16, teacher, [2], LOSSES, 2, seed=0)
    inputs = _tokens(40)
    inputs["attention_mask"][::2, 5:] = 0
    halves = [{k: v[i::2] for k, v in inputs.items()} for i in range(2)]
    intermediate.fit_projections(student.train(), halves)
    assert student.training
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        x, y = (m.eval()(**inputs)[0][real] for m in (student, teacher))
    best = torch.linalg.lstsq(x, y).solution
    fitted = intermediate.projections["hidden"].weight.detach().T
    assert (x @ fitted - y).norm().item() == pytest.approx((x @ best - y).norm().item(), rel=0.01)
    same = IntermediateLosses(32, teacher, [1, 2], ["hidden"], 2, seed=0)
    same.fit_projections(_wide(), [inputs])
    torch.testing.assert_close(same.projections["hidden"].weight, torch.eye(32), atol=0.05, rtol=0)
