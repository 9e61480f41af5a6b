import time

import pyarrow as pa
import pytest

from kdscale.data import parallel as raymap
from kdscale.data.parallel import in_blocks, map_tables

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])


def test_blocks_close_by_rows_and_by_text(monkeypatch):
    monkeypatch.setattr(raymap, "BLOCK_ROWS", 3)
    monkeypatch.setattr(raymap, "BLOCK_CHARS", 10)
    texts = ["a", "b", "c", "d", "x" * 50, "e"]
    tables = list(in_blocks(enumerate(texts), SCHEMA, text=1))
    assert [t.num_rows for t in tables] == [3, 2, 1]
    assert pa.concat_tables(tables)["text"].to_pylist() == texts
    assert tables[0].schema == SCHEMA
    assert list(in_blocks([], SCHEMA, text=1)) == []


@pytest.mark.slow
def test_order_is_kept_over_windows(ray_cluster, monkeypatch):
    monkeypatch.setattr(raymap, "WINDOW", 4)

    def slow_first(table: pa.Table, factor: int) -> pa.Table:  # later blocks overtake
        number = table["n"][0].as_py()
        time.sleep(0.8 if number % 3 == 0 else 0)
        return pa.table({"n": [n * factor for n in table["n"].to_pylist()]})

    tables = [pa.table({"n": [i, i]}) for i in range(9)]
    mapped = [t["n"].to_pylist() for t in map_tables(iter(tables), slow_first, factor=10)]
    flat = [n for part in mapped for n in part]
    assert flat == [n for i in range(9) for n in (10 * i, 10 * i)]
