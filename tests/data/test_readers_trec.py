import pytest

from kdscale.config import TrecSource
from kdscale.data.readers import open_reader, sgml
from kdscale.data.readers.sgml import read_sgml_documents
from kdscale.data.readers.topics import NO_TEXT, read_sgml_topics
from kdscale.data.runs import QRELS_COLUMNS
from kdscale.errors import KdscaleError
from tests.worlds.reader_files import FILES, append, compress, copy_of, everything, rejects

TREC = FILES / "trec"


@pytest.fixture
def folder(tmp_path):
    return copy_of("trec", tmp_path)


def source(folder, name="topics.tsv", **changes):
    settings = {
        "documents": [str(folder / "documents" / "*")],
        "topics": {"all": str(folder / name)},
        "qrels": {"all": str(folder / "qrels.txt")},
        "runs": {"all": str(folder / "run.txt")},
    }
    return TrecSource(**{**settings, **changes})


def words(items):
    return {identifier: " ".join(text.split()) for identifier, text in items}


def test_documents_of_every_kind():
    reader = open_reader(source(TREC))
    assert words(reader.passages()) == {
        "T-1": "Herons & fish The grey heron stands still in shallow water. It waits for fish.",
        "T-2": "a woodpecker drums on dead wood to mark its territory",
        "T-3": "Swifts sleep on the wing .",
        "T-4": "Barn owls weigh a < b.",
        "T-5": "The dipper walks under water.",
        "T-6": "Kingfisher Kingfishers dig tunnels.",
        "7": "Cranes dance.",
    }


def test_judgments_and_a_run_as_candidates():
    reader = open_reader(source(TREC))
    assert reader.splits() == ["all"]
    assert list(reader.qrels("all"))[1:] == [("1", "T-6", 2), ("2", "T-2", 1), ("2", "T-3", -1)]
    assert next(iter(reader.candidates("all"))) == ("1", "T-6", 1, 3.5)
    assert reader.negatives() is None
    assert open_reader(source(TREC, runs={})).candidates("all") is None


@pytest.mark.parametrize(
    ("name", "topics"),
    [
        ("topics.classic.txt", {"301": "birds that fish", "302": "drumming on wood"}),
        ("topics.closed.txt", {"1": "BIRDS THAT FISH", "2": "DRUMMING & WOOD"}),
        ("topics.xml", {"1": "birds that fish", "2": "drumming on wood"}),
        ("topics.tsv", {"1": "birds that fish", "2": "drumming on wood"}),
    ],
)
def test_topics_of_every_kind(name, topics):
    reader = open_reader(source(TREC, name))
    assert dict(reader.queries("all")) == topics


def topics(tmp_path, text, *fields):
    """(queries, remarks) of a file of topics."""
    path, said = tmp_path / "topics", []
    path.write_text(text)
    found = list(read_sgml_topics(path, fields or ("title",), said.append))
    return dict(found), said


@pytest.mark.parametrize(
    ("title", "query"),
    [
        ("<title> foo <b>bar</b> baz\n<desc> Description:\nx", "foo bar baz"),
        ("<title>H<sub>2</sub>O and<br>ice &lt;cold&gt;</title>", "H2O and ice <cold>"),
        ("<title>the <species>heron</species> fishes</title><narr>x</narr>", "the heron fishes"),
        ("<info><title>nested</title><desc>x</desc></info>", "nested"),
        ("<title> a\n<querytime> Tue Feb 08\n", "a"),
        ("<TITLE> Topic: Airbus <!-- a <b> comment -->Subsidies <DESC> x", "Airbus Subsidies"),
    ],
)
def test_markup_in_a_title_keeps_its_text(tmp_path, title, query):
    assert topics(tmp_path, f"<top><num> Number: 1 {title}</top>") == ({"1": query}, [])


def test_topics_without_a_title_are_queries_by_what_they_have(tmp_path):
    """As TREC 4, its clinical trials, its precision medicine and COVID have them."""
    found, said = topics(
        tmp_path,
        "<top>\n<num> Number: 201\n<desc> Description:\nWhich birds fish?\n</top>\n"
        "<topics>\n<topic number='2'>\nA man of 45, <b>ill</b>.\n</topic>\n"
        "<topic number='3'><disease>Liposarcoma</disease> <gene>CDK4</gene>\n"
        "<other>GERD</other></topic>\n"
        "<topic number='4'><query>origin of it</query><question>whence?</question>\n"
        "<narrative>long</narrative></topic>\n"
        "<topic number='5' template='x'><field name='a'>one</field><field name='b'>two</field>\n"
        "</topic><topic number='6'><title>t</title></topic></topics>\n",
    )
    assert found == {
        "201": "Which birds fish?",
        "2": "A man of 45, ill.",
        "3": "Liposarcoma CDK4 GERD",
        "4": "origin of it",
        "5": "one two",
        "6": "t",
    }
    assert said == [
        "topics: 4 of 6 topics have no <title>; their query is their <desc> (1), their text (1), "
        "all that they have (2)"
    ]


