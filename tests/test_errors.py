import pickle

from kdscale.errors import LONGEST, KdscaleError, by_proxy


def test_a_message_is_one_line_that_a_terminal_shows_as_it_is():
    error = KdscaleError("bad id 'a\nb\r\x1b[2J\u2028\ud800'; mend it, größer")
    assert str(error) == r"bad id 'a\nb\r\x1b[2J\u2028\ud800'; mend it, größer"


def test_a_message_has_an_end_however_long_its_quotes():
    error = KdscaleError(f"the id {'x' * 10**6} is none; mend it")
    assert len(str(error)) < LONGEST + 10
    assert str(error).startswith("the id xx") and str(error).endswith("xx is none; mend it")


def test_it_crosses_processes():
    assert str(pickle.loads(pickle.dumps(KdscaleError("a\nb")))) == r"a\nb"


def test_a_proxy_in_between_is_named_without_its_credentials(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert by_proxy("http://head:8265") == ""
    monkeypatch.setenv("HTTP_PROXY", "http://someone:s3cret@proxy.example:3128/")
    assert by_proxy("https://head:8265") == ""
    told = by_proxy("http://head:8265/x")
    assert "head was asked through the proxy proxy.example:3128 (HTTP_PROXY)" in told
    assert "NO_PROXY" in told and "s3cret" not in told and "someone" not in told
    monkeypatch.setenv("ALL_PROXY", "proxy.example:1080")
    assert "proxy.example:1080 (ALL_PROXY)" in by_proxy("https://head:8265")
    monkeypatch.setenv("NO_PROXY", "localhost,head")
    assert by_proxy("http://head:8265") == ""
