"""What the tests of `kdscale export` share: a tiny student, its export, and how to judge one."""

import json
import random
import shutil

import pytest

from kdscale.cli import main
from kdscale.errors import KdscaleError
from kdscale.export.run import export
from kdscale.models.encode import PairEncoder
from kdscale.models.onnx_ranker import OnnxScorer
from kdscale.models.ranker import Scorer, load_ranker
from kdscale.progress import Reporter
from tests.worlds.small_world import ExportWorld
from tests.worlds.tiny_models import random_pairs


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return ExportWorld(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="session")
def pulled(world, tmp_path_factory):
    """The student in a folder of its own, as kdscale pull leaves it."""
    return shutil.copytree(world.student.path, tmp_path_factory.mktemp("pulled") / "student")


@pytest.fixture(scope="session")
def plain(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    assert main(["export", world.student.uri, "-o", str(out), "--onnx"]) == 0
    return out


def ids(encoder, count=25, seed=4):
    pairs = random_pairs(random.Random(seed), count, 25)
    return [tuple(encoder.tokenise(list(pair))) for pair in pairs]


def torch_scores(folder, pairs):
    return Scorer(load_ranker(folder), PairEncoder.load(folder), 256).score(pairs)


def onnx_scores(folder, pairs):
    return OnnxScorer(folder, PairEncoder.load(folder), 256).score(pairs)


def metrics_of(folder):
    return json.loads((folder / "export.json").read_text())


def forms_of(folder):
    return {row["form"]: row for row in metrics_of(folder)["forms"]}


def refused(*arguments, match, uri, out):
    with pytest.raises(KdscaleError, match=match):
        export(str(uri), out, *arguments, Reporter())
    assert not out.exists() or list(out.iterdir()) == [out / "mine"]
    assert not list(out.parent.glob(".*part"))
