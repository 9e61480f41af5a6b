"""The table of trials: written, read back, refused where it is something else."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdscale.errors import KdscaleError
from kdscale.evaluation.trials import TRIALS, read_trials, trial_rows, write_trials


def test_rows_come_back_with_what_is_told_of_them(tmp_path):
    values = {"nDCG@10": np.array([1.0, 0.5]), "RR@10": np.array([1.0, 0.0])}
    path = tmp_path / "folder" / "trials.parquet"
    student = trial_rows(
        values, system="finetune/2l-192", strategy="finetune", shape="2l-192", budget=0.1, seed=3
    )
    write_trials(path, [trial_rows(values, system="bm25"), student], split="dev")
    table, about = read_trials(path)
    assert table.schema.names == TRIALS.names
    assert table["mean"].to_pylist() == [0.75, 0.5] * 2
    assert table["values"].to_pylist()[0] == [1.0, 0.5]
    assert table["strategy"].to_pylist() == [None, None, "finetune", "finetune"]
    assert about["split"] == "dev" and about["versions"]["kdscale"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_table_without_rows_can_be_read(tmp_path):
    write_trials(tmp_path / "t.parquet", [])
    assert read_trials(tmp_path / "t.parquet")[0].num_rows == 0


def test_an_unknown_column_is_a_mistake_of_ours():
    with pytest.raises(TypeError, match="no column depth"):
        trial_rows({"AP": np.ones(1)}, system="bm25", depth=3)


@pytest.mark.parametrize("metadata", [None, {b"about": b"["}, {b"about": b"[]"}])
def test_a_table_that_does_not_say_how_it_was_made_is_refused(tmp_path, metadata):
    path = tmp_path / "t.parquet"
    pq.write_table(TRIALS.empty_table().replace_schema_metadata(metadata), path)
    with pytest.raises(KdscaleError, match="no table of trials"):
        read_trials(path)


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(KdscaleError, match=r"t\.parquet"):
        read_trials(path)
