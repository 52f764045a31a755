"""Two processes, under DDP or FSDP2, do what one does, or refuse: one start of both runs all cases of the table."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.table import EQUAL, REFUSED
from tests.distributed.training import PROCESSES, difference
from tests.distributed.worker import LIMIT, worst

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs a torch with gloo"),
]
ROOT = Path(__file__).parents[2]


class Results:
    """What the processes wrote: a result for each case they came to, and what went wrong after it."""

    def __init__(self, folder: Path) -> None:
        file = folder / "results.jsonl"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
        with subprocess.Popen(
            [*launch, "-m", "tests.distributed.worker", str(file)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                self.output, _ = process.communicate(timeout=LIMIT + 60)
            finally:
                process.terminate()  # the launcher ends its processes; were it killed, they end by their own limit
        self.code = process.returncode
        lines = file.read_text().splitlines() if file.exists() else []
        self._results = {line["case"]: line["result"] for line in map(json.loads, lines)}

    def __getitem__(self, case: str) -> float | str:
        assert case in self._results, f"the processes ended before this case:\n{self.output[-3000:]}"
        return self._results[case]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("processes"))


@pytest.mark.shows(None)
@pytest.mark.parametrize("case", EQUAL)
def test_two_processes_do_what_one_does(results, case):
    result = results[case]
    assert not isinstance(result, str), result
    assert result <= 1e-12  # in float64: the sum over a batch is taken in another order


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_line(results, case):
    _, advice = REFUSED[case]
    assert isinstance(results[case], str), "it was not refused"
    assert results[case].startswith("ValueError: Regularizer: ")
    assert advice in results[case]
    assert "\n" not in results[case]


def test_the_processes_end_without_a_word(results):
    assert (results.code, results.output) == (0, "")


def test_a_difference_is_seen():
    w = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert difference({"w": w}, {"w": w}) == 0
    assert difference({"w": w + torch.tensor([1e-3, 0.0])}, {"w": w}) == pytest.approx(1e-3, rel=1e-3)
    assert difference({"w": w + 1e-300}, {"w": w}) == math.inf
    assert math.isnan(difference({"v": w[:1], "w": w[:1] * math.nan}, {"v": w[:1], "w": w[:1]}))


def test_the_worst_of_the_processes_counts():
    assert worst([0.0, 1.0]) == 1.0
    assert math.isnan(worst([math.nan, 1.0]))
    assert worst([0.0, "an error"]) == "an error"
