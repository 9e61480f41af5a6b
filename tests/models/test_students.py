import pytest
import torch
from transformers import (
    AutoModel,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
)

from kdscale.config import Shape
from kdscale.errors import KdscaleError
from kdscale.models.capture import Capture
from kdscale.models.project import principal_basis
from kdscale.models.ranker import build_ranker
from kdscale.models.students import build_student, spread_layers
from tests.worlds.tiny_models import bert_encoder, bert_tokenizer

NARROW = Shape("narrow", layers=2, hidden=12, heads=2, intermediate=20)
INITS = ["random", "svd"]


@pytest.fixture(scope="module")
def teacher():
    return bert_encoder(layers=4)  # 24 wide, 4 heads, 48 neurons


@pytest.fixture(scope="module")
def blocks():
    generator = torch.Generator().manual_seed(2)
    return torch.randint(5, len(bert_tokenizer()), (40, 30), generator=generator)


def same_shape(**changes):
    return Shape(
        **{"name": "s", "layers": 4, "hidden": 24, "heads": 4, "intermediate": 48} | changes
    )


def count(model):
    return sum(p.numel() for p in model.parameters())


def bert_parameters(vocab, positions, layers, hidden, intermediate):
    embeddings = (vocab + positions + 2) * hidden + 2 * hidden
    attention = 4 * (hidden * hidden + hidden)
    ffn = 2 * hidden * intermediate + intermediate + hidden
    pooler = hidden * hidden + hidden
    return embeddings + layers * (attention + ffn + 4 * hidden) + pooler


@pytest.mark.parametrize("init", INITS)
def test_parameters_of_a_shape(teacher, blocks, init):
    student = build_student(NARROW, teacher, init, 0, blocks)
    assert count(student) == bert_parameters(len(bert_tokenizer()), 64, 2, 12, 20)
    assert student.config._attn_implementation == "sdpa" and student.training


@pytest.mark.parametrize("init", INITS)
def test_it_depends_on_the_seed_alone(teacher, blocks, init):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (
        build_student(NARROW, teacher, init, seed, blocks).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)  # with svd: the pooler


def test_random_init_has_the_spread_of_the_configuration(teacher):
    student = build_student(same_shape(), teacher, "random", 0)
    table = student.embeddings.word_embeddings.weight[1:]
    assert table.std().item() == pytest.approx(teacher.config.initializer_range, rel=0.05)


def test_it_reads_the_teachers_input_and_is_saved_and_loaded(teacher, blocks, tmp_path):
    student = build_student(NARROW, teacher, "svd", 0, blocks).eval()
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    ids = torch.arange(5, 69).unsqueeze(0)  # as long as the teacher can read
    torch.testing.assert_close(loaded(ids)[0], student(ids)[0])


def test_a_pooler_only_if_the_teacher_has_one(teacher):
    bare = BertModel(teacher.config, add_pooling_layer=False)
    assert build_student(NARROW, bare, "random", 0).pooler is None
    assert build_student(NARROW, teacher, "random", 0).pooler is not None


def test_dropout(teacher):
    for dropout in (0.0, 0.3):
        student = build_student(NARROW, teacher, "random", 0, dropout=dropout)
        assert {m.p for m in student.modules() if isinstance(m, torch.nn.Dropout)} == {dropout}


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(2, 6, [3, 6]), (3, 12, [4, 8, 12]), (4, 6, [2, 3, 5, 6]), (3, 2, [1, 2, 2]), (1, 1, [1])],
)
def test_layers_are_spread_to_the_last(student, teacher, expected):
    assert spread_layers(student, teacher) == expected


@pytest.mark.parametrize("numbers", [[], [1], [0, 2], [1, 5]])
def test_a_layer_map_that_does_not_fit(teacher, numbers):
    with pytest.raises(KdscaleError, match=r"lm\.layer_map: .* from 1 to 4, .* 2 layers"):
        build_student(NARROW, teacher, "random", 0, layer_map=numbers)


def test_layers_are_copied_by_the_map(teacher):
    student = build_student(same_shape(layers=2), teacher, "layers", 0)
    chosen = build_student(same_shape(layers=2), teacher, "layers", 0, layer_map=[1, 3])
    for model, numbers in ((student, (2, 4)), (chosen, (1, 3))):
        for layer, number in zip(model.encoder.layer, numbers, strict=True):
            source = teacher.encoder.layer[number - 1].state_dict()
            assert all(torch.equal(v, source[k]) for k, v in layer.state_dict().items())
    assert torch.equal(student.pooler.dense.weight, teacher.pooler.dense.weight)


@pytest.mark.parametrize("init", ["layers", "svd"])
def test_the_teachers_own_shape_gives_the_teacher(teacher, blocks, init):
    student = build_student(same_shape(), teacher, init, 0, blocks).eval()
    with torch.no_grad():
        ours, theirs = student(blocks)[0], teacher(blocks)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_svd_at_the_teachers_width_keeps_the_inner_products_of_the_embeddings(teacher, blocks):
    student = build_student(
        same_shape(layers=1, heads=2, intermediate=8), teacher, "svd", 0, blocks
    )
    ours, theirs = (m.embeddings(blocks[:2]).detach() for m in (student.eval(), teacher))
    torch.testing.assert_close(ours @ ours.mT, theirs @ theirs.mT)


