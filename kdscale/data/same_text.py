"""Which texts are one text to a ranker, whatever their ids: a page crawled twice, say.

Two texts are the same where their letters, digits and symbols are, in this order: large and small
letters, punctuation, spaces and the widths of letters (Unicode NFKC) do not count. A passage that
differs from a relevant one in nothing else answers the query as well.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from functools import cache

import numpy as np
import pyarrow as pa

from kdscale.data.pids import PassageIds
from kdscale.data.queries import Judgments

# Punctuation, white space and controls; signs like +, $ and < stay.
_LEFT_OUT = ["Cc", "Cf", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Zs", "Zl", "Zp"]
_ASCII_LEFT_OUT = bytes(c for c in range(128) if unicodedata.category(chr(c)) in _LEFT_OUT)
LAST = 0x20000  # above are characters of Chinese and tags, no punctuation
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd: the multiples of it are all different


@cache
def _left_out() -> re.Pattern[str]:
    runs: list[list[int]] = []
    for code in range(LAST):
        if unicodedata.category(chr(code)) in _LEFT_OUT:
            if runs and runs[-1][1] == code - 1:
                runs[-1][1] = code
            else:
                runs.append([code, code])
    return re.compile("[" + "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in runs) + "]+")


def text_key(text: str) -> int:
    """64 bits, signed, that two texts share where they are the same (else once in 2**64)."""
    if text.isascii():
        content = text.lower().encode().translate(None, _ASCII_LEFT_OUT)
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        content = _left_out().sub("", folded).encode(errors="surrogatepass")
    # Of nothing but punctuation there is only that to compare.
    content = content or text.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


class RelevantByText:
    """What no negative of a query may be: passages with the text of a relevant one, and those that
    are relevant to a query of the same text.

    texts: qid -> text, and judgments, of the queries of a split
    """

    def __init__(
        self, texts: Mapping[str, str], judgments: Judgments, min_grade: int, pids: PassageIds
    ):
        self._judgments, self._min_grade, self._pids = judgments, min_grade, pids
        self._key_of = {qid: text_key(text) for qid, text in texts.items()}
        self._qids: dict[int, list[str]] = {}
        for qid, key in self._key_of.items():
            self._qids.setdefault(key, []).append(qid)

    def of(self, qid: str) -> set[str]:
        relevant = {
            pid
            for same in self._qids[self._key_of[qid]]
            for pid, grade in self._judgments.get(same, {}).items()
            if grade >= self._min_grade
        }
        return self._pids.twins(relevant)


def count_equal_candidates(
    candidates: pa.Table, judgments: Judgments, min_grade: int, pids: PassageIds
) -> dict[str, int]:
    """Of a split's CANDIDATES: "repeated", with the text of another one of their query, one of each
    text not counted; "unjudged", with the text of a passage that is relevant to their query, and
    without a judgment of their own, so that measures count them as not relevant."""
    if not candidates.num_rows:
        return {"repeated": 0, "unjudged": 0}
    qid = candidates["qid"].combine_chunks().dictionary_encode()
    pid = candidates["pid"].combine_chunks().dictionary_encode()
    key_of = pids.keys(pid.dictionary.to_pylist())
    query = qid.indices.to_numpy().astype(np.uint64)
    places = (query * _SPREAD) ^ key_of[pid.indices.to_numpy()].view(np.uint64)
    relevant = [
        (number, pid)
        for number, name in enumerate(qid.dictionary.to_pylist())
        for pid, grade in judgments.get(name, {}).items()
        if grade >= min_grade
    ]
    numbers = np.array([number for number, _ in relevant], dtype=np.uint64)
    keys = pids.keys([pid for _, pid in relevant]).view(np.uint64)
    hits = np.flatnonzero(np.isin(places, (numbers * _SPREAD) ^ keys))
    rows = candidates.select(["qid", "pid"]).take(pa.array(hits)).to_pylist()
    return {
        "repeated": len(places) - len(np.unique(places)),
        "unjudged": sum(row["pid"] not in judgments.get(row["qid"], ()) for row in rows),
    }
