import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdscale.errors import KdscaleError
from kdscale.losses import INTERMEDIATE_LOSSES
from kdscale.losses.lm import (
    Compared,
    attention_kl,
    attention_mse,
    hidden_cosine,
    hidden_mse,
    lm_terms,
    masked_lm,
    masked_lm_kl,
    qkv_relation_kl,
)
from kdscale.models.capture import Capture

MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])


def states(seed, width, batch=2, tokens=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, width, generator=generator, dtype=torch.float64)


def scores(seed, heads=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, heads, 4, 4, generator=generator, dtype=torch.float64)


def relations(seed, width):
    return tuple(states(seed + i, width) for i in range(3))


def spoil(tensor, mask=MASK):
    """Other values at the padded tokens, on every axis that has tokens."""
    tensor = tensor.clone()
    if tensor.dim() == 3:
        tensor[~mask] = 50.0
    else:
        tensor.transpose(1, 2)[~mask] = 50.0
        tensor.permute(0, 3, 1, 2)[~mask] = -50.0
    return tensor


# Each loss as a function of a student tensor, with a fixed teacher of the right shape.
LOSSES = {
    "hidden_mse": (states(1, 6), lambda s, t, m: hidden_mse(s, t, m), states(2, 6)),
    "hidden_cosine": (states(1, 6), lambda s, t, m: hidden_cosine(s, t, m), states(2, 6)),
    "attention_mse": (scores(1), lambda s, t, m: attention_mse(s, t, m), scores(2)),
    "attention_kl": (scores(1), lambda s, t, m: attention_kl(s, t, m), scores(2)),
    "qkv": (states(1, 4), lambda s, t, m: qkv_relation_kl((s,), (t,), m, 2), states(2, 6)),
    "masked_lm_kl": (states(1, 6), lambda s, t, m: masked_lm_kl(s, t, m), states(2, 6)),
}


def test_hidden_mse_by_hand():
    student = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    value = hidden_mse(student, teacher, torch.tensor([[True, True, False]]))
    assert value.tolist() == [(1 + 4 + 0 + 1) / 4]


def test_hidden_cosine_by_hand():
    student = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[5.0, 0.0], [0.0, 3.0], [-1.0, -1.0]]])
    value = hidden_cosine(student, teacher, torch.ones(1, 3, dtype=torch.bool))
    assert value.item() == pytest.approx((0 + 1 + 2) / 3)


def test_attention_mse_by_hand():
    student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert attention_mse(student, teacher, torch.tensor([[True, True]])).item() == 30 / 4
    assert attention_mse(student, teacher, torch.tensor([[True, False]])).item() == 1


def test_attention_kl_by_hand():
    # Teacher (1/4, 3/4) against the student's (1/2, 1/2) in the first row, equal in the second.
    teacher = torch.tensor([[[[0.0, math.log(3)], [1.0, 1.0]]]])
    value = attention_kl(torch.zeros(1, 1, 2, 2), teacher, torch.tensor([[True, True]]))
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert value.item() == pytest.approx(expected / 2)


def test_a_local_layer_teaches_inside_its_window_only():
    student, teacher = torch.zeros(1, 1, 3, 3), torch.arange(9.0).view(1, 1, 3, 3)
    everything = torch.ones(1, 3, dtype=torch.bool)
    value = attention_mse(student, teacher, everything, window=1)
    # Without the corners 2 and 6.
    assert value.item() == pytest.approx((0 + 1 + 9 + 16 + 25 + 49 + 64) / 7)
    far = teacher.clone()
    far[..., 0, 2] = far[..., 2, 0] = 50.0
    for loss in (attention_mse, attention_kl):
        torch.testing.assert_close(
            loss(student, far, everything, 1), loss(student, teacher, everything, 1)
        )
        assert not torch.equal(loss(student, far, everything), loss(student, teacher, everything))


def test_terms_use_the_windows_of_the_teachers_layers():
    student, teacher = intermediate(1, 1, 4), intermediate(2, 6, 6)
    terms = lm_terms(["attention", "attention_kl"], Compared(student, teacher, MASK, [4], {}, 2))
    for name, loss in (("attention", attention_mse), ("attention_kl", attention_kl)):
        expected = loss(student.scores[0], teacher.scores[3], MASK, 1)
        torch.testing.assert_close(terms[name], expected)


