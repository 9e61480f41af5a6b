"""A ranker in int8, run by real ONNX Runtime."""

import random

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kdscale.models import int8
from kdscale.models.encode import PairEncoder
from kdscale.models.int8 import write_int8
from kdscale.models.onnx_ranker import MODEL_FILE, OPSET, OnnxModel, write_onnx
from kdscale.models.ranker import Scorer, build_ranker
from tests.models.test_ranker import electra_encoder, roberta_encoder
from tests.worlds.tiny_models import (
    bert_encoder,
    bert_tokenizer,
    random_pairs,
    roberta_like_tokenizer,
)

onnxruntime = pytest.importorskip("onnxruntime")

FAMILIES = {
    "bert": (bert_encoder, bert_tokenizer),
    "roberta": (roberta_encoder, roberta_like_tokenizer),
    "electra": (electra_encoder, bert_tokenizer),
}


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """The int8 form of a tiny ranker, its encoder, pairs of very different lengths and the scores
    of fp32."""
    body, tokenizer = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("int8")
    model, encoder = build_ranker(body(), 0.0, seed=1).eval(), PairEncoder(tokenizer(), 48)
    write_onnx(model, encoder, folder / "fp32.onnx")
    write_int8(folder / "fp32.onnx", folder / MODEL_FILE)
    texts = random_pairs(random.Random(8), 96, longest=40)
    pairs = [tuple(encoder.tokenise(list(pair))) for pair in texts]
    return folder, encoder, pairs, Scorer(model, encoder).score(pairs)


def in_batches(form, encoder, pairs, size):
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return np.concatenate([form(**encoder.collate(part))[:, 0] for part in parts])


def test_the_score_of_a_pair_is_the_same_in_every_batch(made):
    folder, encoder, pairs, _ = made
    form = OnnxModel(folder)
    alone = in_batches(form, encoder, pairs, 1)
    assert alone.std() > 1e-2
    order = np.random.default_rng(0).permutation(len(pairs))
    for size in (8, 32, len(pairs)):
        assert np.abs(in_batches(form, encoder, pairs, size) - alone).max() < 1e-5
        shuffled = in_batches(form, encoder, [pairs[i] for i in order], size)
        assert np.abs(shuffled - alone[order]).max() < 1e-5


def test_scores_are_near_those_of_fp32(made):
    folder, encoder, pairs, expected = made
    found = in_batches(OnnxModel(folder), encoder, pairs, 32)
    assert not np.array_equal(found, expected)
    # A width of 24 evens out little of the rounding: of a trained ranker of 384 it is a twelfth.
    assert np.corrcoef(found, expected)[0, 1] > 0.98


def test_every_product_with_weights_but_the_last_is_of_integers_by_standard_operators(made):
    folder, *_ = made
    model = onnx.load(folder / MODEL_FILE)
    onnx.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    left = [tuple(constants[n.input[1]].dims) for n in products if n.input[1] in constants]
    assert left in ([(1, 24)], [(24, 1)])  # the head's
    integers = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(integers) >= 2 * 6
    assert {constants[node.input[1]].data_type for node in integers} == {TensorProto.INT8}
    used = {name for node in model.graph.node for name in node.input}
    assert set(constants) <= used  # no weights are left behind


def linear(tmp_path, weights, bias=None, operator="MatMul", transposed=False):
    """`y = x @ weights + bias` in int8, as a function."""
    names = ["x", "w"] + (["b"] if bias is not None else [])
    options = {"transB": 1} if transposed else {}
    tensors = [numpy_helper.from_array(weights.T.copy() if transposed else weights, "w")]
    if bias is not None:
        tensors.append(numpy_helper.from_array(bias, "b"))
    places = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in (("x", weights.shape[0]), ("y", weights.shape[1]))
    ]
    node = helper.make_node(operator, names, ["y"], **options)
    graph = helper.make_graph([node], "linear", places[:1], places[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.save(model, tmp_path / "a.onnx")
    write_int8(tmp_path / "a.onnx", tmp_path / "b.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.astype(np.float32)})[0]


@pytest.mark.parametrize(
    "operator, transposed", [("MatMul", False), ("Gemm", False), ("Gemm", True)]
)
def test_products_computed_by_hand(tmp_path, operator, transposed):
    # Every number is a whole count of its scale's steps, so that nothing is rounded.
    weights = np.array([[63, 2], [-10, -4], [0, 126]], np.float32)
    bias = None if operator == "MatMul" else np.array([0.5, -1], np.float32)
    form = linear(tmp_path, weights, bias, operator, transposed)
    top = float(int8.INPUT_MAX)
    x = np.array([[top, 1, 2], [-2 * top, 4, -6], [0, 0, 0]])
    expected = x @ weights + (0 if bias is None else bias)
    np.testing.assert_allclose(form(x), expected, rtol=1e-6)


def test_sums_do_not_overflow_in_sixteen_bits():
    """Two products of the largest integers, as CPUs without VNNI add them."""
    assert 2 * (int8.INPUT_ZERO + int8.INPUT_MAX) * int8.WEIGHT_MAX <= 32_767


def test_each_token_has_a_scale_of_its_own(tmp_path):
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(32, 8)).astype(np.float32)
    form = linear(tmp_path, weights)
    x = rng.normal(size=(6, 32)) * np.array([[1e-4], [1e-2], [1], [10], [1e3], [1e5]])
    error = np.abs(form(x) - x @ weights) / np.abs(x @ weights).max(1, keepdims=True)
    assert error.max() < 0.04  # a scale for all would lose the small ones whole
    for row in range(6):
        assert np.array_equal(form(x[row : row + 1]), form(x)[row : row + 1])


def test_weights_that_two_products_share_stay_one(tmp_path):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(16, 16, bias=False)

        def forward(self, x):
            return self.inner(torch.relu(self.inner(x)))

    torch.manual_seed(0)
    model = Twice()
    path = tmp_path / "fp32.onnx"
    torch.onnx.export(model, (torch.ones(2, 3, 16),), str(path), dynamo=False, opset_version=OPSET)
    write_int8(path, tmp_path / "int8.onnx")
    written = onnx.load(tmp_path / "int8.onnx")
    assert [n.op_type for n in written.graph.node].count("MatMulInteger") == 2
    big = [t for t in written.graph.initializer if np.prod(t.dims) == 256]
    assert [t.data_type for t in big] == [TensorProto.INT8]
    session = onnxruntime.InferenceSession(
        tmp_path / "int8.onnx", providers=["CPUExecutionProvider"]
    )
    x = torch.randn(2, 3, 16)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, model(x).detach(), atol=0.02)