def test_the_fields_that_are_the_query_can_be_chosen(tmp_path):
    text = (
        "<topic number='1'><title>t</title><description>d</description></topic>"
        "<topic number='2'><title>only</title></topic>"
        "<topic number='3'><narrative>Narrative: n</narrative></topic>"
    )
    assert topics(tmp_path, text, "title", "desc")[0] == {"1": "t d", "2": "only", "3": "n"}
    found, said = topics(tmp_path, text, "Description", "narr")
    assert found == {"1": "d", "2": "only", "3": "n"}
    assert said == [
        "topics: 1 of 3 topics have no <desc> or <narr>; their query is their <title> (1)"
    ]
    with pytest.raises(KdscaleError, match=r"no topic of .* has a <gene>; their fields are: title"):
        topics(tmp_path, text, "gene")


def test_what_was_chosen_of_topics_is_remarked_once(folder):
    path = folder / "topics.xml"
    path.write_text("<topic number='001'>which birds fish</topic><topic number='2'>b</topic>")
    reader = open_reader(source(folder, "topics.xml"))
    assert reader.remarks() == []
    assert dict(reader.queries("all")) == {"001": "which birds fish", "2": "b"}
    assert [qid for qid, *_ in reader.qrels("all")] == ["001", "001", "2", "2"]
    assert {qid for qid, *_ in reader.candidates("all")} == {"001", "2"}
    assert list(reader.queries("all")) and list(reader.qrels("all"))
    assert reader.remarks() == [
        "topics.xml: 2 of 2 topics have no <title>; their query is their text (2)",
        "1 query ids of qrels.txt are those of topics.xml by their number (1 is 001)",
        "1 query ids of run.txt are those of topics.xml by their number (1 is 001)",
    ]


@pytest.mark.parametrize("name", ["topics.tsv", "topics.jsonl"])
def test_fields_of_files_without_any_are_refused(folder, name):
    (folder / "topics.jsonl").write_text('{"id": 1, "text": "birds that fish"}\n')
    reader = open_reader(source(folder, name, topic_fields=["desc"]))
    with pytest.raises(KdscaleError, match=r"source\.topic_fields: .*topics\..* no fields"):
        list(reader.queries("all"))
    with pytest.raises(KdscaleError, match=r"source\.topic_fields is empty"):
        open_reader(source(folder, topic_fields=[]))


def test_topics_as_json_lines(folder):
    (folder / "topics.jsonl").write_text('{"id": 1, "text": "birds that fish"}\n')
    reader = open_reader(source(folder, "topics.jsonl"))
    assert list(reader.queries("all")) == [("1", "birds that fish")]


def test_compressed_files_read_alike(folder):
    plain = everything(open_reader(source(folder, "topics.xml")))
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        compress(path)
    packed = source(
        folder,
        "topics.xml.gz",
        qrels={"all": str(folder / "qrels.txt.gz")},
        runs={"all": str(folder / "run.txt.gz")},
    )
    assert everything(open_reader(packed)) == plain


def test_malformed_documents_are_refused_and_the_others_read(folder):
    path = folder / "documents" / "a.sgml"
    path.write_bytes(
        b"<DOC>\n<DOCNO>1</DOCNO>\none\n"  # is never closed
        b"<DOC>\n<DOCNO>2</DOCNO>\nna\xefve\n</DOC>\n"
        b"stray text\n"
        b"<DOC>\nno number\n</DOC>\n"
        b"<DOC><DOCNO> </DOCNO>empty number</DOC>\n"
        b"<DOC>\n<DOCNO>3</DOCNO>\n<!-- a <P> comment -->three\n</DOC>\n"
        b"<DOC>\n<DOCNO>4</DOCNO>\ncut off"
    )
    items = list(open_reader(source(folder, documents=[str(path)])).passages())
    assert rejects(items) == [
        ("a.sgml", 1, "element is not closed"),
        ("a.sgml", 6, "not UTF-8"),
        ("a.sgml", 8, "text outside of any element"),
        ("a.sgml", 9, "document without <DOCNO>"),
        ("a.sgml", 12, "empty id"),
        ("a.sgml", 17, "element is not closed"),
    ]
    assert words(i for i in items if isinstance(i, tuple)) == {"3": "three"}


def test_malformed_topics_are_refused(tmp_path):
    path = tmp_path / "topics"
    path.write_text(
        "<top>\n<title>no number\n</top>\n<top><num>2<desc></top>\n<top><num>3<title>a\n"
        "<top><num>4<title>b</top>\n"
    )
    items = list(read_sgml_topics(path))
    assert rejects(items) == [
        ("topics", 1, "topic without a number"),
        ("topics", 4, NO_TEXT),
    ]
    assert items[2:] == [("3", "a"), ("4", "b")]


