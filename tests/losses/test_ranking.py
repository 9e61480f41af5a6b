import math

import pytest
import torch

from kdscale.losses import HARD_LOSSES, RANKING_LOSSES, SOFT_LOSSES
from kdscale.losses.ranking import (
    bce,
    lambdaloss,
    lce,
    listnet,
    listwise_kl,
    margin_mse,
    pointwise_bce,
    pointwise_mse,
    ranknet,
)

ALL = list(RANKING_LOSSES)
NO_PADDING = torch.ones(1, 3, dtype=torch.bool)


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def group(seed=0, batch=3, size=5):
    """Scores, teacher, labels (positive first) and a mask with padding of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    teacher = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    labels = torch.zeros(batch, size, dtype=torch.int64)
    labels[:, 0] = 1
    mask = torch.arange(size) < torch.tensor([[size], [size - 1], [2]])
    return scores, teacher, labels, mask


def softplus(x):
    return math.log(1 + math.exp(x))


def test_lce_by_hand():
    value = lce(row(2.0, 1.0, 0.0), torch.tensor([[1, 0, 0]]), NO_PADDING)
    assert value.item() == pytest.approx(-2 + math.log(math.e**2 + math.e + 1))


def test_lce_of_two_relevant_passages_contrasts_each_with_the_negatives_only():
    value = lce(row(2.0, 1.0, 0.0), torch.tensor([[1, 3, 0]]), NO_PADDING)
    assert value.item() == pytest.approx((softplus(-2) + softplus(-1)) / 2)


def test_bce_by_hand():
    value = bce(row(2.0, -1.0, 0.0), torch.tensor([[2, 0, 0]]), NO_PADDING)
    assert value.item() == pytest.approx((softplus(-2) + softplus(-1) + math.log(2)) / 3)


def test_listnet_by_hand():
    # Grades 0, log 3, 0 are the probabilities 1/5, 3/5, 1/5; the student's are all 1/3.
    grades = row(0.0, math.log(3), 0.0)
    value = listnet(row(2.0, 2.0, 2.0), grades, NO_PADDING)
    assert value.item() == pytest.approx(math.log(3))
    value = listnet(row(0.0, math.log(2), 0.0), grades, NO_PADDING)
    expected = 2 / 5 * math.log(4) + 3 / 5 * math.log(2)
    assert value.item() == pytest.approx(expected)


def test_listnet_on_a_teachers_scores_would_be_listwise_kl():
    scores, teacher, _, mask = group()
    scores.requires_grad_()
    (ours,) = torch.autograd.grad(listnet(scores, teacher, mask).sum(), scores)
    (theirs,) = torch.autograd.grad(listwise_kl(scores, teacher, mask).sum(), scores)
    torch.testing.assert_close(ours, theirs)


def test_lambdaloss_by_hand():
    # Grades 2 and 1 on the student's ranks 3 and 1, and a 0 on rank 2. 1/D of the ranks 1 to 3 is
    # 1, a and 1/2; the best DCG is 3 * 1 + 1 * a.
    a, mu = 1 / math.log2(3), 10
    value = lambdaloss(row(0.0, 2.0, 1.0), torch.tensor([[2, 1, 0]]), NO_PADDING)
    one, two = 1 - a, a - 1 / 2  # delta of neighbours, and of ranks two apart
    expected = (
        (1 - 1 / 2 + mu * two) * (3 - 1) * softplus(2)
        + (a - 1 / 2 + mu * one) * (3 - 0) * softplus(1)
        + (1 - a + mu * one) * (1 - 0) * softplus(-1)
    ) / ((3 + a) * math.log(2))
    assert value.item() == pytest.approx(expected)


def test_lambdaloss_bounds_what_is_lacking_to_the_best_ndcg():
    for seed in range(5):
        scores, _, _, mask = group(seed)
        grades = torch.randint(0, 4, scores.shape, generator=torch.Generator().manual_seed(seed))
        gains = torch.where(mask, 2.0**grades - 1, 0)
        order = scores.masked_fill(~mask, -math.inf).argsort(1, descending=True)
        discounts = torch.log2(torch.arange(2, 7).double())
        dcg = (gains.gather(1, order) / discounts).sum(1)
        best = (gains.sort(1, descending=True).values / discounts).sum(1)
        lacking = 1 - dcg / best.clamp(min=1e-9)
        value = lambdaloss(scores, grades, mask)
        assert (value >= torch.where(best > 0, lacking, 0) - 1e-9).all()


def test_pointwise_mse_by_hand():
    assert pointwise_mse(row(1.0, 2.0, 5.0), row(0.0, 4.0, 5.0), NO_PADDING).item() == 5 / 3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_pointwise_bce_by_hand(temperature):
    # The teacher's probabilities are 3/4 and 1/2, the student's 1/4 and 1/2.
    log3 = math.log(3) * temperature
    mask = torch.ones(1, 2, dtype=torch.bool)
    value = pointwise_bce(row(-log3, 0.0), row(log3, 0.0), mask, temperature)
    first = -3 / 4 * math.log(1 / 4) - 1 / 4 * math.log(3 / 4)
    assert value.item() == pytest.approx((first + math.log(2)) / 2 * temperature**2)


def test_margin_mse_by_hand():
    # Margins of the student 2 - 1 = 1 and 2 - 0 = 2, of the teacher 5 - 1 = 4 and 5 - 3 = 2.
    value = margin_mse(
        row(2.0, 1.0, 0.0), row(5.0, 1.0, 3.0), torch.tensor([[1, 0, 0]]), NO_PADDING
    )
    assert value.item() == pytest.approx((9 + 0) / 2)


def test_margin_mse_does_not_see_a_shift_of_the_student():
    scores, teacher, labels, mask = group()
    same = margin_mse(scores + 7, teacher, labels, mask)
    torch.testing.assert_close(same, margin_mse(scores, teacher, labels, mask))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_listwise_kl_by_hand(temperature):
    student, teacher = [1.0, 0.0, -1.0], [0.0, 2.0, 1.0]

    def softmax(logits):
        powers = [math.exp(x / temperature) for x in logits]
        return [p / sum(powers) for p in powers]

    p, q = softmax(teacher), softmax(student)
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) * temperature**2
    value = listwise_kl(row(*student), row(*teacher), NO_PADDING, temperature)
    assert value.item() == pytest.approx(expected)


def test_ranknet_by_hand():
    # The teacher puts 1 above 0 and above 2, and ties 0 with 2.
    value = ranknet(row(0.0, 1.0, 3.0), row(1.0, 2.0, 1.0), NO_PADDING)
    assert value.item() == pytest.approx((softplus(0 - 1) + softplus(3 - 1)) / 2)


@pytest.mark.parametrize("name", ["pointwise_mse", "margin_mse", "listwise_kl"])
def test_a_student_equal_to_its_teacher_has_no_loss(name):
    scores, _, labels, mask = group()
    value = RANKING_LOSSES[name](scores, scores.clone(), labels, mask, 1.0)
    torch.testing.assert_close(value, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("name", ALL)
def test_gradients(name):
    scores, teacher, labels, mask = group()
    scores.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: RANKING_LOSSES[name](s, teacher, labels, mask, 1.5), (scores,)
    )


@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing(name):
    scores, teacher, labels, mask = group()
    padded = []
    for tensor, fill in ((scores, 1e4), (teacher, -1e4), (labels, 1)):
        tensor = torch.where(mask, tensor, torch.full_like(tensor, fill))
        extra = torch.full((3, 2), fill, dtype=tensor.dtype)
        padded.append(torch.cat([tensor, extra], dim=1))
    wide_mask = torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    wide = padded[0].requires_grad_()
    value = RANKING_LOSSES[name](wide, padded[1], padded[2], wide_mask, 1.0)
    torch.testing.assert_close(value, RANKING_LOSSES[name](scores, teacher, labels, mask, 1.0))
    value.sum().backward()
    assert wide.grad[~wide_mask].abs().max() == 0
    for i, length in enumerate(mask.sum(1)):
        one = [t[i : i + 1, :length] for t in (scores, teacher, labels, mask)]
        torch.testing.assert_close(RANKING_LOSSES[name](*one, 1.0)[0], value.detach()[i])


@pytest.mark.parametrize("name", ALL)
def test_a_group_of_padding_alone_gives_zero_and_no_nan(name):
    scores, teacher, labels, mask = (t[:1] for t in group())
    scores.requires_grad_()
    value = RANKING_LOSSES[name](scores, teacher, labels, torch.zeros_like(mask), 1.0)
    value.sum().backward()
    assert value.item() == 0 and scores.grad.abs().max() == 0


@pytest.mark.parametrize("name", sorted(set(ALL) - {"bce", "pointwise_mse", "pointwise_bce"}))
def test_one_passage_gives_nothing_to_compare(name):
    value = RANKING_LOSSES[name](
        row(3.0), row(-1.0), torch.tensor([[1]]), torch.ones(1, 1, dtype=torch.bool), 1.0
    )
    assert value.item() == 0


@pytest.mark.parametrize("name", ["lce", "margin_mse", "listnet", "lambdaloss"])
@pytest.mark.parametrize("label", [0, 1])
def test_only_negatives_or_only_positives(name, label):
    scores = row(3.0, 1.0, 2.0).requires_grad_()
    labels = torch.full((1, 3), label)
    value = RANKING_LOSSES[name](scores, row(0.0, 5.0, 1.0), labels, NO_PADDING, 1.0)
    value.sum().backward()
    assert value.item() == 0 and scores.grad.abs().max() == 0


def test_all_equal_scores():
    equal, labels = row(0.5, 0.5, 0.5), torch.tensor([[1, 0, 0]])
    assert lce(equal, labels, NO_PADDING).item() == pytest.approx(math.log(3))
    assert ranknet(row(3.0, 1.0, 2.0), equal, NO_PADDING).item() == 0
    assert ranknet(equal, row(3.0, 1.0, 2.0), NO_PADDING).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ALL)
def test_extreme_scores_stay_finite(name):
    scores = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0]])
    value = RANKING_LOSSES[name](scores, teacher, torch.tensor([[1, 0, 0]]), NO_PADDING, 1.0)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(scores.grad).all()


def test_which_losses_need_a_teacher():
    scores, teacher, labels, mask = group()
    assert sorted(ALL) == sorted(HARD_LOSSES + SOFT_LOSSES)
    for name in ALL:
        if name in SOFT_LOSSES:
            other = RANKING_LOSSES[name](scores, teacher.flip(1), labels, mask, 1.0)
            assert not torch.equal(other, RANKING_LOSSES[name](scores, teacher, labels, mask, 1.0))
        else:
            RANKING_LOSSES[name](scores, None, labels, mask, 1.0)


@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_no_loss_of_scores(name):
    scores, teacher, labels, mask = group()
    scores, teacher = (8 * x.float() for x in (scores, teacher))
    expected = RANKING_LOSSES[name](scores, teacher, labels, mask, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(RANKING_LOSSES[name](scores, teacher, labels, mask, 2.0), expected)