def test_qkv_relation_by_hand():
    # One head of width 1: the relations of the tokens 0 and sqrt(log 3) are the products
    # (0, 0) and (0, log 3); the student's are all 0.
    teacher = torch.tensor([[[0.0], [math.sqrt(math.log(3))]]])
    value = qkv_relation_kl(
        (torch.zeros(1, 2, 1),) * 3, (teacher,) * 3, torch.tensor([[True, True]]), 1
    )
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert value.item() == pytest.approx(3 * expected / 2)


def test_masked_lm_by_hand():
    # Probabilities (3/4, 1/4) and (1/2, 1/2), of which the second is found at both places.
    logits = torch.tensor([[[math.log(3), 0.0], [1.0, 1.0], [9.0, 0.0]]])
    value = masked_lm(logits, torch.tensor([[1, 1, 1]]), torch.tensor([[True, True, False]]))
    assert value.item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_masked_lm_kl_by_hand():
    # (1/4, 3/4) against (1/2, 1/2) at the first place, equal at the second.
    teacher = torch.tensor([[[0.0, math.log(3)], [1.0, 1.0]]])
    value = masked_lm_kl(torch.zeros(1, 2, 2), teacher, torch.tensor([[True, True]]))
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert value.item() == pytest.approx(expected / 2)


def test_masked_lm_gradients_and_padding():
    logits, targets = states(1, 6).requires_grad_(), torch.arange(8).view(2, 4) % 6
    assert torch.autograd.gradcheck(lambda s: masked_lm(s, targets, MASK), (logits,))
    spoiled = spoil(logits.detach()).requires_grad_()
    value = masked_lm(spoiled, targets, MASK)
    value.sum().backward()
    torch.testing.assert_close(value, masked_lm(logits, targets, MASK))
    assert spoiled.grad[~MASK].abs().max() == 0
    torch.testing.assert_close(masked_lm(logits[1:, :2], targets[1:, :2], MASK[1:, :2]), value[1:])
    assert masked_lm(logits, targets, torch.zeros_like(MASK)).tolist() == [0, 0]


def test_relations_compare_any_widths_and_do_not_see_a_rotation_within_a_head():
    teacher = relations(5, 8)
    rotation, _ = torch.linalg.qr(states(9, 4, 1, 4)[0])
    student = tuple(
        torch.cat([x[..., :4] @ rotation, x[..., 4:] @ rotation.T], dim=-1) for x in teacher
    )
    torch.testing.assert_close(
        qkv_relation_kl(student, teacher, MASK, 2), torch.zeros(2, dtype=torch.float64)
    )
    assert (qkv_relation_kl(relations(1, 4), teacher, MASK, 2) > 0.01).all()


def test_relation_heads_must_divide_both_widths():
    with pytest.raises(KdscaleError, match=r"relation_heads: 3 does not divide the width 4"):
        qkv_relation_kl(relations(1, 4), relations(2, 6), MASK, 3)


@pytest.mark.parametrize("loss", [attention_mse, attention_kl])
def test_attention_terms_need_equal_heads(loss):
    with pytest.raises(KdscaleError, match=r"\(2\) as in the teacher \(3\)"):
        loss(scores(1), scores(2, heads=3), MASK)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    student, loss, teacher = LOSSES[name]
    student = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, MASK), (student,))


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name):
    student, loss, teacher = LOSSES[name]
    value = loss(student.bfloat16(), teacher.bfloat16(), MASK)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(student, teacher, MASK), rtol=0.05, atol=0.02)


