import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdscale.data import lines
from kdscale.data.lines import MAX_LINE, TOO_LONG, read_by_first_char, read_lines, read_tsv_texts
from kdscale.data.readers import sgml
from kdscale.data.readers.sgml import read_sgml_documents
from kdscale.errors import KdscaleError
from tests.worlds.reader_files import rejects


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


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
LINES = b"".join(b"p%d\ttext %d\n" % (i, i) for i in range(2000))


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("damage", ["cut short", "flipped"])
def test_a_damaged_file_is_named(tmp_path, packer, damage):
    path = tmp_path / f"f.{packer}"
    packed = PACKERS[packer](LINES)
    cut, at = packed[: len(packed) // 2], len(packed) // 2
    flipped = packed[:at] + bytes([packed[at] ^ 255]) + packed[at + 1 :]
    path.write_bytes({"cut short": cut, "flipped": flipped}[damage])
    with pytest.raises(KdscaleError, match=rf"f\.{packer} is damaged \(.*fetch it again"):
        list(read_lines(path))


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", ["f.tsv", "f.tsv.gz", "f"])
def test_how_a_file_is_packed_is_told_by_its_content(tmp_path, packer, name):
    path = tmp_path / name
    path.write_bytes(PACKERS[packer](LINES))
    assert list(read_tsv_texts(path))[:2] == [("p0", "text 0"), ("p1", "text 1")]


def test_a_file_that_a_download_unpacked_and_left_its_name_is_read(tmp_path):
    path = tmp_path / "f.tsv.gz"
    path.write_bytes(LINES)
    assert len(list(read_tsv_texts(path))) == 2000


def test_a_text_may_begin_as_an_archive_does(tmp_path):
    path = tmp_path / "f.tsv"
    path.write_bytes(b"PAR1\ttext\nBZh1\ttext\nPK\ttext\n")
    assert [pid for pid, _ in read_tsv_texts(path)] == ["PAR1", "BZh1", "PK"]


def _tar(path):
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("collection.tsv")
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES))


def _tar_gz(path):  # as MS MARCO is published
    _tar(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("collection.tsv", LINES)


def _parquet(path):
    pq.write_table(pa.table({"pid": ["a"], "text": ["b"]}), path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_tar, "is a tar archive; unpack it"),
        (_tar_gz, "is a tar archive; unpack it"),
        (_zip, "is a zip archive; unpack it"),
        (_parquet, "is Parquet, which is not read here"),
        (lambda path: path.write_bytes(pa.compress(LINES, "zstd", asbytes=True)), "zstd -d"),
    ],
)
def test_an_archive_is_no_file_of_lines(tmp_path, write, said):
    path = tmp_path / "collection"
    write(path)
    with pytest.raises(KdscaleError, match=said):
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


@pytest.mark.parametrize("text", ['[{"id": "p1", "text": "one"}]\n', '\n [ \n {"id": "p1"}\n]\n'])
def test_a_json_array_is_refused_with_what_to_do(tmp_path, text):
    path = tmp_path / "passages.json"
    path.write_text(text)
    with pytest.raises(KdscaleError, match=r"passages\.json is one JSON array; .*jq -c"):
        read_by_first_char(path, {}, read_tsv_texts)


def test_an_id_may_begin_with_a_bracket(tmp_path):
    path = tmp_path / "passages.tsv"
    path.write_text("[1]\tone\n[2]\ttwo\n")
    found = list(read_by_first_char(path, {}, read_tsv_texts))
    assert found == [("[1]", "one"), ("[2]", "two")]
