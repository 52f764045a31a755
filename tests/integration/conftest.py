"""The command line as its users call it."""

import pytest

from experiments.cli import main
from tests.integration.published import TOML


@pytest.fixture
def experiments(tmp_path, monkeypatch, capsys):
    """Runs the command line in a folder of its own; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["experiments", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def evidence(experiments, tmp_path):
    """The command, in a folder with a published study of digits and a folder for the page."""
    (tmp_path / "tiny.toml").write_text(TOML)
    (tmp_path / "docs").mkdir()
    return lambda *arguments: experiments("evidence", *arguments)


@pytest.fixture
def made(evidence, tmp_path):
    assert evidence("tiny.toml")[0] == 0
    return tmp_path / "docs"
