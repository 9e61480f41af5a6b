import copy

import numpy as np
import pytest
import torch

from kdscale.config import Train
from kdscale.losses.lm import masked_lm, masked_lm_kl
from kdscale.models.mlm import MaskedLmHead, states_at
from kdscale.store import LocalWorkspace
from kdscale.training.blocks import MaskedBatch
from kdscale.training.engines import TorchEngine
from kdscale.training.intermediate import IntermediateLosses
from kdscale.training.loop import Hooks, train_loop
from kdscale.training.masked_lm import MaskedLm, train_head
from kdscale.training.modules import LmTraining
from tests.worlds.tiny_models import bert_encoder

CPU = torch.device("cpu")


class Blocks:
    """A block repeats one of two words, so a hidden one can be told from those beside it."""

    lengths = np.full(16, 8)

    def collate(self, items, epoch):
        whole = torch.stack([torch.full((8,), 10 + 10 * (i % 2)) for i in items.tolist()])
        places = torch.tensor([[2, 5]] * len(items))
        return MaskedBatch(
            input_ids=whole.scatter(1, places, 4),
            attention_mask=torch.ones_like(whole),
            places=places,
            targets=whole.gather(1, places),
            chosen=torch.ones_like(places, dtype=torch.bool),
        )


def _batch():
    batch = Blocks().collate(np.arange(3), 0)
    batch.chosen[0, 1] = False
    return batch


def _wide():
    return bert_encoder(hidden=32, intermediate=64)


def _narrow():
    return bert_encoder(seed=1, layers=1, hidden=16, intermediate=32)


def _module(losses, student, teacher, teacher_head=None):
    intermediate = IntermediateLosses(student.config.hidden_size, teacher, [2], losses, 2, seed=0)
    return LmTraining(student, intermediate, MaskedLm(student, teacher_head, losses, seed=0))


def test_the_terms_are_of_the_masked_places():
    student, teacher, batch = _narrow(), _wide(), _batch()
    teacher_head = MaskedLmHead(teacher, seed=5).requires_grad_(False)
    losses = ["hidden", "mlm", "mlm_kl"]
    module = _module(losses, student, teacher, teacher_head)
    terms = module(batch)
    assert set(terms) == set(losses) and all(t.shape == (3,) for t in terms.values())
    inputs = batch.inputs
    ours = states_at(module.masked.head(student(**inputs)[0]), batch.places)
    theirs = states_at(teacher_head(teacher(**inputs)[0]), batch.places)
    torch.testing.assert_close(terms["mlm"], masked_lm(ours, batch.targets, batch.chosen))
    torch.testing.assert_close(terms["mlm_kl"], masked_lm_kl(ours, theirs, batch.chosen))


def test_the_students_head_is_trained_along_and_the_teachers_is_not():
    student, teacher = _narrow(), _wide()
    teacher_head = MaskedLmHead(teacher, seed=5).requires_grad_(False)
    module = _module(["mlm_kl"], student, teacher, teacher_head)
    module(_batch())["mlm_kl"].mean().backward()
    assert module.masked.head.dense.weight.grad.abs().sum() > 0
    assert student.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert all(p.grad is None for m in (teacher, teacher_head) for p in m.parameters())
    beside = {n for n in module.state_dict() if not n.startswith("student.")}
    assert beside == {f"masked.head.{n}" for n in module.masked.head.state_dict()}


def test_a_student_that_is_its_teacher_has_no_divergence():
    student, teacher = _wide(), _wide()
    module = _module(["mlm_kl"], student, teacher)
    module.masked = MaskedLm(student, MaskedLmHead(teacher, seed=0), ["mlm_kl"], seed=0)
    assert module(_batch())["mlm_kl"].abs().max() < 1e-6


def test_a_hard_loss_alone_does_not_run_the_teacher():
    teacher, ran = _wide(), []
    teacher.register_forward_pre_hook(lambda *_: ran.append(1))
    terms = _module(["mlm"], _narrow(), teacher)(_batch())
    assert list(terms) == ["mlm"] and ran == []
    _module(["mlm", "hidden"], _narrow(), teacher)(_batch())
    assert ran == [1]


def test_a_head_learns_on_a_frozen_encoder_and_always_the_same():
    train = Train(lr=0.03, batch_size=8, checkpoint_every=7, log_every=1)
    encoder = _wide()
    before = copy.deepcopy(encoder.state_dict())
    heads, losses = [], []
    for _ in range(2):
        torch.manual_seed(np.random.default_rng().integers(1000))
        head = MaskedLmHead(encoder, seed=0)
        losses.append(train_head(encoder, head, Blocks(), train, 25, 3, CPU))
        heads.append(head.state_dict())
    assert losses[0] == losses[1] < 0.3  # of two words: guessing would be 0.69
    assert all(torch.equal(heads[0][name], value) for name, value in heads[1].items())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert not any(p.requires_grad for p in head.parameters())


def test_a_stopped_run_goes_on_with_its_projections_and_its_head(tmp_path):
    weights = {"hidden": 1.0, "mlm": 1.0, "mlm_kl": 1.0}
    train = Train(max_steps=6, lr=0.01, batch_size=8, checkpoint_every=2, log_every=1)

    def run(name, stop_at=None):
        student, teacher = _narrow(), _wide()
        module = _module(weights, student, teacher, MaskedLmHead(teacher, seed=5))
        rows = []

        def log(row):
            rows.append(row)
            if row["step"] == stop_at:
                raise KeyboardInterrupt

        train_loop(
            module=module,
            engine=TorchEngine(module, train, CPU),
            source=Blocks(),
            train=train,
            weights=weights,
            seed=1,
            workspace=LocalWorkspace(tmp_path / name),
            log=tmp_path / f"{name}.jsonl",
            hooks=Hooks(log, lambda line: None),
        )
        return module.state_dict(), rows

    whole, _ = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop_at=5)
    resumed, rows = run("stopped")
    assert [row["step"] for row in rows] == [5, 6] and set(rows[0]["terms"]) == set(weights)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("losses", [["mlm"], ["mlm_kl"]])
def test_half_precision(losses):
    student, teacher = _narrow(), _wide()
    module = _module(losses, student, teacher, MaskedLmHead(teacher, seed=1))
    whole = module(_batch())
    with torch.autocast("cpu", torch.bfloat16):
        half = module(_batch())
    assert half[losses[0]].dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.05)
