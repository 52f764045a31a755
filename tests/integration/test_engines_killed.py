"""Engines whose processes are killed, or have no room on the disk: the study ends with the same results."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.errors import RecordError
from experiments.running.engines import Processes
from tests.integration.studies import FORKS, lives, results, servers_of, workers_of
from tests.integration.test_engines import STUDIES, make, undisturbed  # noqa: F401

ROOT = Path(__file__).parents[2]
TOML = """
name = "small"
seeds = [0, 1]
arms = [{ name = "none" }]
data = { name = "digits", train_size = 100, valid_size = 100 }
model = { name = "mlp", hidden = [16] }
optimizer = { name = "AdamW", lr = 1e-2 }
train = { epochs = 2, batch_size = 30, stack = false }
"""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("victims", [1, 2])
@pytest.mark.parametrize("name", STUDIES)
def test_workers_that_are_killed_are_replaced(name, victims, attempt, undisturbed, tmp_path):  # noqa: F811
    draw = random.Random(f"{name} {victims} {attempt}")
    killed: list[int] = []

    def killer() -> None:
        while not list(tmp_path.glob("**/*.pt")):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.3))
        killed.extend(workers_of(os.getpid())[:victims])
        for number in killed:
            os.kill(number, signal.SIGKILL)

    thread = threading.Thread(target=killer)
    thread.start()
    assert make(STUDIES[name], tmp_path, engine=Processes(2)) == []
    thread.join()
    assert len(killed) == victims
    assert workers_of(os.getpid()) == []
    assert results(tmp_path) == undisturbed[name]


def test_the_process_of_which_the_others_are_forks_may_be_killed(undisturbed, tmp_path):  # noqa: F811
    def killer() -> None:
        while not list(tmp_path.glob("**/*.pt")):
            time.sleep(0.002)
        os.kill(servers_of(os.getpid())[0], signal.SIGKILL)

    thread = threading.Thread(target=killer)
    thread.start()
    assert make(STUDIES["runs"], tmp_path, engine=Processes(2)) == []
    thread.join()
    assert results(tmp_path) == undisturbed["runs"]


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_whose_driver_is_killed_is_resumed(name, attempt, undisturbed, tmp_path):  # noqa: F811
    parent = FORKS.Process(target=_alone, args=(name, tmp_path))
    parent.start()
    while parent.is_alive() and not list(tmp_path.glob("**/*.pt")):
        time.sleep(0.002)
    time.sleep(random.Random(f"{name} {attempt}").uniform(0, 0.3))
    begun = workers_of(parent.pid) + servers_of(parent.pid)
    parent.kill()
    parent.join()
    assert parent.exitcode == -signal.SIGKILL
    assert len(begun) == 3
    ended = time.monotonic()
    while any(map(lives, begun)):
        assert time.monotonic() - ended < 5.0
        time.sleep(0.01)
    assert make(STUDIES[name], tmp_path, resume=True, engine=Processes(2)) == []
    assert results(tmp_path) == undisturbed[name]


def _alone(name: str, folder: Path) -> None:
    import torch

    torch.set_num_threads(1)  # as in the tests, or it would be another environment
    make(STUDIES[name], folder, engine=Processes(2))


@pytest.mark.parametrize("name", STUDIES)
def test_a_disk_that_is_full_ends_a_study_in_a_line_and_resuming_goes_on(name, undisturbed, tmp_path):  # noqa: F811
    import resource

    with Processes(2).begun() as engine:
        (server,) = servers_of(os.getpid())
        limit = resource.prlimit(server, resource.RLIMIT_FSIZE)
        resource.prlimit(server, resource.RLIMIT_FSIZE, (20_000, limit[1]))  # its forks inherit it
        try:
            with pytest.raises(RecordError, match=r"\.pt: cannot be written: File too large"):
                make(STUDIES[name], tmp_path, engine=engine)
        finally:
            resource.prlimit(server, resource.RLIMIT_FSIZE, limit)
    assert make(STUDIES[name], tmp_path, resume=True, engine=Processes(2)) == []
    assert results(tmp_path) == undisturbed[name]


SCRIPT = """
import sys
from pathlib import Path
from experiments.cli import main
sys.argv = ["studies", "run", "small.toml", "--jobs", "2", "--device", "cpu"]
main()
"""


def started(folder, *arguments):
    """A command in a folder with a study that is small, or very long."""
    (folder / "small.toml").write_text(TOML)
    around = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=around, start_new_session=True, **pipes)


def test_modules_in_the_current_folder_are_not_those_of_the_processes(tmp_path):
    for name in ("experiments", "signal", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    process = started(tmp_path, "-m", "experiments", "run", "small.toml", "--jobs", "2", "--device", "cpu")
    _, errors = process.communicate()
    assert (process.returncode, "rror" in errors) == (0, False), errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_stopped_while_its_processes_start_says_one_line(number, tmp_path):
    process = started(tmp_path, "-m", "experiments", "run", "small.toml", "--jobs", "2", "--set", "train.epochs=100000")
    while not (tmp_path / "runs" / "small" / "study.json").exists():
        time.sleep(0.005)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert errors.strip() == f"stopped; run it again with --resume --out {Path('runs/small')} to go on"


def test_a_script_without_a_guard_is_told_before_the_first_run(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = started(tmp_path, "script.py")
    out, errors = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert errors.splitlines()[-1] == (
        "error: --engine processes: a process ended at its start: a script must begin its study under "
        "if __name__ == '__main__', and in a file"
    )
    assert not (tmp_path / "runs" / "small" / "runs").exists()
