from contextlib import closing

import pytest

from kdscale.data.pids import PassageIds


def test_ids_in_order_once(tmp_path):
    with closing(PassageIds(tmp_path)) as pids:
        assert [pids.add(pid) for pid in ("b", "a", "b", "é", "c")] == [
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


def test_a_folder_of_any_name_and_ids_that_end_with_it(tmp_path):
    folder = tmp_path / "a ? b # c % d"
    folder.mkdir()
    with closing(PassageIds(folder)) as pids:
        pids.add("a")
        assert list(folder.iterdir())
    with pytest.raises(Exception, match="closed"):
        len(list(pids))
