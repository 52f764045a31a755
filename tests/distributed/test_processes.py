"""Two processes, under DDP or FSDP2, do what one does, or refuse: one start of both runs all cases that were chosen."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.table import CASES, EQUAL, REFUSED
from tests.distributed.training import PROCESSES, difference
from tests.distributed.worker import main, worst
from tests.integration.studies import FORKS

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs a torch with gloo"),
]


class Results:
    """What the processes wrote: a result for each case they came to, and what went wrong after it."""

    def __init__(self, folder: Path, cases: list[str]) -> None:
        processes = [FORKS.Process(target=main, args=(folder, rank, cases)) for rank in range(PROCESSES)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        self.codes = [process.exitcode for process in processes]
        logs = [folder / f"{rank}.log" for rank in range(PROCESSES)]
        self.output = "".join(log.read_text() for log in logs)
        file = folder / "results.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        self._results = {line["case"]: line["result"] for line in map(json.loads, lines)}

    def __getitem__(self, case: str) -> float | str:
        assert case in self._results, f"the processes ended before this case:\n{self.output[-3000:]}"
        return self._results[case]


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    ids = {
        item.callspec.id for item in request.session.items if item.path == request.path and hasattr(item, "callspec")
    }
    return Results(tmp_path_factory.mktemp("processes"), [name for name in CASES if name in ids])


@pytest.mark.shows(None)
@pytest.mark.parametrize(("case", "mode", "wrap"), EQUAL, ids=map("-".join, EQUAL))
def test_two_processes_do_what_one_does(results, case, mode, wrap):
    result = results[f"{case}-{mode}-{wrap}"]
    assert not isinstance(result, str), result
    assert result <= 1e-12  # in float64: the sum over a batch is taken in another order


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_line(results, case):
    _, advice = REFUSED[case]
    assert isinstance(results[case], str), "it was not refused"
    assert results[case].startswith(("ValueError: Regularizer: ", "ValueError: TargetSparsity: "))
    assert advice in results[case]
    assert "\n" not in results[case]


def test_the_processes_end_without_a_word(results):
    assert (results.codes, results.output) == ([0] * PROCESSES, "")


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
