from dataclasses import replace

import numpy as np
import pytest

from kdscale.config import Cluster, Score
from kdscale.data.dataset import Dataset, Tokens
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards
from kdscale.errors import KdscaleError
from kdscale.models.pretrained import load_encoder
from kdscale.models.ranker import Scorer, build_ranker, load_ranker, save_ranker
from kdscale.stages import prepare
from kdscale.stages import tokens as tokens_stage
from kdscale.stages.score import run
from tests.worlds.stage_world import artifact, run_stage, small_config
from tests.worlds.world import make_beir, make_encoder


@pytest.fixture(scope="module")
def inputs(ray_cluster, tmp_path_factory):
    """(config, the three input folders) of a scoring stage."""
    root = tmp_path_factory.mktemp("score")
    config = small_config(make_encoder(root / "encoder"), make_beir(root / "beir"))
    run_stage(prepare.run, config, root / "dataset")
    run_stage(tokens_stage.run, config, root / "tokens", dataset=root / "dataset")
    ranker = build_ranker(load_encoder(str(root / "encoder")), 0.0, seed=1)
    for weight in ranker.parameters():  # far apart, so that a mix-up of pairs shows
        weight.data.mul_(10)
    save_ranker(ranker, Tokens(root / "tokens").encoder(), root / "teacher")
    return config, {name: root / name for name in ("dataset", "tokens", "teacher")}


@pytest.mark.slow
@pytest.mark.parametrize("scorers", [0, 2])  # 0: in this process
def test_every_pair_gets_the_teachers_logit(inputs, tmp_path, scorers):
    config, folders = inputs
    config = replace(
        config,
        cluster=Cluster(scorers=scorers, cpus_per_scorer=0.5),
        score=Score(batch_tokens=64),  # several blocks
    )
    facts = run_stage(run, config, tmp_path / "scores", **folders)
    scores = read_shards(tmp_path / "scores", SCORES)
    pairs, tokens = Dataset(folders["dataset"]).pairs(), Tokens(folders["tokens"])
    assert scores.drop_columns("score").equals(pairs.select(["pair_id", "qid", "pid"]))
    scorer = Scorer(load_ranker(folders["teacher"]), tokens.encoder())
    passages = tokens.passage_ids(pairs["pid"].to_pylist())
    expected = scorer.score(
        [(tokens.query_ids("train", row["qid"]), passages[row["pid"]]) for row in pairs.to_pylist()]
    )
    assert expected.std() > 0.1
    assert np.abs(scores["score"].to_numpy() - expected).max() < 1e-4
    assert facts["pairs"] == pairs.num_rows == 300 and facts["pairs_per_s"] > 0
    assert facts["teacher"] == artifact(folders["teacher"]).digest
    assert (facts["max_length"], facts["dtype"]) == (32, "fp32")
    assert facts["tokenizer"] == tokens.info["tokenizer"]


@pytest.mark.slow
def test_a_teacher_without_finite_scores(inputs, tmp_path):
    config, folders = inputs
    ranker = load_ranker(folders["teacher"])
    ranker.classifier.bias.data.fill_(float("nan"))
    save_ranker(ranker, Tokens(folders["tokens"]).encoder(), tmp_path / "teacher")
    with pytest.raises(KdscaleError, match="300 of 300 pairs is not a finite number"):
        run_stage(run, config, tmp_path / "scores", **{**folders, "teacher": tmp_path / "teacher"})


@pytest.mark.slow
def test_actors_that_cannot_fit_are_refused_at_once(inputs, tmp_path, ray_cluster):
    config, folders = inputs
    have = ray_cluster.cluster_resources()["CPU"]
    config = replace(config, cluster=Cluster(scorers=int(have), cpus_per_scorer=1.0))
    with pytest.raises(KdscaleError, match=rf"scorers={have:g} needs {have:g} x 1 CPUs"):
        run_stage(run, config, tmp_path / "scores", **folders)
