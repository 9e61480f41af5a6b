import errno
import pathlib
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdscale.data import shards
from kdscale.data.schema import QUERIES
from kdscale.data.shards import (
    count_rows,
    read_batches,
    read_shards,
    read_table,
    read_where,
    sample_column,
    stream_shards,
    write_shards,
    write_table,
)
from kdscale.data.texts import read_queries
from kdscale.errors import KdscaleError


def table(rows: int) -> pa.Table:
    return pa.table({"qid": [f"q{i}" for i in range(rows)], "text": ["t"] * rows}, schema=QUERIES)


@pytest.mark.parametrize(
    ("rows", "most", "files"), [(10, 3, 3), (10, 4, 4), (2, 8, 2), (0, 8, 1), (9, 4, 3)]
)
def test_shards_hold_every_row_in_order(tmp_path, rows, most, files):
    write_shards(tmp_path, table(rows), QUERIES, most)
    assert len(list(tmp_path.glob("part-*.parquet"))) == files
    assert read_shards(tmp_path, QUERIES).equals(table(rows))


@pytest.mark.parametrize("group", [100, 1000, 10_000])
def test_bytes_do_not_show_how_the_rows_came(tmp_path, monkeypatch, group):
    monkeypatch.setattr(shards, "ROW_GROUP", group)
    whole = table(3000)
    pieces = [whole.slice(0, 7), whole.slice(7, 1993), whole.slice(2000)]
    write_shards(tmp_path / "a", whole, QUERIES, 2)
    write_shards(tmp_path / "b", pa.concat_tables(pieces), QUERIES, 2)
    assert stream_shards(tmp_path / "c", iter(pieces), QUERIES, 2, tmp_path) == 3000
    for one, *others in zip(*(sorted((tmp_path / d).iterdir()) for d in "abc"), strict=True):
        assert [other.read_bytes() for other in others] == [one.read_bytes()] * 2
    batches = list(read_batches(tmp_path / "c", QUERIES, 700))
    assert pa.concat_tables(batches).equals(whole) and max(b.num_rows for b in batches) <= 700
    assert count_rows(tmp_path / "c") == 3000


def test_no_rows_are_a_file_that_can_be_read(tmp_path):
    assert stream_shards(tmp_path / "a", [], QUERIES, 3, tmp_path) == 0
    write_shards(tmp_path / "b", table(0), QUERIES, 3)
    assert [p.read_bytes() for p in (tmp_path / "a").iterdir()] == [
        p.read_bytes() for p in (tmp_path / "b").iterdir()
    ]
    assert read_shards(tmp_path / "a", QUERIES).num_rows == 0


@pytest.mark.parametrize("count", [0, 1, 7, 50, 90])
def test_a_sample_is_spread_over_files_and_row_groups(tmp_path, monkeypatch, count):
    monkeypatch.setattr(shards, "ROW_GROUP", 11)
    write_shards(tmp_path, table(50), QUERIES, 3)
    found = [q for part in sample_column(tmp_path, QUERIES, "qid", count) for q in part]
    assert found == [f"q{i * 50 // min(count, 50)}" for i in range(min(count, 50))]


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(KdscaleError, match="no part-"):
        read_shards(tmp_path, QUERIES)
    with pytest.raises(KdscaleError, match="is missing"):
        read_table(tmp_path / "dev.parquet", QUERIES)
    write_table(tmp_path / "x.parquet", pa.table({"a": [1]}), pa.schema([("a", pa.int64())]))
    with pytest.raises(KdscaleError, match="columns"):
        read_table(tmp_path / "x.parquet", QUERIES)


def test_a_full_disk_is_an_oserror_with_its_number(tmp_path):
    """The pipeline tells a full disk by the number; /dev/full is one that always is."""
    (tmp_path / "part-00000.parquet").symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        write_shards(tmp_path, table(10), QUERIES, 1)
    assert error.value.errno == errno.ENOSPC


def test_only_the_wanted_rows(tmp_path):
    write_shards(tmp_path, table(10), QUERIES, 3)
    found = read_where(tmp_path, QUERIES, "qid", {"q7", "q2", "none"})
    assert found["qid"].to_pylist() == ["q2", "q7"]  # in order
    with pytest.raises(KdscaleError, match="cannot read"):
        read_where(tmp_path / "none", QUERIES, "qid", set())


class Code:
    """Its pickle runs code when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self.mark,)


@pytest.mark.parametrize("in_shard", [0, 1])
def test_a_column_of_pickles_is_refused_and_none_is_loaded(tmp_path, in_shard):
    """Ray registers an Arrow type whose values are pickles: reading a value would load it."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    mark = tmp_path / "code was run"
    pickles = pa.array([pickle.dumps(Code(mark))], pa.large_binary())
    hostile = pa.table({"qid": ["q0"], "text": ArrowPythonObjectType().wrap_array(pickles)})
    assert hostile["text"].to_pylist() == [None] and mark.exists()  # so it would have been
    mark.unlink()
    folder = tmp_path / "shards"
    write_shards(folder, table(4), QUERIES, 2)
    pq.write_table(hostile, folder / f"part-{in_shard:05d}.parquet")
    for read in (
        lambda: read_shards(folder, QUERIES),
        lambda: read_where(folder, QUERIES, "qid", {"q0"}),
        lambda: list(read_batches(folder, QUERIES, 10)),
        lambda: list(read_queries(folder / f"part-{in_shard:05d}.parquet")),
        lambda: list(read_queries(folder)),
    ):
        with pytest.raises(KdscaleError):
            read()
        assert not mark.exists()


def test_a_folder_with_an_equals_sign_is_no_column(tmp_path):
    table = pa.table({"qid": ["a"], "text": ["b"]}, schema=QUERIES)
    path = tmp_path / "lr=0.001" / "qid=7" / "dev.parquet"
    write_table(path, table, QUERIES)
    write_shards(path.parent / "shards", table, QUERIES, shards=1)
    assert read_table(path, QUERIES) == table
    assert read_where(path, QUERIES, "qid", ["a"]) == table
    assert read_where(path.parent / "shards", QUERIES, "qid", ["a"]) == table
    assert read_shards(path.parent / "shards", QUERIES) == table