def test_other_malformed_lines_are_refused(folder):
    append(folder / "qrels.txt", b"1 0 5")
    append(folder / "run.txt", b"1 Q0 T-1 3 nan bm25", b"1 Q0 \xff 3 1 bm25")
    reader = open_reader(source(folder))
    assert rejects(reader.candidates("all")) == [
        ("run.txt", 4, "score is not finite"),
        ("run.txt", 5, "not UTF-8"),
    ]
    assert rejects(reader.qrels("all")) == [("qrels.txt", 5, QRELS_COLUMNS)]


def test_files_are_read_once_and_in_a_fixed_order(folder):
    both = [str(folder / "documents" / "b.jsonl"), str(folder / "**" / "*.[js]*")]
    found = list(words(open_reader(source(folder, documents=both)).passages()))
    assert found == ["T-5", "T-6", "7", "T-1", "T-2", "T-3", "T-4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": []}, r"source\.documents is empty"),
        ({"documents": ["none/*.gz"]}, r"source\.documents: no file none/\*\.gz"),
        ({"topics": {"all": "none.tsv"}}, r"source\.topics\.all: none\.tsv does not exist"),
        ({"qrels": {}}, r"source\.topics\.all: source\.qrels has no split 'all'"),
        ({"runs": {"all": "none"}}, r"source\.runs\.all: none does not exist"),
    ],
)
def test_what_the_config_names_wrongly(changes, message):
    with pytest.raises(KdscaleError, match=message):
        open_reader(source(TREC, **changes))


def test_the_fingerprint_follows_the_content_not_the_place(folder):
    before = open_reader(source(folder)).fingerprint()
    assert before == open_reader(source(TREC)).fingerprint()
    append(folder / "documents" / "b.jsonl", b'{"id": "T-8", "text": "one more"}')
    assert open_reader(source(folder)).fingerprint() != before


def test_vaswani(shared_data):
    root = shared_data("vaswani")
    reader = open_reader(
        TrecSource(
            documents=[str(root / "corpus" / "*")],
            topics={"all": str(root / "query-text.trec")},
            qrels={"all": str(root / "qrels")},
        )
    )
    found = everything(reader)
    assert len(found["passages"]) == 11_429
    assert found["passages"][1][0] == "2"
    assert found["passages"][1][1].startswith("an electronic analogue computer for solving")
    assert len(found["queries"]["all"]) == 93
    assert found["queries"]["all"][3] == ("4", "SYSTEMS OF DATA CODING FOR INFORMATION TRANSFER")
    assert len(found["qrels"]["all"]) == 2_083
    assert not rejects(
        [*found["passages"], *found["queries"]["all"], *found["qrels"]["all"]],
    )


LONG = 2**18


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # Each of these took minutes or hours, or ended in a traceback.
        ("<!--" * LONG, "<!--" * LONG),
        ("-->" + "<!--" * LONG, "-->" + "<!--" * LONG),
        ("<!-- a --> b" + " <!-- c" * 3, "b <!-- c <!-- c <!-- c"),
        ("&#" + "9" * 5000 + "; &#65;", "\ufffd A"),
        ("<a " * LONG, "<a " * LONG),
    ],
    ids=["open comments", "one closed", "in order", "a huge number", "open tags"],
)
def test_markup_that_is_never_closed_is_read_at_once(tmp_path, text, found):
    path = tmp_path / "d.sgml"
    path.write_text(f"<DOC><DOCNO>1</DOCNO>{text}</DOC>")
    assert words(read_sgml_documents(path)) == {"1": " ".join(found.split())}


def test_declarations_outside_of_documents_that_never_close(tmp_path):
    path = tmp_path / "d.sgml"
    path.write_text("<!DOCTYPE x>\n" + "<!" * LONG + "\n<DOC><DOCNO>1</DOCNO>a</DOC>")
    refused, document = read_sgml_documents(path)
    assert (refused.line, refused.reason) == (2, "text outside of any element")
    assert document == ("1", "a")


def test_a_document_longer_than_the_limit_is_refused_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sgml, "MAX_LINE", 100)
    path = tmp_path / "d.sgml"
    path.write_text(
        "<DOC>\n<DOCNO>1</DOCNO>\n" + "many words\n" * 20 + "</DOC>\n"
        "<DOC>\n<DOCNO>2</DOCNO>\nfew words\n</DOC>\n"
    )
    refused, document = read_sgml_documents(path)
    assert (refused.line, refused.reason) == (1, "longer than 16 MiB")
    assert document == ("2", "few words")


@pytest.mark.parametrize(
    ("path", "message"),
    [("~no_such_user/x", "home directory"), ("a\0b", "NUL"), ("x" * 300, "File name too long")],
)
def test_a_path_that_can_be_none_is_named(folder, path, message):
    for changes in ({"documents": [path]}, {"topics": {"all": path}}):
        with pytest.raises(KdscaleError, match=rf"source\..*{message}") as caught:
            open_reader(source(folder, **changes))
        assert "\n" not in str(caught.value)
