"""A terminal whose encoding lacks our characters, for real: by PYTHONIOENCODING."""

import io
import os
import re
import subprocess
import sys

import pytest

from kdscale.plaintext import PLAIN, plain_where_needed
from kdscale.stages.evaluate import run
from tests.worlds.artifacts import commit
from tests.worlds.small_world import SmallWorld

SETTINGS = {"evaluate": {"primary": "nDCG@10", "baseline": "teacher"}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    world = SmallWorld(tmp_path_factory.mktemp("world"))
    commit(world.store, "evaluations", "e", lambda out: run(world.context(out)), config=SETTINGS)
    return world.store.root


def results(store, encoding):
    done = subprocess.run(
        [sys.executable, "-m", "kdscale", "results", store],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0 and done.stderr == b""
    return done.stdout.decode(encoding.partition(":")[0])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_a_table_is_readable_where_its_characters_cannot_be_shown(store, encoding):
    whole, plain = results(store, "utf-8"), results(store, encoding)
    assert "Δ" in whole and "?" not in plain
    # Of a table's lines Rich makes characters of ASCII by itself.
    words = [re.sub(r"[─|+-]{3,}|\|", " ", text).split() for text in (whole, plain)]
    assert [word.translate(PLAIN) for word in words[0]] == words[1]


def test_what_has_no_plain_likeness_is_a_question_mark():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    plain_where_needed(stream)
    print("größer Δ 漢 \udce9 a", file=stream, flush=True)
    assert raw.getvalue() == b"gr??er d ? ? a\n"


def test_the_c_locale_gets_plain_characters_and_the_bytes_of_a_files_name(store):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="surrogateescape")
    plain_where_needed(stream)
    print("Δ ü", os.fsdecode(b"name-\xe9"), file=stream, flush=True)
    assert raw.getvalue() == b"d ? name-\xe9\n"
    # For real: without UTF-8 mode and locale coercion, which Python usually brings in here.
    done = subprocess.run(
        [sys.executable, "-m", "kdscale", "results", store],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
    )
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.isascii()


def test_a_stream_that_has_its_own_way_keeps_it():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    plain_where_needed(stream)
    print("Δ", file=stream, flush=True)
    assert raw.getvalue() == b"\\u0394\n"
    plain_where_needed(io.StringIO())  # has no encoding
