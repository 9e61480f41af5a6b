"""The products of an ONNX ranker with its weights, in integers of eight bits.

Each output of a weight matrix has a scale, and so has each token of what comes in, taken from that
token alone when it comes. So a pair's score does not depend on the pairs beside it or on the
padding, as it does where one scale is taken for a whole batch (ONNX's DynamicQuantizeLinear). All
operators are standard ones of opset 17.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT_MAX, INPUT_ZERO = 127, 128
# Of seven bits, since CPUs without VNNI add two products in 16 bits: 2 x 255 x 63 fits there, and
# the same scores come out on every CPU.
WEIGHT_MAX = 63
SMALLEST = 1e-30  # a token of zeros has to be divided by something


def write_int8(fp32: Path, path: Path) -> None:
    """Write a ranker's ONNX model again, with its products by weights in int8.

    A product with one output, the head's last, stays as it is: it costs nothing.
    """
    model = onnx.load(fp32)
    graph = model.graph
    quantiser = _Quantiser({tensor.name: tensor for tensor in graph.initializer})
    same: dict[str, str] = {}  # weights that several products share have other names for each
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.input[0] in quantiser.weights:
            same[node.output[0]] = node.input[0]
        else:
            quantiser.take(node)
    used = {name for node in quantiser.nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept + list(quantiser.constants.values()))
    graph.node.extend(quantiser.nodes)
    onnx.save(model, path)


class _Product(NamedTuple):
    """weights: [inputs, outputs]; bias: its name, or None."""

    weights: np.ndarray
    bias: str | None


class _Quantiser:
    """nodes: of the new graph, in order; constants: what they need beside the old ones, which are
    `weights`."""

    def __init__(self, weights: dict[str, Any]):
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.weights = weights
        self._inputs: dict[str, tuple[str, str]] = {}

    def take(self, node: Any) -> None:
        product = self._product(node)
        if product is None:
            self.nodes.append(node)
            return
        out = node.output[0]
        values, scales = self._input(node.input[0])
        weights, weight_scales = self._integers(node, product.weights)
        zero = self._constant("int8/zero", np.uint8(INPUT_ZERO))
        summed = self._add("MatMulInteger", [values, weights, zero], f"{out}/sums")
        real = self._add("Cast", [summed], f"{out}/real", to=TensorProto.FLOAT)
        scaled = self._add("Mul", [real, weight_scales], f"{out}/scaled")
        if product.bias is None:
            self._add("Mul", [scaled, scales], out)
        else:
            self._add("Mul", [scaled, scales], f"{out}/product")
            self._add("Add", [f"{out}/product", product.bias], out)

    def _product(self, node: Any) -> _Product | None:
        """What a node multiplies with, where these are weights and of more than one output."""
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in self.weights:
            return None
        weights = numpy_helper.to_array(self.weights[node.input[1]])
        bias = None
        if node.op_type == "Gemm":
            options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if options.get("transA") or options.get("alpha", 1) != 1 or options.get("beta", 1) != 1:
                return None
            weights = weights.T if options.get("transB") else weights
            bias = node.input[2] if len(node.input) > 2 else None
        if weights.ndim != 2 or weights.shape[1] == 1:
            return None
        return _Product(weights, bias)

    def _input(self, name: str) -> tuple[str, str]:
        """The names of an input's integers and of their scales, one a token."""
        if name not in self._inputs:
            smallest = self._constant("int8/smallest", np.float32(SMALLEST))
            step = self._constant("int8/step", np.float32(1 / INPUT_MAX))
            one = self._constant("int8/one", np.float32(1))
            zero = self._constant("int8/zero", np.uint8(INPUT_ZERO))
            high = self._add("ReduceMax", [name], f"{name}/high", axes=[-1], keepdims=1)
            low = self._add("ReduceMin", [name], f"{name}/low", axes=[-1], keepdims=1)
            low = self._add("Neg", [low], f"{name}/negated")
            largest = self._add("Max", [high, low, smallest], f"{name}/largest")
            scales = self._add("Mul", [largest, step], f"{name}/scales")
            steps = self._add("Div", [name, scales], f"{name}/steps")
            values = self._add("QuantizeLinear", [steps, one, zero], f"{name}/integers")
            self._inputs[name] = values, scales
        return self._inputs[name]

    def _integers(self, node: Any, weights: np.ndarray) -> tuple[str, str]:
        """The names of the integers and of their scales, one an output."""
        name = f"{node.input[1]}/{node.op_type}"
        largest = np.maximum(np.abs(weights).max(0), SMALLEST)
        scales = (largest / WEIGHT_MAX).astype(np.float32)
        values = np.rint(weights / scales).clip(-WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)
        return self._constant(f"{name}/integers", values), self._constant(f"{name}/scales", scales)

    def _constant(self, name: str, value: Any) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _add(self, operator: str, inputs: list[str], output: str, **options: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **options))
        return output
