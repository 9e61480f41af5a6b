"""Pruning, and the training after it."""

import numpy as np
import onnx
from transformers import AutoModelForSequenceClassification

from kdscale.export.run import Wanted, export
from kdscale.models.encode import PairEncoder
from kdscale.progress import Reporter
from tests.export.conftest import ids, metrics_of, onnx_scores, refused, torch_scores
from tests.worlds.ids import step_id
from tests.worlds.small_world import UNUSED


def test_pruned_and_trimmed_it_is_still_a_ranker_and_both_forms_agree(world, tmp_path):
    out = tmp_path / "out"
    wanted = Wanted(onnx=True, heads=0.5, ffn=0.5, min_count=1, recovery_steps=2)
    metrics = export(world.student.uri, out, wanted, Reporter())
    assert [row["form"] for row in metrics["forms"]] == ["student", "smaller", "onnx"]
    assert sum(len(heads) for heads in metrics["pruned"]["heads_kept"]) == 4  # of 8
    assert metrics["pruned"]["neurons_kept"] == 24 and metrics["pruned"]["recovery"]["steps"] == 2
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.intermediate_size == 24
    assert model.config.vocab_size == metrics["vocabulary"]["tokens"]
    assert metrics["vocabulary"]["tokens"] <= metrics["vocabulary"]["before"] - UNUSED
    encoder = PairEncoder.load(out)
    pairs = ids(encoder)
    assert np.allclose(onnx_scores(out, pairs), torch_scores(out, pairs), atol=1e-4)
    # The heads are gone from the ONNX form, whose products are narrower; the other has them as
    # zeros.
    shapes = [tuple(t.dims) for t in onnx.load(out / "model.onnx").graph.initializer]
    kept = [6 * len(heads) for heads in metrics["pruned"]["heads_kept"]]
    for width in kept:
        assert (24, width) in shapes or (width, 24) in shapes
    assert model.bert.encoder.layer[0].attention.self.query.weight.shape == (24, 24)


def test_recovery_trains_on_the_teachers_scores(world, tmp_path):
    untouched, trained = tmp_path / "a", tmp_path / "b"
    for out, steps in ((untouched, 0), (trained, 3)):
        wanted = Wanted(ffn=0.5, recovery_steps=steps)
        export(world.student.uri, out, wanted, Reporter())
    assert "recovery" not in metrics_of(untouched)["pruned"]
    encoder = PairEncoder.load(trained)
    pairs = ids(encoder)
    assert not np.allclose(torch_scores(untouched, pairs), torch_scores(trained, pairs), atol=1e-3)


def test_pruning_more_than_there_is(world, tmp_path):
    for wanted, told in (
        (Wanted(heads=0.9), "7 of 8 heads, and each of 2 layers needs one"),
        (Wanted(ffn=1.0), "48 of the 48 neurons"),
    ):
        refused(wanted, match=told, uri=world.student.uri, out=tmp_path / "o")


def test_pruning_without_scores_of_the_dataset(world, pulled, tmp_path):
    wanted = Wanted(ffn=0.5, data=world.inputs[step_id("dataset")].uri)
    refused(wanted, match="has no teacher's scores of datasets/d", uri=pulled, out=tmp_path / "o")
