import subprocess
import sys

import pytest

from kdscale.cli import main
from kdscale.commands.run import STAGES
from tests.worlds.world import make_config, make_encoder

STORE_COMMANDS = ("pull", "push", "artifacts", "gc")


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys, kdscale.cli\n"
        "try: kdscale.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'transformers', 'deepspeed', 'pyarrow', 'numpy', 'rich'}\n"
        "heavy |= {'boto3', 'filelock'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    for command in ("run", *STAGES, "results", "rank", *STORE_COMMANDS, "doctor"):
        assert command in shown


def test_no_command_shows_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", *STAGES])
def test_a_missing_config_is_one_line(command, capsys):
    assert main([command, "nowhere.yaml"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("kdscale: no config file nowhere.yaml")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("source.path=nowhere", "source.path"),
        ("teacher.model=./nowhere", "nowhere does not exist"),
        ("evaluate.measures=[nDGC@10]", "did you mean nDCG@10"),
        ("evaluate.measures={default: [AP], dev: [P@0]}", "evaluate.measures.dev: 'P@0' cannot"),
        ("evaluate.primary=nDCG@1.5", "evaluate.primary: 'nDCG@1.5' cannot be computed: cutoff"),
        ("ranker.watch.measure=RR@0", "ranker.watch.measure: 'RR@0' cannot be computed: cutoff"),
        ("teacher.train.max_steps=0", "teacher.train.max_steps: 1 or more, not 0"),
        ("evaluate.baseline=teecher", "no system 'teecher'"),
        ("evaluate.baseline=ensemble", "no system 'ensemble', only bm25, teacher, "),
        ("ensemble=[{model: ./nowhere}]", "nowhere does not exist"),
        ("teacher.train.lrr=1", "unknown key teacher.train.lrr; did you mean lr"),
        ("storage.uri=ftp://x/y", "ftp:// is not supported"),
    ],
)
def test_a_mistake_in_the_config_is_one_line_before_any_work(tmp_path, capsys, override, message):
    path = make_config(tmp_path)
    capsys.readouterr()  # saving a model may show a bar
    for further in ([], ["--dry-run"]):
        assert main(["run", str(path), "--set", override, *further]) == 1
        errors = capsys.readouterr().err
        assert message in errors and errors.startswith("kdscale: ")
        assert errors.count("\n") == 1
    assert not list(tmp_path.glob("store/*/*/manifest.json"))


def test_a_model_directory_without_weights(tmp_path, capsys):
    path = make_config(tmp_path)
    (make_encoder(tmp_path / "bare") / "model.safetensors").unlink()
    assert main(["run", str(path), "--set", f"teacher.model={tmp_path / 'bare'}"]) == 1
    assert "has no model.safetensors" in capsys.readouterr().err


def test_a_store_that_cannot_be_written(tmp_path, capsys):
    path = make_config(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["run", str(path), "--set", f"storage.uri={tmp_path / 'file' / 'x'}"]) == 1
    assert "cannot write to the store" in capsys.readouterr().err


def test_a_stage_or_student_that_the_config_does_not_have(tmp_path, capsys):
    path = make_config(tmp_path)
    assert main(["distill-lm", str(path), "--student", "huge"]) == 1
    assert "--student huge: the config has tiny" in capsys.readouterr().err
    assert main(["distill-ranker", str(path), "--set", "students=[]"]) == 1
    assert "the config asks for no distill-ranker" in capsys.readouterr().err


def test_results_of_nothing(tmp_path, capsys):
    assert main(["results", str(tmp_path)]) == 1
    assert "no evaluation" in capsys.readouterr().err
