"""Texts cut into the terms by which BM25 finds them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import Any

# Those that Lucene leaves out of English text.
_ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)
STOPWORDS = frozenset(_ENGLISH.split())

_ASCII_WORD = re.compile(r"\w+", re.ASCII)
# Scripts that put no spaces between words. The mark that makes a vowel long has no script.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc"


def words_of(texts: Iterable[str]) -> list[list[str]]:
    """The terms of each text in order: `split_words` without stop words."""
    return [[word for word in split_words(text) if word not in STOPWORDS] for text in texts]


def split_words(text: str) -> list[str]:
    """Words of letters, digits, marks and underscores, folded to lower case; a word may be one
    letter long ("vitamin D").

    Text in a script that puts no spaces between words becomes overlapping pairs of characters, as
    by Lucene's CJKAnalyzer, and a character that stands alone a term of its own. A character has
    its vowel signs and other marks with it.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    # Full-width letters and half-width kana are the letters that they stand for.
    text = unicodedata.normalize("NFKC", text).casefold()
    words: list[str] = []
    runs, character = _patterns()
    for word, unspaced in runs.findall(text):
        if word:
            words.append(word)
            continue
        parts = character.findall(unspaced)
        pairs = [first + second for first, second in pairwise(parts)]
        words += pairs or parts
    return words


@cache
def _patterns() -> tuple[Any, Any]:
    """Of a word or a run of an unspaced script, and of a character of such a run. Those of the
    standard library know no scripts, and end a word at each vowel sign of Hindi or Thai."""
    import regex

    unspaced = rf"[{_UNSPACED}&&[\p{{L}}\p{{Nl}}]]"
    character = rf"{unspaced}\p{{M}}*+"
    first = rf"[[\p{{L}}\p{{N}}_]--{unspaced}]"
    # Joiners stand inside words of Indic scripts and of Persian.
    later = rf"[[\p{{L}}\p{{N}}\p{{M}}_\u200c\u200d]--{unspaced}]"
    return (
        regex.compile(rf"(?V1)(?P<word>{first}{later}*+)|(?P<unspaced>(?:{character})++)"),
        regex.compile(rf"(?V1){character}"),
    )
