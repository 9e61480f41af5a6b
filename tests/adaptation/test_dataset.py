import pytest

from tests.adaptation.conftest import adapt, student_of


@pytest.mark.slow
def test_too_few_queries_are_refused(world, tmp_path, capsys):
    old = student_of(world, "finetune")
    assert adapt(world, old.key, "new.qrels", "--holdout", "0.05") == 1
    assert "--holdout 0.05 leaves 2 of 90 new queries for dev" in capsys.readouterr().err
    few = tmp_path / "few.qrels"
    few.write_text("n000 0 p000 1\n")
    assert adapt(world, old.key, str(few)) == 1
    assert "1 new queries with a relevant passage (of 90 read)" in capsys.readouterr().err


@pytest.mark.slow
def test_judgments_name_queries_by_their_number(world, tmp_path, capsys):
    numbered = tmp_path / "numbered.qrels"
    lines = (world.parent / "new.qrels").read_text().splitlines()
    numbered.write_text("".join(f"{line.removeprefix('n').lstrip('0')}\n" for line in lines[1:]))
    old = student_of(world, "finetune")
    assert adapt(world, old.key, str(numbered), "--holdout", "0.05") == 1
    shown = capsys.readouterr()
    assert "leaves 2 of 89 new queries for dev" in shown.err
    said = "89 query ids of numbered.qrels are those of new.jsonl by their number"
    assert said in " ".join(shown.out.split())


@pytest.mark.slow
def test_judgments_of_passages_that_are_not_there_are_refused(world, tmp_path, capsys):
    strange = tmp_path / "strange.qrels"
    strange.write_text("n000 0 nowhere 1\n")
    assert adapt(world, student_of(world, "finetune").key, str(strange)) == 1
    assert "unknown passage id" in capsys.readouterr().err
