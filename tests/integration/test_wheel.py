"""The wheel: it holds the studies as ``torchreg.studies``, with the command ``torchreg``."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import torchreg

pytest.importorskip("hatchling")
pytest.importorskip("hatch_fancy_pypi_readme")
REPOSITORY = Path(torchreg.__file__).parents[1]
STUDY = """
name = "small"
data = { train_size = 50, valid_size = 50 }
model = { name = "mlp", hidden = [8] }
optimizer = { name = "SGD", lr = 0.1 }
train = { epochs = 1, batch_size = 25 }
arms = [{ name = "none" }, { name = "L2", regularizers = [{ penalty = "L2", strength = 0.1 }] }]
[sweep]
arms = ["L2"]
[sweep.space]
"regularizers.0.strength" = [0.1, 0.2]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The wheel installed, beside an ``experiments`` that is not to be imported."""
    site = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(site)]
    command = [sys.executable, "-m", "pip", "install", *options, str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (site / "experiments.py").write_text("raise SystemExit('the studies of the wheel import experiments')")
    return site


@pytest.fixture
def installed(site, tmp_path):
    """Runs the command ``torchreg``, or Python with these options, in an empty folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        start = [] if arguments[0] == "-m" else [str(site / "bin" / "torchreg")]
        command = [sys.executable, *start, *arguments]
        env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    return run


def test_its_only_package_is_torchreg_and_it_holds_no_leftovers(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"torchreg"}
    ours = {path.relative_to(REPOSITORY / "experiments").as_posix() for path in REPOSITORY.glob("experiments/**/*.*")}
    ours = {name for name in ours if "__pycache__" not in name}
    studies = {name.removeprefix("torchreg/studies/") for name in names if name.startswith("torchreg/studies/")}
    assert {name for name in studies if not name.startswith("configs/")} == ours
    assert {"configs/quickstart.toml", "configs/published/omnigrok.toml", "configs/study.schema.json"} <= studies
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_shipped_studies_are_listed_by_name(installed):
    done = installed("list")
    assert (done.returncode, done.stderr) == (0, "")
    shown = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"quickstart", "sweep", "mnist/overfit", "published/double_descent"} <= shown
    assert "faulty" not in done.stdout


def test_a_new_study_runs_and_is_reported(installed, tmp_path):
    done = installed("new", "mine")
    assert done.stdout == "mine.toml is written; run it with: torchreg run mine.toml\n"
    assert "experiments" not in (tmp_path / "mine.toml").read_text(encoding="utf-8")
    done = installed("run", "mine.toml", "--set", "train.epochs=1", "--set", "train.stack=true", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert {"none", "L1", "dropout"} <= {line.split("  ")[0] for line in done.stdout.splitlines()}
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


def test_a_shipped_study_is_run_by_its_name(installed):
    small = ["--set", "train.epochs=1", "--set", 'arms=[{ name = "none" }]', "--set", "seeds=[0]"]
    done = installed("run", "quickstart", *small, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "none/seed0" in done.stderr + done.stdout


def test_a_search_in_two_processes(installed, tmp_path):
    (tmp_path / "small.toml").write_text(STUDY)
    done = installed("sweep", "small.toml", "--jobs", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "L2" in done.stdout


def test_it_is_a_module_too_and_a_mistake_is_told_with_its_own_command(installed):
    assert installed("-m", "torchreg.studies", "--version").stdout.startswith(f"torchreg {torchreg.__version__}, ")
    done = installed("run")
    assert (done.returncode, done.stderr) == (
        2,
        "error: Missing argument 'CONFIG': as in torchreg run quickstart\n",
    )
