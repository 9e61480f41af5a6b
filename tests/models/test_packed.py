import itertools
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdscale.models import packed
from kdscale.models.encode import PairEncoder
from kdscale.models.packed import PackedRanker, can_pack, pack
from kdscale.models.ranker import Scorer, build_ranker
from tests.models.test_ranker import FAMILIES
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer, random_pairs


@torch.compiler.disable  # as opaque as the kernel: older releases cannot trace these loops
def attend_pair_by_pair(q, k, v, q_starts, k_starts, q_longest, k_longest):
    """What the kernel of CUDA does, where there is none."""
    assert max(q_starts.diff()) == q_longest and max(k_starts.diff()) == k_longest
    cuts = [list(itertools.pairwise(starts.tolist())) for starts in (q_starts, k_starts)]
    parts = [
        F.scaled_dot_product_attention(
            *(t[a:b].transpose(0, 1) for t, (a, b) in ((q, of_q), (k, of_k), (v, of_k)))
        )
        for of_q, of_k in zip(*cuts, strict=True)
    ]
    return torch.cat([part.transpose(0, 1) for part in parts])


@pytest.fixture
def pairs_and_encoder():
    encoder = PairEncoder(bert_tokenizer(), 32)
    texts = random_pairs(random.Random(3), 9, 30)  # the longest are cut
    return [tuple(encoder.tokenise(list(pair))) for pair in texts], encoder


def test_pairs_lie_end_to_end(pairs_and_encoder):
    pairs, encoder = pairs_and_encoder
    made, batch = pack(pairs, encoder), encoder.collate(pairs)
    mask = batch["attention_mask"].bool()
    assert torch.equal(made.ids.long(), batch["input_ids"][mask])
    assert torch.equal(made.types.long(), batch["token_type_ids"][mask])
    assert torch.equal(made.positions.long(), torch.arange(mask.shape[1]).expand_as(mask)[mask])
    assert made.starts.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert made.longest == mask.sum(1).max() == 32
    assert len(set(mask.sum(1).tolist())) > 2


@pytest.mark.parametrize("compiled", [False, True])
def test_logits_are_those_of_padded_pairs(pairs_and_encoder, monkeypatch, compiled):
    monkeypatch.setattr(packed, "attend", attend_pair_by_pair)
    pairs, encoder = pairs_and_encoder
    model = build_ranker(bert_encoder(), 0.0, 0).eval()
    scorer = Scorer(model, encoder, batch_tokens=64)
    expected = scorer.score(pairs)
    assert expected.std() > 1e-2
    scorer.packed = PackedRanker(model)
    if compiled:  # graphs run as they were taken: no compiler is needed
        scorer.packed.layer = torch.compile(scorer.packed.layer, dynamic=True, backend="eager")
    assert np.allclose(scorer.score(pairs), expected, atol=1e-5)


def test_a_cpu_and_other_models_stay_with_padding(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(packed, "varlen_attn", attend_pair_by_pair)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    rankers = {name: build_ranker(make(), 0.0, 0) for name, (make, _) in FAMILIES.items()}
    assert not can_pack(rankers.pop("bert"), cuda, "bf16")  # its heads are 6 wide
    rankers["bert"] = build_ranker(bert_encoder(hidden=32), 0.0, 0)
    assert [name for name, model in rankers.items() if can_pack(model, cuda, "bf16")] == ["bert"]
    assert not can_pack(rankers["bert"], cuda, "fp32")
    assert not can_pack(rankers["bert"], cpu, "bf16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not can_pack(rankers["bert"], cuda, "bf16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(packed, "varlen_attn", None)  # a torch that is older
    assert not can_pack(rankers["bert"], cuda, "bf16")
