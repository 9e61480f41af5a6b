import pytest

from kdscale.data.queries import describe, ids_of, renamed, same_numbers
from kdscale.data.readers.base import Reject


@pytest.mark.parametrize(
    ("known", "named", "names"),
    [
        (["051", "099", "100"], ["51", "99", "100"], {"51": "051", "99": "099"}),
        (["51", "52"], ["051"], {"051": "51"}),
        (["MB001", "MB010"], ["1", "10", "11"], {"1": "MB001", "10": "MB010"}),
        (["1"], ["q1"], {"q1": "1"}),
        (["0"], ["00"], {"00": "0"}),
        # One number for two ids, on either side
        (["51", "051"], ["51", "0051"], {}),
        (["051"], ["51", "0051"], {}),
        (["MB1", "TB1"], ["1"], {}),
        # Other ids, not other spellings
        (["PLAIN-1", "PLAIN-2"], ["MED-1"], {}),
        (["051", "q"], ["51"], {}),
        (["2019-051"], ["51"], {}),
        (["1", "2"], ["1"], {}),
        (["1", "2"], ["3"], {}),
        ([], ["3"], {}),
        (["3"], [], {}),
    ],
)
def test_ids_are_matched_by_number_where_that_is_certain(known, named, names):
    assert same_numbers(known, named) == names


def test_items_get_the_known_ids():
    refused = Reject("f", 1, "no", "x")
    items = [("51", "p", 1), refused, ("100", "p", 0)]
    assert ids_of(items) == {"51", "100"}
    assert list(renamed(items, {"51": "051"})) == [("051", "p", 1), refused, ("100", "p", 0)]
    assert "2 query ids of qrels" in describe({"51": "051", "99": "099"}, "qrels", "topics")
