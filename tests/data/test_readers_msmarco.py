import pytest

from kdscale.config import MsMarcoSource
from kdscale.data.readers import open_reader
from kdscale.errors import KdscaleError
from tests.worlds.reader_files import append, compress, copy_of, everything, rejects


@pytest.fixture
def folder(tmp_path):
    return copy_of("msmarco", tmp_path)


def source(folder, **changes):
    settings = {
        "collection": str(folder / "collection.tsv"),
        "queries": {s: str(folder / f"queries.{s}.tsv") for s in ("train", "dev")},
        "qrels": {"dev": str(folder / "qrels.dev.tsv")},
        "candidates": {"dev": str(folder / "top1000.dev.tsv")},
        "triples": str(folder / "triples.train.tsv"),
    }
    return MsMarcoSource(**{**settings, **changes})


def test_the_tiny_set(folder):
    reader = open_reader(source(folder))
    assert len(list(reader.passages())) == 4
    assert next(reader.passages())[0] == "0"
    assert reader.splits() == ["train", "dev"]
    assert list(reader.queries("dev"))[1] == ("21", "how do owls hunt in the dark")
    assert list(reader.qrels("dev")) == [("20", "2", 1), ("21", "3", 1)]
    assert reader.candidates("train") is None


def test_without_train_qrels_the_positives_of_the_triples_are_taken_once(folder):
    reader = open_reader(source(folder))
    assert list(reader.qrels("train")) == [("10", "0", 1), ("11", "1", 1)]
    assert list(reader.negatives()) == [("10", "1"), ("10", "2"), ("11", "3")]


def test_given_train_qrels_win_over_the_triples(folder):
    (folder / "qrels.train.tsv").write_text("10\t0\t3\t1\n")
    qrels = {s: str(folder / f"qrels.{s}.tsv") for s in ("train", "dev")}
    reader = open_reader(source(folder, qrels=qrels))
    assert list(reader.qrels("train")) == [("10", "3", 1)]


def test_a_top1000_file_is_a_set_without_an_order(folder):
    """MS MARCO publishes its lines in random order."""
    found = list(open_reader(source(folder)).candidates("dev"))
    assert found == [("20", "3", None, None), ("21", "3", None, None), ("20", "2", None, None)]


def test_a_run_of_colbert_and_a_submission_are_rankings(folder):
    path = folder / "ranking.tsv"
    path.write_text("20\t3\t1\t21.5\n20\t2\t2\t20.25\n")
    reader = open_reader(source(folder, candidates={"dev": str(path)}))
    assert list(reader.candidates("dev")) == [("20", "3", 1, 21.5), ("20", "2", 2, 20.25)]
    path.write_text("20\t3\t1\n20\t2\t2\n")
    assert list(reader.candidates("dev")) == [("20", "3", 1, None), ("20", "2", 2, None)]


def test_a_trec_run_and_graded_trec_qrels(folder):
    run, qrels = str(folder / "run.dev.trec"), str(folder / "qrels.dl.txt")
    reader = open_reader(source(folder, candidates={"dev": run}, qrels={"dev": qrels}))
    assert list(reader.candidates("dev"))[:2] == [("20", "2", 1, 9.5), ("20", "3", 2, 4.25)]
    assert list(reader.qrels("dev")) == [("20", "2", 3), ("20", "0", 0)]


def test_compressed_files_read_alike(folder):
    settings = source(folder)
    plain = everything(open_reader(settings))
    for path in list(folder.iterdir()):
        compress(path)
    packed = source(
        folder,
        collection=settings.collection + ".gz",
        queries={split: path + ".gz" for split, path in settings.queries.items()},
        qrels={split: path + ".gz" for split, path in settings.qrels.items()},
        candidates={split: path + ".gz" for split, path in settings.candidates.items()},
        triples=settings.triples + ".gz",
    )
    assert everything(open_reader(packed)) == plain


def test_malformed_lines_are_refused(folder):
    append(folder / "collection.tsv", b"4 no tab", b"5\tna\xefve")
    append(folder / "queries.dev.tsv", b"\tno id")
    append(folder / "qrels.dev.tsv", b"20\t0\t2")
    append(folder / "top1000.dev.tsv", b"20\t1", b"20\t\tquery\tpassage")
    append(folder / "triples.train.tsv", b"a query\ta positive text\ta negative text")
    reader = open_reader(source(folder))
    three = "not three ids (qid, positive pid, negative pid)"
    assert rejects(reader.passages()) == [
        ("collection.tsv", 5, "not two columns (id TAB text)"),
        ("collection.tsv", 6, "not UTF-8"),
    ]
    assert rejects(reader.queries("dev")) == [("queries.dev.tsv", 3, "empty id")]
    assert rejects(reader.candidates("dev")) == [
        ("top1000.dev.tsv", 4, "not 4 columns (qid pid query passage, parted by tabs)"),
        ("top1000.dev.tsv", 5, "empty id"),
    ]
    assert rejects(reader.negatives()) == [("triples.train.tsv", 4, three)]
    assert rejects(reader.qrels("train")) == [("triples.train.tsv", 4, three)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collection": ""}, r"source\.collection is empty"),
        ({"collection": "none.tsv"}, r"source\.collection: none\.tsv does not exist"),
        ({"collection": "."}, r"source\.collection: \. is a folder"),
        ({"queries": {"dev": "none.tsv"}}, r"source\.queries\.dev: none\.tsv does not exist"),
        ({"queries": {}, "qrels": {}, "candidates": {}}, r"source\.queries is empty"),
        ({"qrels": {}}, r"source\.queries\.dev: source\.qrels has no split 'dev'"),
        ({"triples": None}, r"source\.queries\.train: source\.qrels has no split 'train'"),
        ({"triples": "none.tsv"}, r"source\.triples: none\.tsv does not exist"),
    ],
)
def test_what_the_config_names_wrongly(folder, changes, message):
    with pytest.raises(KdscaleError, match=message):
        open_reader(source(folder, **changes))


def test_splits_that_do_not_fit_together(folder):
    settings = source(folder)
    settings.candidates["dl19"] = settings.candidates["dev"]
    with pytest.raises(KdscaleError, match=r"candidates\.dl19: source\.queries has no split"):
        open_reader(settings)
    only_dev = source(folder, queries={"dev": str(folder / "queries.dev.tsv")})
    with pytest.raises(KdscaleError, match=r"source\.triples is for the split train"):
        open_reader(only_dev)


def test_the_fingerprint_follows_every_file(folder):
    seen = [open_reader(source(folder)).fingerprint()]
    for name in ("collection", "queries.dev", "qrels.dev", "top1000.dev", "triples.train"):
        append(folder / f"{name}.tsv", b"9\t9\t9")
        seen.append(open_reader(source(folder)).fingerprint())
        assert seen[-1] != seen[-2], name
