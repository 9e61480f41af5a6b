import pickle

from kdscale.errors import LONGEST, KdscaleError


def test_a_message_is_one_line_that_a_terminal_shows_as_it_is():
    error = KdscaleError("bad id 'a\nb\r\x1b[2J\u2028\ud800'; mend it, größer")
    assert str(error) == r"bad id 'a\nb\r\x1b[2J\u2028\ud800'; mend it, größer"


def test_a_message_has_an_end_however_long_its_quotes():
    error = KdscaleError(f"the id {'x' * 10**6} is none; mend it")
    assert len(str(error)) < LONGEST + 10
    assert str(error).startswith("the id xx") and str(error).endswith("xx is none; mend it")


def test_it_crosses_processes():
    assert str(pickle.loads(pickle.dumps(KdscaleError("a\nb")))) == r"a\nb"
