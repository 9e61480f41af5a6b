import os

import numpy as np
import pytest
import torch

from kdscale.evaluation.latency import Timings, cpu_threads, hardware, measure_latency, speedup
from kdscale.models.encode import PairEncoder
from kdscale.models.ranker import build_ranker
from kdscale.progress import Reporter
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer

REQUESTS = [(f"river w{n}", [f"bank w{i} w{n} tax" for i in range(6)]) for n in range(4)]


def ranker(**shape):
    return build_ranker(bert_encoder(**shape), seed=1, dropout=0.0).eval(), PairEncoder(
        bert_tokenizer(), 16
    )


def measure(rankers, requests=REQUESTS, threads=1):
    with Reporter().task("latency") as task:
        timings = measure_latency(rankers, requests, threads, task)
        assert task.completed == len(rankers) * len(requests)
    return timings


def test_rankers_take_turns_after_a_warm_up():
    rankers, order, threads = {"a": ranker(), "b": ranker(), "c": ranker()}, [], []
    for name, (model, _) in rankers.items():

        def note(module, inputs, output, name=name):
            order.append(name)
            threads.append(torch.get_num_threads())

        model.register_forward_hook(note)
    before = torch.get_num_threads()
    timings = measure(rankers, threads=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert set(threads) == {1} and torch.get_num_threads() == before
    for of_ranker in timings.values():
        assert of_ranker.tokenise_ms.shape == of_ranker.forward_ms.shape == (4,)
        assert (of_ranker.tokenise_ms > 0).all() and (of_ranker.forward_ms > 0).all()


def test_a_much_larger_ranker_is_slower():
    rankers = {
        "large": ranker(layers=8, hidden=256, intermediate=1024),
        "small": ranker(layers=1, hidden=24),
    }
    timings = measure(rankers)
    assert speedup(timings["large"].forward_ms, timings["small"].forward_ms) > 2


def test_summary_by_hand():
    timings = Timings(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([10.0, 30.0, 20.0, 50.0, 40.0]))
    summary = timings.summary()
    assert summary["tokenise_ms"] == {"median": 3.0, "p95": 4.8}  # 4 + 0.8 of the way to 5
    assert summary["forward_ms"] == {"median": 30.0, "p95": 48.0}
    assert summary["total_ms"]["median"] == 32.0  # of 11, 32, 23, 54, 45
    assert speedup(np.array([8.0, 9.0, 100.0]), np.array([3.0, 2.0, 1.0])) == 4.5


@pytest.mark.parametrize("value", [None, "true"])
def test_threads_are_put_back_even_after_an_error(monkeypatch, value):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if value is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", value)
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stop"), cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        raise RuntimeError("stop")
    assert torch.get_num_threads() == before
    assert os.environ.get("TOKENIZERS_PARALLELISM") == value


def test_hardware_is_stated():
    facts = hardware()
    assert facts["cpu"] and facts["cores"] >= 1 and facts["torch"] == torch.__version__
