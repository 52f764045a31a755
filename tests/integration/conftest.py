"""The command line as its users call it."""

import pytest

from experiments.cli import main


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
