import numpy as np
import pyarrow as pa
import pytest

from kdscale.config import Config, Prepare
from kdscale.data.schema import SCORES
from kdscale.data.shards import read_shards, write_shards
from kdscale.errors import KdscaleError
from kdscale.evaluation.ensemble import Scale, combine, read_scales
from kdscale.stages.score import join_scores as run
from tests.worlds.stage_world import run_stage

PIDS = [f"p{i}" for i in range(6)]
SCORE = {
    "scores": np.array([0.5, 2.0, -1.0, 3.0, 0.0, 1.5], dtype=np.float32),
    "scores:2": np.array([40.0, 10.0, 30.0, 90.0, 20.0, 50.0], dtype=np.float32),
}


def write_scores(path, scores, pids=PIDS, shards=2):
    table = pa.table([range(len(pids)), ["q"] * len(pids), pids, scores], schema=SCORES)
    write_shards(path, table, SCORES, shards)
    return path


def test_scores_are_joined_pair_by_pair(tmp_path):
    folders = {
        role: write_scores(tmp_path / f"in{i}", scores, shards=i + 2)
        for i, (role, scores) in enumerate(SCORE.items())
    }
    facts = run_stage(run, Config(prepare=Prepare(shards=3)), tmp_path / "out", **folders)
    table = read_shards(tmp_path / "out", SCORES)
    assert table["pair_id"].to_pylist() == list(range(6)) and table["pid"].to_pylist() == PIDS
    scales = [Scale.of(scores, role) for role, scores in SCORE.items()]
    assert read_scales(tmp_path / "out") == scales
    expected = combine(list(SCORE.values()), scales)
    np.testing.assert_allclose(table["score"].to_numpy(), expected, rtol=1e-6)
    assert facts["pairs"] == 6 and facts["score_means"] == [1.0, 40.0]
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 3


@pytest.mark.parametrize("pids", [PIDS[:5], [*PIDS[:5], "other"]])
def test_scores_of_other_pairs_are_refused(tmp_path, pids):
    first = write_scores(tmp_path / "a", SCORE["scores"])
    second = write_scores(tmp_path / "b", SCORE["scores:2"][: len(pids)], pids)
    with pytest.raises(KdscaleError, match=r"scores:2 .* is not of the pairs of scores \(6\)"):
        run_stage(run, Config(), tmp_path / "out", **{"scores": first, "scores:2": second})
