import subprocess
import sys

import ir_datasets
import pytest
from ir_datasets.formats import TrecQrels, TrecScoredDocs, TsvDocPairs, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload

from kdscale.config import IrDatasetsSource
from kdscale.data.readers import open_reader
from kdscale.errors import KdscaleError
from tests.worlds.reader_files import FILES, accepted

MSMARCO = FILES / "msmarco"


def register(name, *components):
    """A dataset of our own in the catalogue of this process."""
    ir_datasets.registry.register(name, ir_datasets.Dataset(*components))


def file(path):
    return LocalDownload(str(path))


@pytest.fixture(scope="module", autouse=True)
def catalogue(tmp_path_factory):
    """kdscale-test has documents, its /train also triples, its /dev a run; and bad ones."""
    folder = tmp_path_factory.mktemp("qrels")
    (folder / "train").write_text("10 0 0 1\n11 0 1 1\n")
    (folder / "bad").write_text("10 0 0 1\nthis is no judgment\n")
    docs, other_docs = (TsvDocs(file(MSMARCO / "collection.tsv")) for _ in range(2))
    train = TsvQueries(file(MSMARCO / "queries.train.tsv"))
    dev = TsvQueries(file(MSMARCO / "queries.dev.tsv"))
    dev_qrels = TrecQrels(file(MSMARCO / "qrels.dl.txt"), {})
    triples = TsvDocPairs(file(MSMARCO / "triples.train.tsv"))
    run = TrecScoredDocs(file(MSMARCO / "run.dev.trec"))
    register("kdscale-test", docs)
    register("kdscale-test/train", docs, train, TrecQrels(file(folder / "train"), {}), triples)
    register("kdscale-test/dev", docs, dev, dev_qrels, run)
    register("kdscale-test/bad", docs, train, TrecQrels(file(folder / "bad"), {}))
    register("kdscale-other", other_docs, dev, dev_qrels)
    yield
    for name in [n for n in ir_datasets.registry if n.startswith("kdscale-")]:
        del ir_datasets.registry._registered[name]


def test_a_dataset_id_a_split():
    ids = {"train": "kdscale-test/train", "dev": "kdscale-test/dev"}
    reader = open_reader(IrDatasetsSource(ids=ids))
    assert reader.splits() == ["train", "dev"]
    assert list(reader.passages())[3] == ("3", "Barn owls find mice by sound alone.")
    assert next(iter(reader.queries("dev"))) == ("20", "bird that sleeps while it flies")
    assert list(reader.qrels("train")) == [("10", "0", 1), ("11", "1", 1)]
    assert list(reader.qrels("dev")) == [("20", "2", 3), ("20", "0", 0)]
    assert reader.candidates("train") is None
    assert list(reader.candidates("dev")) == [
        ("20", "2", None, 9.5),  # the place of an entry is no rank
        ("20", "3", None, 4.25),
        ("21", "3", None, 7.0),
    ]
    assert list(reader.negatives()) == [("10", "1"), ("10", "2"), ("11", "3")]
    assert reader.fingerprint() == {"ids": ids, "ir_datasets": ir_datasets.__version__}


def test_one_undivided_set():
    reader = open_reader(IrDatasetsSource(ids={"all": "kdscale-other"}))
    assert reader.splits() == ["all"]
    assert len(accepted(reader.queries("all"))) == 2
    assert reader.negatives() is None


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({}, r"source\.ids is empty"),
        (
            {"dev": "msmarco-pasage/dev"},
            r"source\.ids\.dev: .* no dataset 'msmarco-pasage/dev'; did you mean msmarco-passage/",
        ),
        ({"dev": "@@"}, r"no dataset '@@'; see https://ir-datasets\.com"),
        ({"all": "kdscale-test"}, r"source\.ids\.all: kdscale-test has no queries"),
        (
            {"train": "kdscale-test/train", "dev": "kdscale-other"},
            r"source\.ids\.dev: kdscale-other does not share its documents with kdscale-test/train",
        ),
    ],
)
def test_what_the_config_names_wrongly(ids, message):
    with pytest.raises(KdscaleError, match=message):
        open_reader(IrDatasetsSource(ids=ids))


def test_what_ir_datasets_cannot_read_is_named():
    reader = open_reader(IrDatasetsSource(ids={"train": "kdscale-test/bad"}))
    with pytest.raises(
        KdscaleError, match=r"source\.ids\.train: .* could not read the qrels of kdscale-test/bad"
    ):
        list(reader.qrels("train"))


def test_ir_datasets_is_imported_only_when_it_is_the_source():
    code = (
        "import sys; from kdscale.config import BeirSource; from kdscale.data import readers, runs;"
        f"readers.open_reader(BeirSource(path={str(FILES / 'beir')!r}));"
        "sys.exit('ir_datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
