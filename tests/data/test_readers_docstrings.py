import os
import pickle
import random
import sys

import pytest

from kdscale.config import DocstringsSource
from kdscale.data.clean import fault_of
from kdscale.data.readers import ParallelReader, open_reader
from kdscale.data.readers.docstrings import find_files, parse_file, spoken_name
from kdscale.errors import KdscaleError
from tests.worlds.reader_files import FILES, accepted, copy_of, rejects

EXPECTED = {
    "tinypkg.birds:count_herons": "Count the herons that stand in a pond.",
    "tinypkg.birds:Nest": "A place where a bird lays its eggs.",
    "tinypkg.birds:Nest.warm": "Keep the eggs warm for some hours.",
    "tinypkg.birds:feed": "Feed the young birds of a nest.",
    "tinypkg.birds:feed#2": "Feed the young birds, but only once.",
    "tinypkg.inner.copies:ring": "Put a ring on the leg of a bird.",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the tiny package, installed as far as the import system can tell."""
    folder = copy_of("docstrings", tmp_path)
    monkeypatch.syspath_prepend(folder)
    return folder / "tinypkg"


def open_docstrings(*packages, **settings):
    return open_reader(DocstringsSource(packages=list(packages), **settings))


def parsed_names(unit):
    return {f"{row['module']}:{row['name']}" for row in parse_file(**unit)}


def queries(reader):
    return {qid: text for split in reader.splits() for qid, text in reader.queries(split)}


def test_the_tiny_package(package):
    reader = open_docstrings("tinypkg")
    assert queries(reader) == EXPECTED
    passages = dict(reader.passages())
    assert list(passages) == list(EXPECTED)
    assert passages["tinypkg.inner.copies:ring"] == (
        r"ring: The ring has a number \d that nobody else has given out, so that a bird found in "
        "another country tells where it came from."
    )
    qrels = [qrel for split in reader.splits() for qrel in reader.qrels(split)]
    assert sorted(qrels) == sorted((key, key, 1) for key in EXPECTED)
    assert reader.negatives() is None
    assert reader.candidates("train") is None


def test_the_package_is_not_imported(package):
    list(open_docstrings("tinypkg").passages())  # its __init__ raises
    assert "tinypkg" not in sys.modules


def test_a_module_never_crosses_splits_and_the_split_depends_on_its_name_only():
    alone = open_docstrings("json", "logging", "email", dev_percent=30, test_percent=30)
    more = open_docstrings("email", "asyncio", "json", "logging", dev_percent=30, test_percent=30)

    def splits_of_modules(reader):
        found = {}
        for split in reader.splits():
            for qid, _ in reader.queries(split):
                found.setdefault(qid.split(":")[0], set()).add(split)
        return found

    found = splits_of_modules(alone)
    assert set.union(*found.values()) == {"train", "dev", "test"}
    assert all(len(splits) == 1 for splits in found.values())
    assert found.items() <= splits_of_modules(more).items()


def test_a_split_of_no_percent_does_not_exist(package):
    assert open_docstrings("tinypkg").splits() == ["train", "dev", "test"]
    assert open_docstrings("tinypkg", dev_percent=0, test_percent=0).splits() == ["train"]


def test_units_parsed_elsewhere_give_the_same_in_any_order(package):
    plain, fed = open_docstrings("tinypkg", "json"), open_docstrings("tinypkg", "json")
    assert isinstance(fed, ParallelReader)
    parse = pickle.loads(pickle.dumps(fed.parse))
    rows = [row for unit in fed.units() for row in parse(unit)]
    assert {tuple(row) for row in rows} == {
        ("module", "name", "line", "query", "passage", "reason")
    }
    random.Random(3).shuffle(rows)
    fed.feed(rows)
    assert list(fed.passages()) == list(plain.passages())
    assert queries(fed) == queries(plain)


def test_a_file_that_cannot_be_parsed_is_refused_and_the_others_read(package):
    docstring = '"""A summary of some words.\n\n    And a body.\n    """\n'
    (package / "broken.py").write_text(f"def f(:\n    {docstring}")
    (package / "null.py").write_bytes(f"def f():\n    {docstring}".encode() + b"\0")
    (package / "latin.py").write_bytes(b"x = 'na\xefve'\n" + f"def f():\n    {docstring}".encode())
    reader = open_docstrings("tinypkg")
    reason = "not Python that this interpreter can parse"
    assert rejects(reader.passages()) == [
        ("broken.py", 0, reason),
        ("latin.py", 0, reason),
        ("null.py", 0, reason),
    ]
    assert [pid for pid, _ in accepted(reader.passages())] == list(EXPECTED)


def test_a_declared_encoding_is_read(package):
    source = (FILES / "docstrings" / "tinypkg" / "birds.py").read_text()
    source = "# -*- coding: latin-1 -*-\n" + source.replace("gardener", "gärtner")
    (package / "birds.py").write_bytes(source.encode("latin-1"))
    [row] = [r for r in parse_file(str(package / "birds.py"), "m") if r["name"] == "count_herons"]
    assert "gärtner" in row["passage"]
    assert row["line"] == 2


def test_a_function_at_the_end_of_a_long_chain_of_branches(tmp_path):
    branches = "    elif x:\n        pass\n" * 1500
    path = tmp_path / "m.py"
    path.write_text(
        f"def f(x):\n    if x:\n        pass\n{branches}    else:\n        def g():\n"
        f'            """Find the right word for it.\n\n            {"word " * 25}\n'
        '            """\n'
    )
    assert [row["name"] for row in parse_file(str(path), "m")] == ["f.g"]


