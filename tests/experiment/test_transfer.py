"""Collections that are only evaluated: how they are prepared, ranked and shown."""

import dataclasses
import json
import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import yaml

from kdscale.cli import main
from kdscale.config import BeirSource, Config, DocstringsSource, MsMarcoSource, Transfer, TrecSource
from kdscale.data.queries import choose_queries
from kdscale.errors import KdscaleError
from kdscale.experiment.context import EVALUATION
from kdscale.experiment.load import load_config
from kdscale.experiment.run import key_of, run_steps
from kdscale.experiment.steps import build_steps
from kdscale.experiment.transfer import transfer_config
from kdscale.progress import Reporter
from kdscale.store import open_store
from tests.worlds.ids import step_id
from tests.worlds.world import make_beir, make_config

BEIR = BeirSource(path="x")


def config_of(**transfers):
    return dataclasses.replace(Config(), transfer=transfers)


def test_only_the_one_query_set_is_read():
    config = config_of(
        beir=Transfer(BEIR, max_queries=5, depth=7),
        trec=Transfer(
            TrecSource(documents=["d"], topics={"a": "1", "b": "2"}, qrels={"a": "3", "b": "4"}),
            "b",
        ),
        marco=Transfer(
            MsMarcoSource(queries={"train": "1", "dev": "2"}, candidates={}, triples="t"), "dev"
        ),
        doc=Transfer(DocstringsSource(packages=["sys"]), "dev"),
    )
    made = {name: transfer_config(config, name) for name in config.transfer}
    assert made["beir"].source.splits == {"test": "test"}
    assert made["beir"].prepare.max_queries == {"test": 5}
    assert made["beir"].prepare.default_depth == 7 and not made["beir"].prepare.depth
    assert (made["trec"].source.topics, made["trec"].source.qrels) == ({"b": "2"}, {"b": "4"})
    assert made["trec"].source.documents == ["d"] and made["trec"].source.runs == {}
    assert made["marco"].source.queries == {"dev": "2"} and made["marco"].source.triples is None
    assert made["doc"].source == config.transfer["doc"].source


def test_texts_are_treated_as_those_of_the_experiment():
    config = config_of(a=Transfer(BEIR))
    changed = replace(
        config.prepare, max_length=64, bm25_k1=0.9, negatives=3, query_as_passage="keep"
    )
    config = replace(config, prepare=changed)
    prepare = transfer_config(config, "a").prepare
    assert (prepare.max_length, prepare.bm25_k1) == (64, 0.9)
    assert prepare.query_as_passage == "keep"
    config = replace(config, prepare=replace(changed, negatives=5))
    assert transfer_config(config, "a").prepare == prepare  # what only training needs


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp("tiny"))


def add_transfer(path, **changes):
    """A copy of the config with a second collection, of other texts and questions."""
    other = path.parent / "other"
    if not other.exists():
        make_beir(other, passages=120, seed=1)
    data = yaml.safe_load(path.read_text())
    source = {"type": "beir", "path": str(other), "splits": {"test": "test", "dev": "dev"}}
    transfer = {"source": source, "depth": 6, "max_queries": 15, **changes}
    data["transfer"] = {"other": transfer}
    copy = path.with_name("with-transfer.yaml")
    copy.write_text(yaml.safe_dump(data))
    return copy


def test_a_transfer_changes_the_evaluation_and_the_page_alone(plain):
    """What goes into the keys: settings and inputs, step by step."""
    before, after = (build_steps(load_config(p)) for p in (plain, add_transfer(plain)))
    changed = {
        str(id_)
        for id_ in before
        if (key_of(before[id_]), before[id_].inputs) != (key_of(after[id_]), after[id_].inputs)
    }
    assert changed == {"evaluation", "report"}
    assert set(map(str, after.keys() - before.keys())) == {"dataset@other", "tokens@other"}
    assert not any(id_.collection for id_ in before[EVALUATION].inputs)


