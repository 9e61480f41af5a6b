"""Students whose embedding tables are narrower than their layers."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
)

from kdscale.config import Shape
from kdscale.errors import KdscaleError
from kdscale.evaluation.latency import count_parameters, forward_flops
from kdscale.models.capture import Capture
from kdscale.models.project import principal_basis
from kdscale.models.ranker import build_ranker
from kdscale.models.students import build_student
from kdscale.training.blocks import BlockBatch
from kdscale.training.intermediate import IntermediateLosses
from kdscale.training.modules import LmTraining
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer

VOCAB, H, E = len(bert_tokenizer()), 24, 8
WIDE = Shape("wide", layers=4, hidden=H, heads=4, intermediate=48, embedding=E)
NARROW = Shape("narrow", layers=2, hidden=12, heads=2, intermediate=20, embedding=E)
INITS = {"random": NARROW, "layers": WIDE, "svd": NARROW}


@pytest.fixture(scope="module")
def teacher():
    """Of 4 layers; its LayerNorm gains are as far from one as MiniLM's."""
    model = bert_encoder(layers=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        gain = model.embeddings.LayerNorm.weight
        gain.copy_(1 + 0.2 * torch.randn(H, generator=generator))
    return model


@pytest.fixture(scope="module")
def blocks():
    """Text in which few tokens are frequent, as in any."""
    generator = torch.Generator().manual_seed(2)
    weights = 1 / torch.arange(1.0, VOCAB - 4)
    return 5 + torch.multinomial(weights, 60 * 30, True, generator=generator).view(60, 30)


@torch.no_grad()
def states(model, ids):
    with Capture(model.eval(), hidden=True, embedding=True) as capture:
        model(ids)
    return [capture.embedding, *capture.hidden]


def electra(embedding):
    sizes = {"hidden_size": H, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = ElectraConfig(vocab_size=VOCAB, num_hidden_layers=4, embedding_size=embedding, **sizes)
    return ElectraModel(config).eval()


@pytest.mark.parametrize("init", INITS)
def test_parameters_by_hand(teacher, blocks, init):
    shape = INITS[init]
    h, i = shape.hidden, shape.intermediate
    student = build_student(shape, teacher, init, 0, blocks)
    tables = (VOCAB + 64 + 2) * E
    layer = 4 * (h * h + h) + 2 * h * i + i + h + 4 * h
    assert count_parameters(student) == (
        tables + 2 * E + (E * h + h) + shape.layers * layer,
        tables,
    )
    assert student.config.model_type == "electra" and student.training
    assert student.config._attn_implementation == "sdpa"


def test_flops_by_hand(teacher):
    ranker = build_ranker(build_student(NARROW, teacher, "random", 0), 0.0, 0)
    length, h, i = 10, NARROW.hidden, NARROW.intermediate
    layer = 8 * length * h * h + 4 * length * h * i + 4 * length * length * h
    head = 2 * h * h + 2 * h
    assert forward_flops(ranker, length) == 2 * layer + head + 2 * length * E * h


@pytest.mark.parametrize("init", INITS)
def test_it_reads_what_the_teacher_reads_and_is_saved_and_loaded(teacher, blocks, init, tmp_path):
    student = build_student(INITS[init], teacher, init, 0, blocks).eval()
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.arange(5, 69).unsqueeze(0)  # as long as the teacher can read
    types = (torch.arange(64) > 30).long().unsqueeze(0)
    torch.testing.assert_close(
        loaded(ids, token_type_ids=types)[0], student(ids, token_type_ids=types)[0]
    )


def test_the_width_of_the_layers_is_no_factorisation(teacher):
    shape = Shape("s", layers=2, hidden=12, heads=2, intermediate=20, embedding=12)
    assert build_student(shape, teacher, "random", 0).config.model_type == "bert"


def confined(teacher, rank):
    """The teacher with tables that lie in `rank` directions, and everything else as it was."""
    model = bert_encoder(layers=4)
    model.load_state_dict(teacher.state_dict())
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(H, rank, generator=generator)
    directions, _ = torch.linalg.qr(directions - directions.mean(0))
    with torch.no_grad():
        for name, p in model.embeddings.named_parameters():
            if "embeddings" in name:
                p.copy_(p @ directions @ directions.T)
    return model


def test_layers_are_the_teacher_where_its_tables_need_no_more_width(teacher, blocks):
    """BERT applies gain and bias after it normalises, ELECTRA a matrix: none is lost."""
    wide = confined(teacher, E - 1)
    student = build_student(WIDE, wide, "layers", 0, blocks[:40])
    # On text that was not fitted, of tokens and positions that were, and of the other type.
    ids = blocks[40:]
    for ours, theirs in zip(states(student, ids), states(wide, ids), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    types = torch.ones_like(ids)
    with torch.no_grad():
        ours, theirs = (m.eval()(ids, token_type_ids=types)[0] for m in (student, wide))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_svd_gives_the_first_layer_what_plain_svd_gives_it_or_better(teacher, blocks):
    """Narrow tables of a teacher that needs no more: what enters the first layer is basis^T of
    what enters the teacher's, where tables as wide as the states only approximate its gain."""
    wide = confined(teacher, E - 1)
    basis = principal_basis(wide, 12, blocks)
    plain = Shape("plain", layers=2, hidden=12, heads=2, intermediate=20)
    target = states(wide, blocks)[0] @ basis
    ours = states(build_student(NARROW, wide, "svd", 0, blocks), blocks)[0]
    theirs = states(build_student(plain, wide, "svd", 0, blocks), blocks)[0]
    torch.testing.assert_close(ours, target, atol=1e-4, rtol=1e-4)
    assert (theirs - target).norm() > 0.01 * target.norm()


def test_the_layers_of_svd_are_those_of_the_plain_student(teacher, blocks):
    plain = Shape("plain", layers=2, hidden=12, heads=2, intermediate=20)
    ours = build_student(NARROW, teacher, "svd", 0, blocks).encoder.state_dict()
    theirs = build_student(plain, teacher, "svd", 0, blocks).encoder.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def unlike(model, teacher, ids):
    """Of each layer's states, the part that is not the teacher's: 1 is no better than its mean."""
    parts = []
    for ours, theirs in zip(states(model, ids), states(teacher, ids), strict=True):
        spread = theirs - theirs.flatten(0, 1).mean(0)
        parts.append(((ours - theirs).norm() / spread.norm()).item())
    return parts


def test_a_third_of_the_width_reproduces_states_far_better_than_chance(teacher, blocks):
    """Of tables without any structure: a real model's lose less. The rival has the teacher's
    layers too, and only its embeddings are drawn."""
    train, held_out = blocks[:40], blocks[40:]
    fitted = build_student(WIDE, teacher, "layers", 0, train)
    drawn = build_student(WIDE, teacher, "random", 0)
    drawn.encoder.load_state_dict(teacher.encoder.state_dict())
    ours, chance = (unlike(model, teacher, held_out) for model in (fitted, drawn))
    assert all(a < 0.6 * b for a, b in zip(ours, chance, strict=True)), (ours, chance)
    assert ours[0] < 0.7


def test_frequent_tokens_are_kept_best(teacher, blocks):
    """The decomposition is of the text, not of the table, in which all tokens count alike."""
    student = build_student(WIDE, teacher, "layers", 0, blocks)
    table = teacher.embeddings.word_embeddings.weight.detach()
    table = table - table.mean(1, keepdim=True)
    plain = torch.linalg.svd(table, full_matrices=False).Vh[: E - 1]
    ids = blocks[:20]
    target = states(teacher, ids)[0].flatten(0, 1)
    with torch.no_grad():
        u = teacher.embeddings.word_embeddings(ids) + teacher.embeddings.token_type_embeddings(
            torch.zeros_like(ids)
        )
        u = (u + teacher.embeddings.position_embeddings.weight[:30]).flatten(0, 1)
        seen = F.normalize((u - u.mean(1, keepdim=True)) @ plain.T, dim=1)
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        best = seen @ torch.linalg.lstsq(seen, target).solution  # fitted on what it is judged by
    ours = states(student, ids)[0].flatten(0, 1)
    assert (ours - target).norm() < (best - target).norm()


def test_an_electra_teacher_hands_on_its_own_tables(blocks):
    teacher = electra(E)
    student = build_student(WIDE, teacher, "layers", 0, blocks)
    ids = blocks[:4]
    torch.testing.assert_close(student.eval()(ids)[0], teacher(ids)[0])
    assert build_student(NARROW, teacher, "random", 0).config.embedding_size == E


def test_an_electra_teacher_with_wide_tables_is_factorised(blocks):
    student = build_student(NARROW, electra(H), "svd", 0, blocks)
    assert student.embeddings_project.weight.shape == (12, E)


def test_the_embedding_term_compares_what_enters_the_first_layer(teacher, blocks):
    student = build_student(NARROW, teacher, "svd", 0, blocks)
    intermediate = IntermediateLosses(
        12, teacher, [2, 4], {"embedding": 1.0}, relation_heads=4, seed=0
    )
    module = LmTraining(student.eval(), intermediate)
    basis = principal_basis(teacher, 12, blocks)
    intermediate.start_projections(basis)
    batch = BlockBatch(blocks[:3], torch.ones_like(blocks[:3]))
    ours, theirs = states(student, blocks[:3])[0] @ basis.T, states(teacher, blocks[:3])[0]
    expected = ((ours - theirs) ** 2).mean((1, 2))
    terms = module(batch)
    torch.testing.assert_close(terms["embedding"], expected)
    terms["embedding"].mean().backward()
    assert student.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    assert student.embeddings_project.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_a_teacher_without_such_a_sibling_is_refused(kind):
    sizes = {"hidden_size": H, "num_attention_heads": 4, "intermediate_size": 48}
    teacher = {
        "roberta": lambda: RobertaModel(RobertaConfig(vocab_size=80, num_hidden_layers=1, **sizes)),
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(vocab_size=80, dim=H, n_layers=1, n_heads=4, hidden_dim=48)
        ),
    }[kind]()
    with pytest.raises(KdscaleError, match=f"needs a BERT or ELECTRA teacher, not a {kind}"):
        build_student(NARROW, teacher, "random", 0)


def test_tables_that_fit_neither_way(blocks):
    with pytest.raises(KdscaleError, match="embeddings are 8 wide, the teacher's 16"):
        build_student(WIDE, electra(16), "layers", 0, blocks)
    with pytest.raises(KdscaleError, match="embeddings are 24 wide, the teacher's 16"):
        whole = Shape("s", layers=4, hidden=H, heads=4, intermediate=48)
        build_student(whole, electra(16), "layers", 0, blocks)
