"""What docs/ tells people to write and to type is what kdscale understands."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kdscale.cli import _parser
from kdscale.configload import load_config
from kdscale.sweep.spec import load_sweep

ROOT = Path(__file__).parent.parent
TEXT, CLUSTER, SWEEPS, EXPORT, ADVICE = (
    (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("your-own-corpus.md", "cluster.md", "sweeps.md", "export.md", "advice.md")
)
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def commands(text, program="kdscale"):
    return [
        line.split("#")[0].strip()
        for line in text.replace("\\\n", " ").splitlines()
        if re.match(rf" +{program} ", line)
    ]


COMMANDS = [c for text in (TEXT, CLUSTER, SWEEPS, EXPORT, ADVICE) for c in commands(text)]


def test_the_config_is_complete(tmp_path):
    path = tmp_path / "mycorpus.yaml"
    path.write_text(BLOCKS[0])
    config = load_config(path)
    assert config.name == "mycorpus" and config.students[0].name == "2l-192"
    stated = yaml.safe_load(BLOCKS[0])
    assert stated["storage"]["uri"] == config.storage.uri


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_every_other_block_is_part_of_a_config(block, tmp_path):
    path = tmp_path / "mycorpus.yaml"
    given = yaml.safe_load(block)
    path.write_text(yaml.safe_dump(yaml.safe_load(BLOCKS[0]) | given))
    config = load_config(path)
    if "source" in given:
        assert config.source.type == given["source"]["type"]
    else:
        assert config.evaluate.measures_of("dl19") == given["evaluate"]["measures"]["dl19"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    args = _parser().parse_args(shlex.split(command)[1:])
    assert args.command == command.split()[1]


def test_every_command_of_the_program_is_told_of():
    told = {command.split()[1] for command in COMMANDS}
    (subparsers,) = (a for a in _parser()._actions if getattr(a, "choices", None))
    assert told == set(subparsers.choices)


def test_the_config_of_the_cluster_guide(tmp_path):
    path = tmp_path / "mycorpus.yaml"
    (block,) = re.findall(r"```yaml\n(.*?)```", CLUSTER, re.DOTALL)
    path.write_text(block)
    cluster = load_config(path).cluster
    manifest = yaml.safe_load((ROOT / "cluster/raycluster.yaml").read_text())
    groups = manifest["spec"]["workerGroupSpecs"]
    assert [cluster.worker_labels, cluster.scorer_labels] == [g["labels"] for g in groups[:2]]
    assert cluster.workers <= groups[0]["maxReplicas"]
    assert cluster.scorers <= groups[1]["maxReplicas"]


def test_the_sweep_of_the_guide(tmp_path):
    (tmp_path / "mycorpus.yaml").write_text(BLOCKS[0])
    path = tmp_path / "sweep.yaml"
    (block,) = re.findall(r"```yaml\n(.*?)```", SWEEPS, re.DOTALL)
    path.write_text(block.replace("2l-192, {name", "{name"))  # no students/ beside it
    trials = load_sweep(path).trials
    assert len(trials) == 3 * 1 * 2 * 2 * 4  # strategies, shapes, budgets, seeds, samples


def test_files_that_the_guides_name_are_there():
    named = re.findall(
        r"(?:-f |`|up |down |dashboard )((?:cluster|configs|jobs)/[\w./-]*)", CLUSTER
    )
    assert len(set(named)) >= 6
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_ray_commands_of_the_cluster_guide_are_rays():
    from ray.scripts.scripts import cli

    told = commands(CLUSTER, "ray")
    assert len(told) == 7
    for line in told:
        words = shlex.split(line)[1:]
        group = cli
        while hasattr(group, "commands"):
            group = group.commands[words.pop(0)]
        known = {option for parameter in group.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
