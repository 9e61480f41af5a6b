"""The whole road on a tiny world: what is made, what is made again, and what a stop leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from kdscale.cli import main
from kdscale.config import STRATEGIES
from kdscale.errors import KdscaleError
from kdscale.experiment.context import DATASET, TEACHER
from kdscale.experiment.load import load_config
from kdscale.experiment.run import run_steps
from kdscale.experiment.steps import build_steps
from kdscale.progress import Reporter
from kdscale.store import open_store
from tests.worlds.world import make_config

pytestmark = pytest.mark.slow

DEEPSPEED = ["--set", "cluster.engine=deepspeed"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_cluster):
    """A finished run of the tiny experiment: teacher, language model and one student are trained
    by DeepSpeed under Ray Train, the other students in this process."""
    cluster = {"workers": 1, "scorers": 1, "engine": "torch"}
    path = make_config(tmp_path_factory.mktemp("tiny"), cluster=cluster)
    strategy = ["--strategy", "lm_distill_ranker_distill"]
    # A relative folder, which workers of Ray Train have to find from a directory of their own; the
    # second run, with the absolute one, finds all that was made so.
    relative = os.path.relpath(path.parent / "encoder")
    teacher = ["--set", f"teacher.model={relative}"]
    assert main(["distill-ranker", str(path), *strategy, *DEEPSPEED, *teacher]) == 0
    assert main(["run", str(path)]) == 0
    return path


def _statuses(path, *overrides):
    config = load_config(path, list(overrides))
    outcomes = run_steps(config, open_store(config.storage.uri), None, Reporter(), dry_run=True)
    return {o.step.name: o.status for o in outcomes}


def test_everything_is_made(finished):
    config = load_config(finished)
    store = open_store(config.storage.uri)
    kinds = {kind: len(store.list(kind)) for kind in ("datasets", "tokens", "teachers", "scores")}
    assert kinds == {"datasets": 1, "tokens": 1, "teachers": 1, "scores": 1}
    assert len(store.list("lms")) == 1
    students = store.list("students")
    assert {a.manifest["config"]["strategy"] for a in students} == set(STRATEGIES)
    for artifact in students:
        files = {f["path"] for f in artifact.manifest["files"]}
        assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl"} <= files
        assert not any("projection" in f or "teacher" in f for f in files)
    scores = store.list("scores")[0]
    assert scores.facts["pairs"] == store.list("datasets")[0].facts["pairs"]
    systems = json.loads((store.list("evaluations")[0].path / "systems.json").read_text())
    assert len(systems) == 2 + len(STRATEGIES)
    page = (store.list("reports")[0].path / "index.html").read_text(encoding="utf-8")
    assert "lm_distill_ranker_distill" in page
    assert not list((store.root / ".staging").iterdir())


def test_every_file_and_folder_has_the_mode_of_the_umask(finished):
    mask = os.umask(0)
    os.umask(mask)
    root = open_store(load_config(finished).storage.uri).root
    modes = {p: p.stat().st_mode & 0o777 for p in (root, *root.rglob("*"))}
    assert any(p.name == "model.safetensors" for p in modes)
    assert {m for p, m in modes.items() if p.is_file()} == {0o666 & ~mask}
    assert {m for p, m in modes.items() if p.is_dir()} == {0o777 & ~mask}


def test_lineage_leads_from_a_student_to_the_data(finished):
    store = open_store(load_config(finished).storage.uri)
    by_name = {a.name: a for kind in store.root.iterdir() for a in store.list(kind.name)}
    student = next(a for a in store.list("students") if "lm" in a.manifest["inputs"])
    lm = by_name[student.manifest["inputs"]["lm"]["name"]]
    tokens = by_name[lm.manifest["inputs"]["tokens"]["name"]]
    dataset = by_name[tokens.manifest["inputs"]["dataset"]["name"]]
    assert dataset.manifest["config"]["source"]["content"]
    assert dataset.digest == student.manifest["inputs"]["dataset"]["digest"]


def test_running_again_does_nothing_and_says_so(finished, capsys):
    assert set(_statuses(finished).values()) == {"cached"}
    before = sorted(finished.parent.glob("store/*/*"))
    assert main(["run", str(finished)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert sorted(finished.parent.glob("store/*/*")) == before


@pytest.mark.parametrize(
    ("override", "rerun"),
    [
        ("report.title=other", {"report"}),
        ("evaluate.alpha=0.01", {"evaluation", "report"}),
        (
            "lm.train.lr=0.002",
            {"lm:tiny", "student:lm_distill_finetune:tiny"}
            | {"student:lm_distill_ranker_distill:tiny", "evaluation", "report"},
        ),
        (
            "ranker.soft_losses={ranknet: 1}",
            {"student:ranker_distill:tiny", "student:lm_distill_ranker_distill:tiny"}
            | {"evaluation", "report"},
        ),
        (
            "ranker.seed=5",  # other students of one teacher
            {f"student:{strategy}:tiny" for strategy in STRATEGIES} | {"evaluation", "report"},
        ),
        ("cluster.scorers=2", set()),
        # Changes no result, but the page shows the exact configuration.
        ("ranker.train.checkpoint_every=7", {"report"}),
        ("ranker.watch.every=2", {"report"}),  # looking changes no student
        (
            "ranker.watch={every: 2, keep_best: true}",
            {f"student:{strategy}:tiny" for strategy in STRATEGIES} | {"evaluation", "report"},
        ),
    ],
)
def test_a_change_reruns_its_stage_and_what_depends_on_it(finished, override, rerun):
    statuses = _statuses(finished, override)
    assert {name for name, status in statuses.items() if status != "cached"} == rerun


def test_masked_lm_and_intermediate_terms_are_trained_logged_and_not_exported(finished, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(finished.parent / "store", store)
    sets = [
        f"storage.uri={store}",
        "lm.losses={hidden: 1, mlm: 1, mlm_kl: 1}",
        "lm.head_steps=3",
        "ranker.intermediate_losses={hidden: 1, attention_kl: 1, qkv: 0.5}",
        "students=[{name: tiny, layers: 1, hidden: 16, heads: 4, intermediate: 32}]",
    ]
    arguments = [a for s in sets for a in ("--set", s)]
    strategy = "lm_distill_ranker_distill"
    command = ["distill-ranker", str(finished), "--strategy", strategy]
    assert main([*command, *arguments, *DEEPSPEED]) == 0
    store = open_store(str(store))
    student = next(a for a in store.list("students") if "teacher" in a.manifest["inputs"])
    lm = next(a for a in store.list("lms") if a.name == student.manifest["inputs"]["lm"]["name"])
    assert lm.facts["teacher_head_steps"] == 3 and lm.facts["teacher_head_loss"] > 0
    for artifact, terms in (
        (lm, {"hidden", "mlm", "mlm_kl"}),
        (student, {"listwise_kl", "lce", "hidden", "attention_kl", "qkv"}),
    ):
        rows = (artifact.path / "metrics.jsonl").read_text().splitlines()
        assert all(set(json.loads(row)["terms"]) == terms for row in rows)
        names = load_file(artifact.path / "model.safetensors")
        assert not [n for n in names if "projection" in n or "head" in n or "masked" in n]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ranker.watch={every: 2, measure: nDGC@10}", "ranker.watch.measure: unknown .*nDCG@10"),
        ("ranker.watch={every: 2, measure: nDCG@x}", "ranker.watch.measure: .*"),
        (
            "source.splits={train: train, test: test}",
            "ranker.watch: the dataset has no split 'dev'",
        ),
    ],
)
def test_a_student_that_cannot_be_watched_is_refused_before_anything_is_made(
    tmp_path, override, message
):
    path = make_config(tmp_path, ranker={"watch": {"every": 2}})
    config = load_config(path, [override])
    store = open_store(config.storage.uri)
    with pytest.raises(KdscaleError, match=message) as caught:
        run_steps(config, store, None, Reporter())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_teacher_needs_no_split_to_watch_students_by(tmp_path):
    splits = "source.splits={train: train, test: test}"
    config = load_config(make_config(tmp_path, ranker={"watch": {"every": 2}}), [splits])
    run_steps(config, open_store(config.storage.uri), [TEACHER], Reporter(), dry_run=True)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("source.splits={test: test}", "nothing to train with: it has no split 'train', only test"),
        ("evaluate.splits=[tset]", "no split 'tset', only train, dev, test"),
        ("evaluate.splits=[]", "evaluate.splits is empty; name some of train, dev, test"),
        ("prepare.extra_text=[nowhere.jsonl]", "prepare.extra_text: no file nowhere.jsonl"),
    ],
)
def test_a_split_or_a_file_that_is_not_there_is_told_before_anything_is_made(
    tmp_path, override, message, dry_run
):
    config = load_config(make_config(tmp_path), [override])
    store = open_store(config.storage.uri)
    with pytest.raises(KdscaleError, match=message):
        run_steps(config, store, None, Reporter(), dry_run=dry_run)
    assert not (tmp_path / "store").exists()
    run_steps(config, store, [DATASET], Reporter(), dry_run=True)  # which any split will do for


def test_a_dry_run_prints_the_plan_and_touches_nothing(finished, capsys):
    store = finished.parent / "nowhere"
    assert main(["run", str(finished), "--dry-run", "--set", f"storage.uri={store}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(build_steps(load_config(finished)))
    assert all(line.startswith("would run") for line in lines)
    assert not store.exists()


def test_one_stage_makes_what_it_needs_and_no_more(tmp_path, ray_cluster):
    path = make_config(tmp_path)
    arguments = ["distill-ranker", str(path), "--strategy", "finetune"]
    assert main([*arguments, "--set", "cluster.engine=torch"]) == 0
    store = open_store(str(tmp_path / "store"))
    assert len(store.list("students")) == 1
    assert store.list("teachers") == store.list("scores") == store.list("lms") == []


def test_the_results_as_table_json_and_csv(finished, capsys):
    uri = str(finished.parent / "store")
    assert main(["results", uri, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["system"] for r in rows][:2] == ["bm25", "teacher"]
    assert main(["results", uri, "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1
    assert main(["results", uri]) == 0
    table = capsys.readouterr().out
    assert "ranker_distill/tiny" in table and "…" not in table


def test_an_exported_student_gives_one_score_everywhere(finished, tmp_path, capsys):
    """kdscale rank, AutoModelForSequenceClassification, and CrossEncoder agree to 1e-4."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    store = open_store(str(finished.parent / "store"))
    student = next(
        a.path
        for a in store.list("students")
        if a.manifest["config"]["strategy"] == "lm_distill_ranker_distill"
    )
    beir = finished.parent / "beir"
    texts = {
        name: {
            row["_id"]: row["text"]
            for row in map(json.loads, (beir / f"{name}.jsonl").read_text().splitlines())
        }
        for name in ("queries", "corpus")
    }
    run = tmp_path / "run.trec"
    pids = sorted(texts["corpus"])[:12]
    run.write_text("".join(f"q001 Q0 {p} {i + 1} {9 - i} x\n" for i, p in enumerate(pids)))
    out = tmp_path / "out.trec"
    options = ["--queries", beir / "queries.jsonl", "--passages", beir / "corpus.jsonl"]
    assert main(["rank", *map(str, [student, *options, "--run", run, "-o", out])]) == 0
    ranked = {line.split()[2]: float(line.split()[4]) for line in out.read_text().splitlines()}
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
    pairs = [(texts["queries"]["q001"], texts["corpus"][p]) for p in ranked]
    assert list(ranked.values()) == pytest.approx(
        CrossEncoder(str(student)).predict(pairs).tolist(), abs=1e-4
    )
    model = AutoModelForSequenceClassification.from_pretrained(student).eval()
    tokenizer = AutoTokenizer.from_pretrained(student)
    inputs = tokenizer(
        *zip(*pairs, strict=True), padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**inputs).logits[:, 0].tolist()
    assert list(ranked.values()) == pytest.approx(logits, abs=1e-4)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_stage_leaves_no_half_artifact(tmp_path, signum):
    """Stopped in the teacher's training; the same command then resumes and finishes it."""
    path = make_config(tmp_path)
    slow = ["--set", "teacher.train.max_steps=2000", "--set", "teacher.train.checkpoint_every=20"]
    command = [sys.executable, "-m", "kdscale", "finetune", str(path)]
    command += ["--set", "cluster.engine=torch"]
    process = subprocess.Popen(
        [*command, *slow], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    store = tmp_path / "store"
    deadline = time.monotonic() + 240
    while not list(store.glob(".work/teachers/*/step-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; finished stages are kept" in errors and "Traceback" not in errors
    assert not list(store.glob("teachers/*")) and not list((store / ".staging").iterdir())
    assert len(list(store.glob("tokens/*/manifest.json"))) == 1


@pytest.mark.slow
def test_a_stop_while_ray_starts_is_a_stop_too(tmp_path):
    """Ray takes SIGTERM for itself while it starts, and would end with its own exit code."""
    path = make_config(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "kdscale", "prepare", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "starting Ray" in line:
            break
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped; finished stages are kept" in errors and "Traceback" not in errors


def test_two_workers_learn_what_one_process_learns(tmp_path, ray_cluster):
    """DeepSpeed on two Ray Train workers and plain torch: the same batches, the same losses."""
    curves = []
    for name, overrides in (
        ("one", ["cluster.engine=torch"]),
        ("two", ["cluster.workers=2"]),
    ):
        path = make_config(tmp_path)
        store = tmp_path / name
        sets = [f"storage.uri={store}", "teacher.train.log_every=1", *overrides]
        arguments = [a for s in sets for a in ("--set", s)]
        assert main(["finetune", str(path), *arguments]) == 0
        metrics = next(store.glob("teachers/*/metrics.jsonl")).read_text().splitlines()
        curves.append([json.loads(row) for row in metrics])
    losses = [[row["loss"] for row in curve] for curve in curves]
    norms = [[row["grad_norm"] for row in curve] for curve in curves]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
