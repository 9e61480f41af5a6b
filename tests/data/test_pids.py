from contextlib import closing

import pytest

from kdscale.data import pids as pids_module
from kdscale.data.pids import PassageIds


def test_ids_in_order_once(tmp_path):
    with closing(PassageIds(tmp_path)) as pids:
        assert [pids.add(pid, 0) for pid in ("b", "a", "b", "é", "c")] == [
            True, True, False, True, True,
        ]  # fmt: skip
        assert len(pids) == 4 and list(pids) == ["b", "a", "é", "c"]
        assert [pids[row] for row in range(4)] == list(pids)
        assert "a" in pids and "é" in pids and "e" not in pids and "A" not in pids
        assert "\ud800" not in pids
        with pytest.raises(IndexError):
            pids[4]


def test_an_empty_collection(tmp_path):
    with closing(PassageIds(tmp_path)) as pids:
        assert len(pids) == 0 and list(pids) == [] and "a" not in pids


def test_texts_of_ids_and_ids_of_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(pids_module, "ASKED", 2)
    with closing(PassageIds(tmp_path)) as pids:
        for pid, text in (("a", 7), ("b", -(2**63)), ("c", 7), ("d", 2**63 - 1), ("e", 7)):
            pids.add(pid, text)
        assert pids.keys(["d", "a", "b", "a", "c"]).tolist() == [2**63 - 1, 7, -(2**63), 7, 7]
        assert pids.twins(["a"]) == {"a", "c", "e"} and pids.twins({"b", "d"}) == {"b", "d"}
        assert pids.twins(["b", "d", "c"]) == set("abcde")
        assert pids.twins(()) == set() and pids.keys([]).tolist() == []
        assert pids.texts() == 3


def test_a_folder_of_any_name_and_ids_that_end_with_it(tmp_path):
    folder = tmp_path / "a ? b # c % d"
    folder.mkdir()
    with closing(PassageIds(folder)) as pids:
        pids.add("a", 0)
        assert list(folder.iterdir())
    with pytest.raises(Exception, match="closed"):
        len(list(pids))
