"""What docs/your-own-corpus.md tells people to write and to type is what kdscale understands."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kdscale.cli import _parser
from kdscale.configload import load_config

TEXT = (Path(__file__).parent.parent / "docs/your-own-corpus.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for line in TEXT.replace("\\\n", " ").splitlines()
    if line.startswith("    kdscale ")
]


def test_the_config_is_complete(tmp_path):
    path = tmp_path / "mycorpus.yaml"
    path.write_text(BLOCKS[0])
    config = load_config(path)
    assert config.name == "mycorpus" and config.students[0].name == "2l-192"
    stated = yaml.safe_load(BLOCKS[0])
    assert stated["storage"]["uri"] == config.storage.uri


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_every_other_source_is_one(block, tmp_path):
    path = tmp_path / "mycorpus.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(BLOCKS[0]) | yaml.safe_load(block)))
    assert load_config(path).source.type == yaml.safe_load(block)["source"]["type"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    args = _parser().parse_args(shlex.split(command)[1:])
    assert args.command == command.split()[1]


def test_every_command_of_the_program_is_told_of():
    told = {command.split()[1] for command in COMMANDS}
    (subparsers,) = (a for a in _parser()._actions if getattr(a, "choices", None))
    assert told == set(subparsers.choices)