def near(seed, width, apart):
    """A student and a teacher that has nearly converged to it: [2, 64, width], in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    teacher = 1.5 * torch.randn(2, 64, width, generator=generator)
    student = teacher + apart * torch.randn(2, 64, width, generator=generator)
    return student.bfloat16(), teacher.bfloat16()


def terms_of(captured, names, heads=4):
    """Each term of a student [2, 64, 64] and a teacher beside it, as a training step has them."""

    def intermediate(x):
        scores = Capture._scores(SimpleNamespace(_heads=heads), x, x, None)
        return SimpleNamespace(
            hidden=[x], embedding=x, qkv=[(x, x, x)], scores=[scores], windows=[None]
        )

    student, teacher = map(intermediate, captured)
    torch.manual_seed(0)
    projections = {name: nn.Linear(64, 64, bias=False) for name in ("hidden", "embedding")}
    for projection in projections.values():
        nn.init.eye_(projection.weight)
    mask = torch.ones(2, 64, dtype=torch.bool)
    return lm_terms(names, Compared(student, teacher, mask, [1], projections, heads))


@pytest.mark.parametrize("apart", [0.02, 0.2])
@pytest.mark.parametrize("name", INTERMEDIATE_LOSSES)
def test_autocast_rounds_no_comparison(name, apart):
    """Near convergence too: the loss of bfloat16 states, and its gradient, are those of float32."""
    student, teacher = near(1, 64, apart)

    def loss_and_gradient(x, y, autocast):
        x = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = terms_of((x, y), [name])[name].mean()
        assert loss.dtype == torch.float32
        return loss.item(), torch.autograd.grad(loss, x)[0].double().flatten()

    exact, expected = loss_and_gradient(student.float(), teacher.float(), False)
    loss, gradient = loss_and_gradient(student, teacher, True)
    assert loss == pytest.approx(exact, rel=1e-3)
    assert torch.cosine_similarity(gradient, expected, dim=0) > 0.999


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_nothing(name):
    student, loss, teacher = LOSSES[name]
    spoiled = spoil(student).requires_grad_()
    value = loss(spoiled, spoil(teacher), MASK)
    torch.testing.assert_close(value, loss(student, teacher, MASK))
    value.sum().backward()
    if student.dim() == 3:
        assert spoiled.grad[~MASK].abs().max() == 0
        cut = loss(student[1:, :2], teacher[1:, :2], MASK[1:, :2])
    else:
        cut = loss(student[1:, :, :2, :2], teacher[1:, :, :2, :2], MASK[1:, :2])
    torch.testing.assert_close(cut[0], value.detach()[1])


@pytest.mark.parametrize("name", LOSSES)
def test_equal_models_have_no_loss_and_padding_alone_none_either(name):
    student, loss, teacher = LOSSES[name]
    torch.testing.assert_close(loss(student, student, MASK), torch.zeros(2, dtype=torch.float64))
    assert loss(student, teacher, torch.zeros_like(MASK)).tolist() == [0, 0]


def intermediate(seed, layers, width, heads=2):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return SimpleNamespace(
        hidden=[draw(2, 4, width) for _ in range(layers)],
        embedding=draw(2, 4, width),
        qkv=[tuple(draw(2, 4, width) for _ in range(3)) for _ in range(layers)],
        scores=[draw(2, heads, 4, 4) for _ in range(layers)],
        windows=[None if n % 3 else 1 for n in range(layers)],
    )


def test_terms_follow_the_layer_map():
    student, teacher = intermediate(1, 2, 4), intermediate(2, 6, 6)
    torch.manual_seed(0)
    projections = nn.ModuleDict({n: nn.Linear(4, 6) for n in ("hidden", "embedding")})
    terms = lm_terms(
        list(INTERMEDIATE_LOSSES), Compared(student, teacher, MASK, [2, 5], projections, 2)
    )
    assert list(terms) == list(INTERMEDIATE_LOSSES)
    up = projections["hidden"]

    def mean_of(loss, ours, theirs):
        return (loss(ours[0], theirs[1], MASK) + loss(ours[1], theirs[4], MASK)) / 2

    raised = [up(h) for h in student.hidden]
    expected = {
        "hidden": mean_of(hidden_mse, raised, teacher.hidden),
        "cosine": mean_of(hidden_cosine, raised, teacher.hidden),
        "embedding": hidden_mse(
            projections["embedding"](student.embedding), teacher.embedding, MASK
        ),
        "attention": mean_of(attention_mse, student.scores, teacher.scores),
        "attention_kl": mean_of(attention_kl, student.scores, teacher.scores),
        "qkv": qkv_relation_kl(student.qkv[1], teacher.qkv[4], MASK, 2),
    }
    for name, value in expected.items():
        assert value.shape == (2,)
        torch.testing.assert_close(terms[name], value)


def test_only_the_terms_asked_for_are_computed():
    bare = SimpleNamespace(hidden=intermediate(1, 2, 4).hidden)
    terms = lm_terms(["hidden"], Compared(bare, bare, MASK, [1, 2], {"hidden": nn.Identity()}, 2))
    assert {name: value.tolist() for name, value in terms.items()} == {"hidden": [0, 0]}
