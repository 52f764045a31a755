"""Engines whose processes are killed, or have no room on the disk: the study ends with the same results."""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments.errors import RecordError
from experiments.running.engines import Processes
from tests.integration.studies import FORKS, lives, results, servers_of, workers_of
from tests.integration.test_engines import STUDIES, make, undisturbed  # noqa: F401

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