def test_names_that_are_not_utf8_and_links_that_lead_nowhere(package):
    os.rename(package / "birds.py", os.fsencode(package) + b"/\xff.py")
    (package / "gone.py").symlink_to("nowhere.py")
    (package / "loop.py").symlink_to("loop.py")
    os.mkfifo(package / "fifo.py")
    reader = open_docstrings("tinypkg")
    names = {fault_of(pid) for pid, _ in reader.passages()}
    assert names == {None, "not UTF-8"}  # what takes passages in refuses those of \xff.py
    assert sum(len(list(reader.queries(split))) for split in reader.splits()) == len(EXPECTED)


def test_a_file_that_went_away_is_a_reject(tmp_path):
    [row] = parse_file(str(tmp_path / "gone.py"), "m")
    assert row["reason"] == "cannot be read"


def test_a_single_module_is_a_package_too():
    [unit] = find_files("textwrap")
    assert unit["module"] == "textwrap"
    assert "textwrap:TextWrapper.fill" in parsed_names(unit)


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ([], r"source\.packages is empty"),
        (["json", "no_such_package"], r"source\.packages: no_such_package is not installed"),
        (["os.path"], r"'os\.path' is not the import name of a package"),
        (["../json"], r"'\.\./json' is not the import name"),
        ([""], r"'' is not the import name"),
        (["sys"], r"source\.packages: sys has no Python files"),
    ],
)
def test_what_the_config_names_wrongly(packages, message):
    with pytest.raises(KdscaleError, match=message):
        open_docstrings(*packages)


def test_percents_must_leave_some_for_train():
    with pytest.raises(KdscaleError, match=r"dev_percent 40 and source\.test_percent 60"):
        open_docstrings("json", dev_percent=40, test_percent=60)


def test_the_fingerprint_follows_versions_and_files(package):
    before = open_docstrings("tinypkg", "numpy").fingerprint()
    assert before["packages"].keys() == {"tinypkg", "numpy"}
    assert before == open_docstrings("tinypkg", "numpy").fingerprint()
    with (package / "birds.py").open("a") as handle:
        handle.write("# edited\n")
    assert open_docstrings("tinypkg", "numpy").fingerprint() != before


@pytest.mark.parametrize(
    ("name", "spoken"),
    [
        ("ring", "ring"),
        ("Axes.get_xlim", "axes get xlim"),
        ("Outer.InnerClass.fit_all", "inner class fit all"),
        ("solve#2", "solve"),
    ],
)
def test_a_name_in_words(name, spoken):
    assert spoken_name(name) == spoken
