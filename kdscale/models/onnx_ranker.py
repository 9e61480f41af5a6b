"""Rankers as ONNX: written from torch, and scored with by ONNX Runtime.

The packages are those of `pip install 'kdscale[export]'`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from kdscale.errors import KdscaleError
from kdscale.models.encode import Pair, PairEncoder
from kdscale.models.packed import first_token_only
from kdscale.models.pretrained import check_max_length, read_config
from kdscale.models.ranker import BATCH_TOKENS, check_vocabulary, score_in_batches

MODEL_FILE = "model.onnx"
OPSET = 17  # LayerNormalization is one operation from 17 on


def need_onnx(*packages: str) -> None:
    """Raise KdscaleError naming the extra unless the packages are there."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise KdscaleError(
                f"{package} is not installed; run: pip install 'kdscale[export]'"
            ) from None


def write_onnx(model: PreTrainedModel, encoder: PairEncoder, path: Path) -> None:
    """The ranker in fp32 at OPSET: the encoder's inputs [batch, length], int64, to logits
    [batch, 1], both dimensions free. The model is left on its device and in its mode."""
    need_onnx("onnx")
    with _on_cpu_in_evaluation(model):
        _write_traced(model, encoder, path)


def _write_traced(model: PreTrainedModel, encoder: PairEncoder, path: Path) -> None:
    # Two pairs of different lengths, so that nothing of the sample is taken for a constant.
    texts = [encoder.tokenise(["a", text]) for text in ("a", "a a a")]
    sample = encoder.collate([(query, passage) for query, passage in texts])
    names = list(sample)
    axes = {name: {0: "batch", 1: "length"} for name in names}
    with first_token_only(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about shapes that it makes constants
        torch.onnx.export(
            _Logits(model, names),
            tuple(sample.values()),
            str(path),
            input_names=names,
            output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,  # the other exporter needs a package more, and says nothing more here
        )


class OnnxModel:
    """`model(**inputs)` as a torch ranker's, on the CPU: tensors [B, L] to logits [B, 1].

    threads: of one product; None: as many as torch has. Raises KdscaleError for a folder without
    a model.onnx, and for one that ONNX Runtime cannot run.
    """

    def __init__(self, directory: str | Path, threads: int | None = None):
        path = Path(directory, MODEL_FILE)
        if not path.is_file():
            raise KdscaleError(
                f"{directory} has no {MODEL_FILE}; write one: kdscale export {directory} --onnx "
                "-o DIR"
            )
        need_onnx("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of a kind a fault
            reason = (str(error).strip().splitlines() or [repr(error)])[0]
            raise KdscaleError(f"cannot read {path} ({reason}); export it again") from None
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        if [entry.name for entry in self._session.get_outputs()] != ["logits"]:
            raise KdscaleError(f"{path} gives no logits; export it with kdscale export")

    def __call__(self, **inputs: torch.Tensor) -> np.ndarray:
        missing = [name for name in self._inputs if name not in inputs]
        if missing:
            raise KdscaleError(
                f"{MODEL_FILE} wants {missing[0]}, which the tokenizer beside it does not give; "
                "export it again"
            )
        (logits,) = self._session.run(None, {n: inputs[n].numpy() for n in self._inputs})
        return logits


class OnnxScorer:
    """Scores pairs as `kdscale.models.ranker.Scorer` does, with the model.onnx of a directory."""

    def __init__(
        self, directory: str | Path, encoder: PairEncoder, batch_tokens: int | None = None
    ):
        config = read_config(str(directory))
        check_max_length(config, encoder.max_length)
        check_vocabulary(config, encoder)
        self._model = OnnxModel(directory)
        self.encoder = encoder
        self.batch_tokens = batch_tokens or BATCH_TOKENS["cpu"]

    def score(self, pairs: Sequence[Pair]) -> np.ndarray:
        """[len(pairs)] float32 raw logits, in the order given."""

        def forward(batch: list[Pair]) -> torch.Tensor:
            return torch.from_numpy(self._model(**self.encoder.collate(batch))[:, 0])

        return score_in_batches(pairs, self.encoder, self.batch_tokens, forward)


@contextmanager
def _on_cpu_in_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """Inside, it is; afterwards it is where it was, and every module in its own mode: the tracer
    leaves all of them in that of what it was given, which wraps the model."""
    device, modes = model.device, [(module, module.training) for module in model.modules()]
    movable: Any = model  # whose `to` transformers' types misread
    try:
        movable.to("cpu").eval()
        yield
    finally:
        movable.to(device)
        for module, training in modes:
            module.training = training


class _Logits(nn.Module):
    """The model with its inputs by place, as the tracer wants them."""

    def __init__(self, model: PreTrainedModel, names: list[str]):
        super().__init__()
        self._model, self._names = model, names

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self._model(**dict(zip(self._names, inputs, strict=True))).logits
