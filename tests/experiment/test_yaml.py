import itertools
from pathlib import Path

import pytest

from kdscale.errors import KdscaleError
from kdscale.experiment.load import MAX_BYTES, parse_yaml, read_yaml

LETTERS = "abcdefgh"


def _multiplying(line: str) -> str:
    """Nine of nine of nine ... of what stands at `a`."""
    lines = [
        f"{later}: &{later} " + line.format(",".join([f"*{earlier}"] * 9))
        for earlier, later in itertools.pairwise(LETTERS)
    ]
    return "\n".join(["a: &a {k: v}", *lines])


def test_plain_values_aliases_and_merges_are_read():
    text = "a: &a {x: 1, y: [2.5, text, null, true]}\nb: {<<: *a, x: 3}\nc: *a"
    value = parse_yaml(text, "t")
    assert value["b"] == {"x": 3, "y": [2.5, "text", None, True]} and value["c"] == value["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_multiplying("[{}]"), "t, line 6: more than a config can hold"),
        (_multiplying("{{<<: [{}]}}"), "more than a config can hold"),
        ("a: &a [*a]", "t, line 1: an alias inside of what it stands for"),
        ("a: &a {<<: *a}", "an alias inside of what it stands for"),
        ("[" * 500_000, "nested deeper than 50"),
        ("- " * 500_000, "nested deeper than 50"),
        ("[" + "a," * 500_000 + "]", "more than a config can hold"),
        ("!!python/object/apply:os.system [exit]", "could not determine a constructor"),
        ("!!python/name:os.system x", "could not determine a constructor"),
        ("a:\n  2001-13-45", "t, line 2: '2001-13-45' is no timestamp"),
        ("!!timestamp x", "'x' is no timestamp"),
        ("!!bool x", "'x' is no bool"),
        ("!!int x", "'x' is no int"),
        ("9" * 5000, "is no int"),
        ("0b_", "is no int"),
        ("1" + ":59" * 5000 + ".5", "is no float"),
        ("0x" + "f" * 5000, "64 bits"),
        ("[*a]", "undefined alias"),
        ("{[a]: 1}", "unhashable"),
        ("a\0b", "t: not YAML"),
        ("\udc80", "t: not YAML"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_config_is_refused_at_once(text, message):
    # Without the limits, some of these would take all memory, and some would never end.
    with pytest.raises(KdscaleError, match=message) as caught:
        parse_yaml(text, "t")
    assert "\n" not in str(caught.value)


def test_a_file_too_large_for_a_config_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("# comment\n" * (MAX_BYTES // 10 + 1))
    with pytest.raises(KdscaleError, match="larger than 1 MiB"):
        read_yaml(path)
    with pytest.raises(KdscaleError, match="larger than 1 MiB"):
        read_yaml(Path("/dev/zero"))  # it has no end
