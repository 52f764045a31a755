"""``make`` says in one line what is missing, and takes no half-made environment for a whole one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(folder: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Runs make on the Makefile and the package in a folder of its own; pip has no index there."""
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    settings = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PYTHONPATH": ""}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | settings
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_python_is_missing_or_too_old(tmp_path, python):
    for _ in range(2):
        code, _, lines = make(tmp_path, "demo", f"PYTHON={python}")
        assert code == 2
        assert lines == [
            f"error: torchreg needs Python 3.11 or later, {python} is not: say which, as in PYTHON=python3.12"
        ]
        assert not (tmp_path / ".venv").exists()


def test_pip_reaches_no_index(tmp_path):
    for target in ("lint", "demo"):
        code, _, (line,) = make(tmp_path, target, f"PYTHON={sys.executable}")
        assert code == 2
        assert line.startswith("error: pip: No matching distribution found for hatchling")
        assert "is there a network" in line
        assert not (tmp_path / ".venv" / target).exists()


def test_make_alone_lists_every_command(tmp_path):
    code, out, lines = make(tmp_path)
    listed = [line.split()[1] for line in out.splitlines()]
    phony = next(line for line in (tmp_path / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert (code, lines, sorted(listed)) == (0, [], sorted(phony.split()[1:]))