def test_what_is_wrong_with_its_source_names_the_transfer(plain):
    path = add_transfer(plain, source={"type": "beir", "path": "nowhere"})
    step = build_steps(load_config(path))[step_id("dataset@other")]
    with pytest.raises(KdscaleError, match=r"^transfer\.other: source\.path: no folder 'nowhere'"):
        key_of(step)


def ask_what_is_trained_on(folder):
    """One query of the transfer gets the text of a training query."""
    beir, other = folder / "beir", folder / "other"
    train = json.loads((beir / "queries.jsonl").read_text().splitlines()[0])
    rows = [json.loads(line) for line in (other / "queries.jsonl").read_text().splitlines()]
    qid = choose_queries([row["_id"] for row in rows[70:]], 15, seed=13)[0]
    for row in rows:
        if row["_id"] == qid:
            row["text"] = train["text"].upper()
    (other / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_every_system_ranks_the_other_collection(tmp_path, ray_cluster, capsys):
    path = add_transfer(make_config(tmp_path))
    ask_what_is_trained_on(tmp_path)
    sets = ["cluster.engine=torch", "ranker.strategies=[finetune]", "evaluate.depths=[3]"]
    assert main(["run", str(path), *(a for s in sets for a in ("--set", s))]) == 0
    table = capsys.readouterr().out
    assert "other/test, 3 systems" in table
    told = "asked in another split too: 1 in other/test"
    assert told in " ".join(table.split())
    store = open_store(str(tmp_path / "store"))
    assert len(store.list("datasets")) == len(store.list("tokens")) == 2
    evaluation = store.list("evaluations")[0]
    assert evaluation.facts["queries"] == {"test": 20, "other/test": 15}
    assert evaluation.facts["leaked"] == {"other/test": 1}
    runs = {p.name for p in (evaluation.path / "runs/other/test").iterdir()}
    assert runs == {"bm25.trec", "teacher.trec", "finetune--tiny.trec"}
    metrics = pq.read_table(evaluation.path / "metrics.parquet")
    assert set(metrics["split"].to_pylist()) == {"test", "other/test"}
    depths = pq.read_table(evaluation.path / "depths.parquet").to_pylist()
    assert {r["depth"] for r in depths if r["split"] == "other/test"} == {3, 6}
    assert {r["depth"] for r in depths if r["split"] == "test"} == {3, 10}
    assert main(["results", str(tmp_path / "store"), "--format", "json"]) == 0
    student = json.loads(capsys.readouterr().out)[2]
    assert isinstance(student["other/test nDCG@10"], float)
    assert isinstance(student["other/test noninferior"], bool)
    page = (store.list("reports")[0].path / "index.html").read_text(encoding="utf-8")
    section = re.search(r'<section id="transfer".*?</section>', page, re.DOTALL).group(0)
    assert "other/test" in section and "15 queries" in section
    # A transfer that was made stays, whatever changes in training.
    config = load_config(path, [*sets, "teacher.train.lr=0.5"])
    again = run_steps(config, store, None, Reporter(), dry_run=True)
    cached = {o.step.name for o in again if o.status == "cached"}
    # Of labels alone, without the teacher, is the one student.
    assert cached == {"dataset", "tokens", "dataset@other", "tokens@other", "student:finetune:tiny"}


@pytest.mark.slow
def test_vaswani_is_prepared_though_it_has_nothing_to_train_on(
    tmp_path, plain, shared_data, ray_cluster
):
    root = shared_data("vaswani")
    source = {
        "type": "trec",
        "documents": [str(root / "corpus" / "*")],
        "topics": {"test": str(root / "query-text.trec")},
        "qrels": {"test": str(root / "qrels")},
    }
    config = load_config(add_transfer(plain, source=source, depth=20, max_queries=None))
    outcomes = run_steps(config, open_store(str(tmp_path)), [step_id("tokens@other")], Reporter())
    dataset, tokens = (o.artifact for o in outcomes)
    assert dataset.facts["queries"]["test"]["kept"] == 93 and dataset.facts["pairs"] == 0
    assert dataset.facts["passages"] == 11_429 and tokens.facts["queries"] == {"test": 93}