def low_rank(teacher, rank):
    """The teacher with all that writes to its stream confined to `rank` zero-sum directions."""
    model = bert_encoder(layers=4)
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(24, rank, generator=generator)
    directions, _ = torch.linalg.qr(directions - directions.mean(0))
    keep = directions @ directions.T
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embeddings.weight" in name:
                p.copy_(p @ keep)
            elif "output.dense" in name or "LayerNorm.bias" in name:
                p.copy_(keep @ p)
    return model


def test_svd_loses_nothing_of_a_teacher_that_needs_no_more_width(blocks):
    wide = low_rank(bert_encoder(layers=4), 11)
    shape = Shape("s", layers=4, hidden=12, heads=2, intermediate=48)
    basis = principal_basis(wide, 12, blocks)
    torch.testing.assert_close(basis.sum(1), torch.zeros(24), atol=1e-5, rtol=0)
    # Two of the four heads only, so the embeddings and the first layer's queries are compared.
    student = build_student(shape, wide, "svd", 0, blocks).eval()
    with torch.no_grad(), Capture(student, embedding=True) as ours:
        student(blocks)
    with torch.no_grad(), Capture(wide, embedding=True) as theirs:
        wide(blocks)
    torch.testing.assert_close(ours.embedding @ basis.T, theirs.embedding, atol=1e-4, rtol=1e-4)


def test_svd_keeps_every_head_and_neuron_that_there_is_room_for(blocks):
    """At 12 of 24 directions, but with all four heads at full width, the whole model is kept."""
    wide = low_rank(bert_encoder(layers=4), 11)
    shape = Shape("s", layers=4, hidden=12, heads=4, intermediate=48)
    student = build_student(shape, wide, "svd", 0, blocks).eval()
    basis = principal_basis(wide, 12, blocks)
    with torch.no_grad():
        ours, theirs = student(blocks)[0] @ basis.T, wide(blocks)[0]
        drawn = build_student(shape, wide, "random", 0).eval()(blocks)[0] @ basis.T
    # Heads of 3 hold half of heads of 6: far closer than chance, not equal.
    assert (ours - theirs).norm() < 0.5 * (drawn - theirs).norm()


def test_the_basis_is_a_projection_on_where_the_states_lie(teacher, blocks):
    basis = principal_basis(teacher, 12, blocks)
    projection = basis @ basis.T
    torch.testing.assert_close(projection @ projection, projection, atol=1e-5, rtol=0)
    with torch.no_grad(), Capture(teacher, hidden=True) as capture:
        teacher(blocks)
    states = torch.cat(capture.hidden).flatten(0, 1)
    states = states - states.mean(1, keepdim=True)
    random_basis, _ = torch.linalg.qr(
        torch.randn(24, 12, generator=torch.Generator().manual_seed(0))
    )
    assert (states @ basis).norm() > 1.1 * (states @ random_basis).norm()
    assert torch.equal(basis, principal_basis(teacher, 12, blocks))


def test_more_than_the_teacher_has_stays_random_and_works(teacher, blocks):
    shape = Shape("s", layers=6, hidden=12, heads=1, intermediate=60)  # a head of 12, not 6
    student = build_student(shape, teacher, "svd", 0, blocks)
    drawn = build_student(shape, teacher, "random", 0)
    ours, rest = (m.encoder.layer[0].intermediate.dense.weight for m in (student, drawn))
    assert torch.equal(ours[48:], rest[48:]) and not torch.equal(ours[:48], rest[:48])
    ours, rest = (m.encoder.layer[0].attention.self.query.weight for m in (student, drawn))
    assert torch.equal(ours[6:], rest[6:]) and not torch.equal(ours[:6], rest[:6])
    assert torch.isfinite(student(blocks)[0]).all()


def distilbert():
    config = DistilBertConfig(vocab_size=80, dim=24, n_layers=4, n_heads=4, hidden_dim=48)
    torch.manual_seed(0)
    return with_noise(DistilBertModel(config).eval())


