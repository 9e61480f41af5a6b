import pytest
from fuzzing import CASES, Sandbox, ran


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    made = Sandbox(tmp_path)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return made


def pytest_terminal_summary(terminalreporter):
    if ran:
        terminalreporter.section("fuzz")
        for target, count in ran.items():
            terminalreporter.write_line(f"{count:7,} {target}")
        terminalreporter.write_line(f"{ran.total():7,} cases of {sum(CASES.values()):,}")
