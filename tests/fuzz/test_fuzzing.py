"""The sandbox sees what it is there to see."""

from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from tests.fuzz.fuzzing import CASES, NASTY


def test_the_cases_are_ten_thousand():
    assert sum(CASES.values()) == 10_000
    assert len(set(NASTY)) == len(NASTY) > 50


@pytest.mark.parametrize(
    "path",
    ["stray", "../home/.stray", "../tmp/stray", "../beside/file", "../stray", "../new/stray"],
)
def test_a_file_outside_of_the_target_is_seen(sandbox, path):
    def case():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("other")

    with pytest.raises(AssertionError):
        sandbox.works(case, ())


def test_files_in_the_target_are_the_cases_own(sandbox):
    assert sandbox.works(lambda: (sandbox.target / "made").write_text("x"), ())


def test_another_error_is_no_answer(sandbox):
    def refuse():
        raise KdscaleError("a line")

    assert not sandbox.works(refuse, ())
    with pytest.raises(ZeroDivisionError):
        sandbox.works(lambda: 1 / 0, ())
