import json
import math
import shutil
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from kdscale.config import Train
from kdscale.store import LocalWorkspace, open_store
from kdscale.training.batches import Batch, BatchOrder
from kdscale.training.engines import TorchEngine
from kdscale.training.loop import Hooks, learning_rate, total_steps, train_loop
from kdscale.training.metrics import batch_digest
from tests.faults.proxy import FaultProxy


@dataclass(frozen=True)
class Points(Batch):
    x: torch.Tensor


class Numbers:
    """Items are numbers; the module learns to double them."""

    def __init__(self, count=24):
        self.values = torch.linspace(-1, 1, count)
        self.lengths = np.full(count, 10)

    def collate(self, items, epoch):
        return Points(self.values[torch.as_tensor(items)].unsqueeze(1))


class Doubler(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(1, 1)
        self.fail_at = self.fail_once = None
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        if self.calls == self.fail_at:
            while self.fail_once and not self.fail_once.exists():
                time.sleep(0.01)
            raise KeyboardInterrupt
        error = (self.linear(batch.x) - 2 * batch.x).squeeze(1)
        return {"square": error**2, "absolute": error.abs()}


def _never(engine):
    return False


def _fresh(scratch):
    """What a new process of a run finds: its workspace, and nothing else."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch


def _run(tmp_path, train, module=None, weights=None, notice=_never, said=None, **changes):
    rows, said = [], [] if said is None else said
    workspace = changes.get("workspace", LocalWorkspace(tmp_path / "work"))
    module = module or Doubler()
    facts = train_loop(
        module=module,
        engine=TorchEngine(module, train, torch.device("cpu")),
        source=Numbers(),
        train=train,
        weights=weights or {"square": 1.0},
        seed=1,
        workspace=workspace,
        log=_fresh(tmp_path / "scratch") / "metrics.jsonl",
        hooks=Hooks(changes.get("log", rows.append), said.append, notice),
    )
    return module, facts, rows


def _log(tmp_path):
    text = (tmp_path / "scratch" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_it_learns_and_logs(tmp_path):
    train = Train(epochs=20, batch_size=6, lr=0.1, log_every=20)
    module, facts, rows = _run(tmp_path, train, weights={"square": 2.0, "absolute": 0.5})
    assert facts["steps"] == 80 and facts["items_seen"] == 480
    assert module.linear.weight.item() == pytest.approx(2.0, abs=0.05)
    assert [row["step"] for row in rows] == [20, 40, 60, 80]
    last = rows[-1]
    terms = last["terms"]
    assert last["loss"] == pytest.approx(2.0 * terms["square"] + 0.5 * terms["absolute"])
    assert last["epoch"] == 20.0 and last["grad_norm"] >= 0.0
    assert _log(tmp_path) == rows


def test_micro_batches_change_nothing(tmp_path):
    whole, _, _ = _run(tmp_path / "a", Train(epochs=2, batch_size=6, lr=0.1))
    cut, _, _ = _run(tmp_path / "b", Train(epochs=2, batch_size=6, lr=0.1, micro_tokens=20))
    assert torch.allclose(whole.linear.weight, cut.linear.weight, atol=1e-6)
    assert torch.allclose(whole.linear.bias, cut.linear.bias, atol=1e-6)


def test_a_stopped_run_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path):
    train = Train(epochs=4, batch_size=6, lr=0.1, checkpoint_every=3, log_every=1)
    whole, _, rows = _run(tmp_path / "a", train)
    stopped = Doubler()
    stopped.fail_at = 9  # in the ninth step, when the checkpoint of the sixth is published
    stopped.fail_once = tmp_path / "b" / "work" / "step-000000006"
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "b", train, stopped)
    resumed, facts, _ = _run(tmp_path / "b", train)
    assert facts["resumed_at"] == 6
    assert torch.equal(whole.linear.weight, resumed.linear.weight)
    written = _log(tmp_path / "b")
    assert [row["step"] for row in written] == list(range(1, 17))
    assert [row["loss"] for row in written] == [row["loss"] for row in rows]
    assert [row["batches"] for row in written] == [row["batches"] for row in rows]


def test_the_log_names_every_batch_once(tmp_path):
    train = Train(epochs=4, batch_size=6, lr=0.1, checkpoint_every=6, log_every=4)
    _, _, rows = _run(tmp_path, train)
    order = BatchOrder(Numbers().lengths, 6, seed=1)
    assert [row["step"] for row in rows] == [4, 6, 8, 12, 16]  # a checkpoint closes a row
    assert [digest for row in rows for digest in row["batches"]] == [
        batch_digest(order.batch(step)[1]) for step in range(16)
    ]
    assert len({digest for row in rows for digest in row["batches"]}) == 16


def test_a_notice_makes_a_checkpoint_at_once(tmp_path):
    train = Train(epochs=4, batch_size=6, lr=0.1, checkpoint_every=0)
    stopped = Doubler()
    stopped.fail_at = 9
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, train, stopped, notice=lambda engine: stopped.calls == 5)
    assert LocalWorkspace(tmp_path / "work").names() == ["step-000000005"]
    said = []
    resumed, facts, _ = _run(tmp_path, train, said=said)
    assert facts["resumed_at"] == 5 and said == ["resumed from the checkpoint of step 5 of 16"]
    whole, _, _ = _run(tmp_path / "whole", train)
    assert torch.equal(whole.linear.weight, resumed.linear.weight)


def test_a_damaged_newest_checkpoint_is_told_of_and_passed_over(tmp_path):
    train = Train(epochs=4, batch_size=6, lr=0.1, checkpoint_every=3, log_every=1)
    whole, _, rows = _run(tmp_path / "whole", train)
    stopped = Doubler()
    stopped.fail_at = 9
    stopped.fail_once = tmp_path / "work" / "step-000000006"
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, train, stopped)
    path = stopped.fail_once / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    said = []
    resumed, facts, _ = _run(tmp_path, train, said=said)
    assert facts["resumed_at"] == 3
    assert "a damaged checkpoint is passed over" in said[0] and "optimizer.safetensors" in said[0]
    assert torch.equal(whole.linear.weight, resumed.linear.weight)
    assert [row["loss"] for row in _log(tmp_path)] == [row["loss"] for row in rows]
    # The damaged piece did not stand in the way of the sound one of its step.
    assert LocalWorkspace(tmp_path / "work").names() == ["step-000000012", "step-000000015"]


def test_training_goes_on_while_a_checkpoint_is_sent_to_a_store_that_is_away(
    tmp_path, s3_server, monkeypatch
):
    train = Train(epochs=10, batch_size=6, lr=0.1, checkpoint_every=15, log_every=1)
    whole, _, rows = _run(tmp_path / "whole", train)
    uri = f"s3://{s3_server.bucket}/behind-a-proxy"
    there = open_store(uri).workspace("teachers", "k")
    published = {}  # step -> the checkpoints that are in the store then
    with FaultProxy(s3_server.endpoint, rate=0.0) as proxy:

        def log(row):
            published[row["step"]] = there.names()
            if row["step"] == 15:
                proxy.go_away(2)

        assert there.names() == []  # by the way that is not broken
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        sent = open_store(uri).workspace("teachers", "k")
        assert sent.names() == []
        trained, _, _ = _run(tmp_path, train, workspace=sent, log=log)
        assert proxy.refused > 0
        resumed, facts, _ = _run(tmp_path / "again", train, workspace=sent)
    assert published[30] == []  # fifteen steps later, and the next one waits
    assert "step-000000015" in published[31]
    assert facts["resumed_at"] == 30
    for module in (trained, resumed):
        assert torch.equal(whole.linear.weight, module.linear.weight)
    assert [row["loss"] for row in _log(tmp_path / "again")] == [row["loss"] for row in rows]


def test_a_checkpoint_that_cannot_be_published_stops_the_run_at_the_next(tmp_path):
    (tmp_path / "work").write_text("no folder")
    train = Train(epochs=4, batch_size=6, lr=0.1, checkpoint_every=3, log_every=1)
    rows = []
    with pytest.raises(FileExistsError):
        _run(tmp_path, train, log=rows.append)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(FileExistsError):  # at the end of the run
        _run(tmp_path, Train(epochs=4, batch_size=6, checkpoint_every=15))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    module = Doubler()
    module.linear.weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 10"):
        _run(tmp_path, Train(epochs=4, batch_size=6), module)


def test_the_learning_rate_by_hand():
    train = Train(lr=1.0, warmup=0.2)
    rates = [learning_rate(train, step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:] == pytest.approx([1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_steps_from_epochs_or_as_given():
    assert total_steps(Train(epochs=0.5), 100) == 50
    assert total_steps(Train(epochs=3, max_steps=7), 100) == 7
    assert total_steps(Train(epochs=0.001), 100) == 1
