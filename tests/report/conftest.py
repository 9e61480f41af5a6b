from types import SimpleNamespace

import pytest
from report_experiment import make_config, make_inputs

from kdscale.config import Evaluate
from kdscale.progress import Reporter
from kdscale.report.evidence import collect
from kdscale.stages.context import StageContext
from kdscale.stages.report import run
from kdscale.store import LocalWorkspace


@pytest.fixture(scope="session")
def experiment(tmp_path_factory):
    """The experiment of `report_experiment` and what the stage made of it, made once."""
    config = make_config(tmp_path_factory.mktemp("store"))
    inputs = make_inputs(config)
    out = tmp_path_factory.mktemp("out")
    facts = run(StageContext(config, inputs, out, LocalWorkspace(out), Reporter()))
    return SimpleNamespace(
        config=config,
        inputs=inputs,
        evidence=collect(config, inputs),
        page=(out / "index.html").read_text(encoding="utf-8"),
        facts=facts,
    )


@pytest.fixture(scope="session")
def lenient(tmp_path_factory):
    """The evidence of the same experiment with a margin that some students keep."""
    config = make_config(tmp_path_factory.mktemp("lenient"), evaluate=Evaluate(margin=0.1))
    return collect(config, make_inputs(config))
