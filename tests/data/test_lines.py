import gzip
import tracemalloc

import pytest
from reader_files import rejects

from kdscale.data import lines
from kdscale.data.lines import (
    MAX_LINE,
    TOO_LONG,
    read_lines,
    read_tsv_texts,
)
from kdscale.data.readers import sgml
from kdscale.data.readers.sgml import read_sgml_documents
from kdscale.errors import KdscaleError


def test_lines_are_numbered_and_blank_ones_passed_over(tmp_path):
    path = tmp_path / "f.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n \t\ntwo\n\nthr\xc3\xa9e")
    assert list(read_lines(path)) == [(1, "one"), (4, "two"), (6, "thrée")]


def test_a_line_that_is_not_utf8_is_refused_and_the_next_is_read(tmp_path):
    path = tmp_path / "f.txt"
    path.write_bytes(b"one\nna\xefve\nthree\n")
    first, refused, third = read_lines(path)
    assert (first, third) == ((1, "one"), (3, "three"))
    assert (refused.file, refused.line, refused.reason) == (str(path), 2, "not UTF-8")
    assert refused.text == "na\\xefve"


@pytest.mark.parametrize("damage", ["cut short", "not gzip at all", "flipped"])
def test_a_damaged_gz_is_named(tmp_path, damage):
    path = tmp_path / "f.gz"
    packed = gzip.compress(b"".join(b"line %d\n" % i for i in range(2000)))
    path.write_bytes(
        {
            "cut short": packed[: len(packed) // 2],
            "not gzip at all": b"line 0\n",
            "flipped": packed[:1000] + bytes([packed[1000] ^ 255]) + packed[1001:],
        }[damage]
    )
    with pytest.raises(KdscaleError, match=r"f\.gz is a damaged \.gz"):
        list(read_lines(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(KdscaleError, match=r"cannot read .*none\.txt \(No such file"):
        list(read_lines(tmp_path / "none.txt"))


def test_tsv_texts(tmp_path):
    path = tmp_path / "f.tsv"
    path.write_text("1\ta text\twith a tab\nno tab\n\tno id\n 2 \t\n")
    items = list(read_tsv_texts(path))
    assert items[0] == ("1", "a text\twith a tab")
    assert items[3] == ("2", "")  # an empty text is the caller's to refuse
    assert rejects(items) == [
        ("f.tsv", 2, "not two columns (id TAB text)"),
        ("f.tsv", 3, "empty id"),
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_longer_than_the_limit_is_refused_and_the_next_is_read(tmp_path, packed):
    text = b"one\n" + b"x" * (MAX_LINE + 1) + b"\ntwo\n" + b"y" * 3 * MAX_LINE
    path = tmp_path / ("f.gz" if packed else "f")
    path.write_bytes(gzip.compress(text, 1) if packed else text)
    items = list(read_lines(path))
    assert [items[0], items[2]] == [(1, "one"), (3, "two")]
    assert rejects(items) == [(path.name, 2, "longer than 16 MiB"), (path.name, 4, TOO_LONG)]


@pytest.mark.parametrize("line", [b"\0" * 2**20, (b"x" * 1023 + b"\n") * 2**10])
@pytest.mark.parametrize("read", [read_tsv_texts, read_sgml_documents])
def test_a_gzip_bomb_is_read_in_bounded_memory(tmp_path, monkeypatch, line, read):
    for module in (lines, sgml):
        monkeypatch.setattr(module, "MAX_LINE", 2**20)
    path = tmp_path / "f.gz"
    with gzip.open(path, "wb", compresslevel=1) as handle:
        handle.write(b"<DOC>\n")
        for _ in range(24):
            handle.write(line)
    tracemalloc.start()
    for _ in read(path):
        pass
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size < 2**18 and most < 8 * 2**20 < 24 * len(line)
