import pytest

from kdscale.data.words import split_words, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hepatitis B, vitamin D3", ["hepatitis", "b", "vitamin", "d3"]),
        ("2-in-1 read_csv() v1.0", ["2", "in", "1", "read_csv", "v1", "0"]),
        ("naïve Straße", ["naïve", "strasse"]),
        ("Привет, как дела?", ["привет", "как", "дела"]),
        ("ΟΔΟΣ οδός", ["οδοσ", "οδόσ"]),
        ("مرض السكري", ["مرض", "السكري"]),
        ("كِتَاب", ["كِتَاب"]),  # with its vowels one word still
        ("کتاب\u200cها", ["کتاب\u200cها"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("தமிழ் বিজ্ঞান", ["தமிழ்", "বিজ্ঞান"]),
        ("한국어 검색", ["한국어", "검색"]),
        ("ＡＢＣ ｶﾗｰ", ["abc", "カラ", "ラー"]),
        ("👨\u200d👩\u200d👧 ok", ["ok"]),
        ("", []),
    ],
)
def test_words_are_runs_of_letters_digits_and_marks(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("全文検索", ["全文", "文検", "検索"]),
        ("猫", ["猫"]),
        ("検索エンとLucene 10の猫", ["検索", "索エ", "エン", "ンと", "lucene", "10", "の猫"]),
        ("２０２０年１０月", ["2020", "年", "10", "月"]),
        ("ปวดหัว COVID-19", ["ปว", "วด", "ดหั", "หัว", "covid", "19"]),
        ("ພາສາ", ["ພາ", "າສ", "ສາ"]),
        ("ខ្មែរ", ["ខ្មែ", "មែរ"]),
        ("မြန်မာ", ["မြန်", "န်မာ"]),
        ("が", ["が"]),  # composed and decomposed
        ("か\u3099", ["が"]),
    ],
)  # fmt: skip
def test_scripts_without_spaces_are_cut_into_pairs_of_characters(text, words):
    assert split_words(text) == words


def test_stop_words_are_left_out():
    assert words_of(["The cause of a B cell", "to be"]) == [["cause", "b", "cell"], []]
