import pytest

from tests.fuzz.fuzzing import CASES, Sandbox, ran


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
        for target, outcomes in ran.items():
            line = f"{outcomes.total():7,} {target}: {outcomes[True]:,} worked, "
            terminalreporter.write_line(f"{line}{outcomes[False]:,} were refused in one line")
        total = sum(outcomes.total() for outcomes in ran.values())
        terminalreporter.write_line(f"{total:7,} cases of {sum(CASES.values()):,}")
