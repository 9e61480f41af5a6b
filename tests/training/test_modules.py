import pytest
import torch
from tiny_models import bert_encoder

from kdscale.losses.ranking import listwise_kl, margin_mse
from kdscale.models.ranker import build_ranker
from kdscale.training.modules import LmTraining, RankerTraining

LOSSES = {"hidden": 1.0, "embedding": 1.0, "qkv": 1.0}


def _tokens(batch=3, length=8):
    torch.manual_seed(0)
    input_ids = torch.randint(5, 60, (batch, length))
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def test_a_ranker_sees_its_groups():
    ranker = build_ranker(bert_encoder(seed=0), 0.0, 0).eval()
    pairs = _tokens(5)
    batch = {
        "chunks": [{k: v[:2] for k, v in pairs.items()}, {k: v[2:] for k, v in pairs.items()}],
        "slots": torch.tensor([4, 0, 3, 1, 2]),
        "labels": torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
        "mask": torch.tensor([[True, True, True], [True, True, False]]),
        "teacher": torch.tensor([[3.0, 1.0, -1.0], [2.0, 0.5, 0.0]]),
    }
    module = RankerTraining(ranker, {"margin_mse": 1.0, "listwise_kl": 1.0}, temperature=2.0)
    terms = module(batch)
    logits = ranker(**pairs).logits[:, 0]
    zero = torch.zeros(())
    scores = torch.stack([logits[1], logits[3], logits[4], logits[2], logits[0], zero]).view(2, 3)
    expected = margin_mse(scores, batch["teacher"], batch["labels"], batch["mask"])
    assert terms["margin_mse"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    expected = listwise_kl(scores, batch["teacher"], batch["mask"], 2.0)
    assert terms["listwise_kl"].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_language_model_that_is_its_teacher_has_nothing_to_learn():
    teacher = bert_encoder(seed=0, layers=2, hidden=32, intermediate=64)
    student = bert_encoder(seed=0, layers=2, hidden=32, intermediate=64)
    module = LmTraining(student.eval(), teacher, [1, 2], LOSSES, relation_heads=4)
    module.start_projections(torch.eye(32))
    for term in module(_tokens()).values():
        assert term.shape == (3,)
        assert term.abs().max() < 1e-6


def test_the_teacher_is_frozen_and_no_part_of_what_is_trained_or_saved():
    teacher = bert_encoder(seed=0, layers=2, hidden=32, intermediate=64)
    student = bert_encoder(seed=1, layers=1, hidden=16, intermediate=32)
    module = LmTraining(student, teacher, [2], LOSSES, relation_heads=2)
    sum(term.mean() for term in module(_tokens()).values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert module.projections["hidden"].weight.grad.abs().sum() > 0
    names = {name.split(".")[0] for name in module.state_dict()}
    assert names == {"student", "projections"}


@pytest.mark.parametrize("name", ["cosine", "attention", "attention_kl"])
def test_every_term_works_alone(name):
    teacher = bert_encoder(seed=0, layers=2, hidden=32, intermediate=64)
    student = bert_encoder(seed=1, layers=1, hidden=16, intermediate=32)
    module = LmTraining(student, teacher, [2], {name: 1.0}, relation_heads=2)
    terms = module(_tokens())
    assert list(terms) == [name] and terms[name].shape == (3,)