def with_noise(model):
    """Biases and norms are drawn as zero and one, which would hide one that is lost."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("init", ["random", "layers", "svd"])
def test_distilbert(init, blocks):
    student = build_student(same_shape(layers=2), distilbert(), init, 0, blocks)
    assert (student.config.n_layers, student.config.hidden_dim) == (2, 48)


@pytest.mark.parametrize("init", ["layers", "svd"])
def test_a_distilberts_own_shape_gives_the_teacher(init, blocks):
    teacher = distilbert()
    student = build_student(same_shape(), teacher, init, 0, blocks).eval()
    with torch.no_grad():
        torch.testing.assert_close(student(blocks)[0], teacher(blocks)[0], atol=1e-4, rtol=1e-4)


def test_a_narrow_distilbert_is_nearer_to_its_teacher_than_a_random_one(blocks):
    teacher = distilbert()
    basis = principal_basis(teacher, 12, blocks)
    shape = Shape("s", layers=4, hidden=12, heads=4, intermediate=48)
    with torch.no_grad():
        ours = build_student(shape, teacher, "svd", 0, blocks).eval()(blocks)[0] @ basis.T
        drawn = build_student(shape, teacher, "random", 0).eval()(blocks)[0] @ basis.T
        theirs = teacher(blocks)[0]
    assert (ours - theirs).norm() < 0.8 * (drawn - theirs).norm()


RELATIVE = {
    "mpnet": lambda sizes: MPNetModel(MPNetConfig(max_position_embeddings=66, **sizes)),
    "deberta-v2": lambda sizes: DebertaV2Model(
        DebertaV2Config(relative_attention=True, position_buckets=8, share_att_key=True,
                        pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", **sizes)
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", RELATIVE)
def test_tables_of_relative_positions_come_along_with_the_layers(family, blocks):
    sizes = {
        "vocab_size": 80, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 48,
    }  # fmt: skip
    torch.manual_seed(0)
    teacher = with_noise(RELATIVE[family](sizes).eval())
    student = build_student(same_shape(), teacher, "layers", 0).eval()
    with torch.no_grad(), Capture(student, qkv=True) as ours, Capture(teacher, qkv=True) as theirs:
        torch.testing.assert_close(student(blocks)[0], teacher(blocks)[0])
    assert len(ours.qkv) == len(theirs.qkv) == 4
    for one, other in zip(ours.qkv, theirs.qkv, strict=True):
        assert all(
            x.shape == (40, 30, 24) and torch.equal(x, y) for x, y in zip(one, other, strict=True)
        )
    with pytest.raises(KdscaleError, match="does not have BERT's layers"):
        build_student(NARROW, teacher, "svd", 0, blocks)


def test_a_narrow_deberta_becomes_a_ranker(blocks):
    sizes = {"vocab_size": 80, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    teacher = RELATIVE["deberta-v2"]({**sizes, "intermediate_size": 48})
    ranker = build_ranker(build_student(NARROW, teacher, "random", 0), 0.0, 0)
    assert ranker(blocks).logits.shape == (40, 1)


def modernbert():
    config = ModernBertConfig(
        vocab_size=len(bert_tokenizer()),
        hidden_size=24,
        num_hidden_layers=4,  # the first and the last see everything
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        local_attention=4,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return ModernBertModel(config).eval()


def test_modernbert(blocks, tmp_path):
    teacher = modernbert()
    student = build_student(NARROW, teacher, "random", 0, layer_map=[2, 4])
    assert student.config.layer_types == ["sliding_attention", "full_attention"]
    assert Capture(student).windows == [2, None]
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(blocks)[0], student.eval()(blocks)[0])
    copied = build_student(same_shape(), teacher, "layers", 0).eval()
    torch.testing.assert_close(copied(blocks)[0], teacher(blocks)[0])
    dropped = build_student(NARROW, teacher, "random", 0, dropout=0.5)
    assert {layer.attn.attention_dropout for layer in dropped.layers} == {0.5}


def test_what_a_modernbert_cannot_be(blocks):
    with pytest.raises(KdscaleError, match="ModernBertModel does not have BERT's layers"):
        build_student(NARROW, modernbert(), "svd", 0, blocks)
    with pytest.raises(KdscaleError, match=r"cannot come from layer 2; let lm\.layer_map begin"):
        build_student(same_shape(layers=2), modernbert(), "layers", 0)
    with pytest.raises(KdscaleError, match="3 is odd"):
        build_student(Shape("x", 1, 12, 4, 20), modernbert(), "random", 0)


def electra(embedding_size):
    return ElectraModel(
        ElectraConfig(
            vocab_size=len(bert_tokenizer()),
            embedding_size=embedding_size,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
        )
    ).eval()


def test_electra(blocks):
    student = build_student(NARROW, electra(24), "svd", 0, blocks)
    assert student(blocks)[0].shape == (40, 30, 12)


def test_heads_must_divide_the_hidden_size(teacher):
    with pytest.raises(KdscaleError, match=r"5 heads do not divide hidden size 12"):
        build_student(Shape("x", 2, 12, 5, 20), teacher, "random", 0)


def test_inits_that_cannot_be(teacher, blocks):
    with pytest.raises(KdscaleError, match="student's hidden_size is 12"):
        build_student(NARROW, teacher, "layers", 0)
    with pytest.raises(KdscaleError, match="student's num_attention_heads is 2"):
        build_student(same_shape(heads=2), teacher, "layers", 0)
    with pytest.raises(KdscaleError, match="hidden size 48 is above the teacher's 24"):
        build_student(same_shape(hidden=48), teacher, "svd", 0, blocks)
    with pytest.raises(KdscaleError, match="ElectraModel does not have BERT's layers"):
        build_student(NARROW, electra(16), "svd", 0, blocks)
