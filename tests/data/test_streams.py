import io
import os
import sys
import threading
from pathlib import Path

import pytest

from kdscale.data.lines import readable_again, written_whole


def test_a_pipe_is_read_as_often_as_one_likes(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"text" * 50_000,))
    writer.start()
    with readable_again(pipe) as path:
        assert path.read_bytes() == path.read_bytes() == b"text" * 50_000
    writer.join()
    assert not path.exists()


def test_standard_input_is_a_file(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"q Q0 p 1 2.0 x\n")))
    with readable_again(Path("-")) as path:
        assert path.read_text() == "q Q0 p 1 2.0 x\n"


@pytest.mark.parametrize("name", ["file", "folder", "nothing"])
def test_what_can_be_read_again_is_not_copied(tmp_path, name):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    with readable_again(tmp_path / name) as path:
        assert path == tmp_path / name


def test_a_file_is_there_when_it_is_whole(tmp_path):
    path = tmp_path / "run"
    path.write_text("old")
    with written_whole(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError), written_whole(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["run"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "run").write_text("old")
    (tmp_path / "link").symlink_to("run")
    with written_whole(tmp_path / "link") as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "run").read_text() == "new"


def test_a_pipe_or_a_device_is_written_to_and_stays_what_it_is(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    with written_whole(pipe) as part:
        part.write_text("ranked")
    reader.join()
    assert got == ["ranked"] and pipe.is_fifo()


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_standard_output_gets_the_whole(name, capfdbinary):
    with written_whole(Path(name)) as part:
        part.write_text("ranked\n")
    assert capfdbinary.readouterr().out == b"ranked\n"
