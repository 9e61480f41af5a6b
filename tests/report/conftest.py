from types import SimpleNamespace

import pytest

from kdscale.config import Evaluate
from kdscale.experiment.context import REPORT, StageContext
from kdscale.experiment.steps import report_settings
from kdscale.progress import Reporter
from kdscale.report.evidence import collect
from kdscale.stages.report import run
from kdscale.store import LocalWorkspace
from tests.worlds.report_experiment import make_config, make_inputs


@pytest.fixture(scope="session")
def experiment(tmp_path_factory):
    """The experiment of `report_experiment` and what the stage made of it, made once."""
    config = make_config(tmp_path_factory.mktemp("store"))
    inputs = make_inputs(config)
    out = tmp_path_factory.mktemp("out")
    settings, workspace = report_settings(config), LocalWorkspace(out)
    facts = run(StageContext(REPORT, settings, inputs, out, workspace, Reporter(), config.cluster))
    return SimpleNamespace(
        config=config,
        inputs=inputs,
        evidence=collect(report_settings(config), inputs),
        page=(out / "index.html").read_text(encoding="utf-8"),
        facts=facts,
    )


@pytest.fixture(scope="session")
def lenient(tmp_path_factory):
    """The evidence of the same experiment with a margin that some students keep."""
    config = make_config(tmp_path_factory.mktemp("lenient"), evaluate=Evaluate(margin=0.1))
    return collect(report_settings(config), make_inputs(config))
