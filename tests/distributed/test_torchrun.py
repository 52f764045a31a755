"""Studies by torchrun: two and three processes train as one does, and a study that was killed goes on."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from experiments.config import load
from experiments.running.study import run_study
from experiments.training import ranks
from experiments.training.record import Record, Row
from tests.distributed import studies
from tests.distributed.studies import CASES, CONTINUED, ROW, STOPPED, TABLE, name_of, run_of, trained
from tests.integration.studies import CPU

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="needs a torch with gloo"),
]
ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONPATH": str(ROOT)}
STUDY = """
name = "small"
arms = [{ name = "plain" }, { name = "sparse", regularizers = [{ penalty = "L1", strength = 1e-3, mode = "prox" }] }]
data = { name = "digits", train_size = 100, valid_size = 100 }
model = { name = "mlp", hidden = [16] }
optimizer = { name = "AdamW", lr = 1e-2 }
train = { epochs = 4, batch_size = 30, dtype = "float64", stack = false, checkpoint_seconds = 0.0 }
"""


def torchrun(count: int, *args: object) -> list[str]:
    return [
        sys.executable,
        *["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"],
        str(count),
        *map(str, args),
    ]


def ended(count: int, *args: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    limit = studies.LIMIT + 60
    return subprocess.run(torchrun(count, *args), cwd=cwd, env=ENV, capture_output=True, text=True, timeout=limit)


# -- the table --------------------------------------------------------------------------------------------------------


class Results:
    """What one start of so many processes made of the cases that were chosen, in a folder of each."""

    def __init__(self, count: int, folder: Path, cases: list[str]) -> None:
        self.folder = folder
        for name in CONTINUED:
            if name in cases:
                trained(name, folder, stops=True)
        for process in studies.started(count, folder, cases):
            process.join()
        self._errors = "".join(log.read_text() for log in folder.glob("*.log"))[-3000:]
        results, facts = folder / "results.jsonl", folder / "facts.json"
        lines = results.read_text().splitlines() if results.exists() else []
        self._faults = {line["case"]: line["fault"] for line in map(json.loads, lines)}
        self._facts = json.loads(facts.read_text()) if facts.exists() else {}

    def fault(self, case: str) -> str:
        assert case in self._faults, f"the processes ended before this case:\n{self._errors}"
        return self._faults[case]

    def fact(self, name: str) -> Any:
        assert name in self._facts, f"the processes ended before:\n{self._errors}"
        return self._facts[name]


@pytest.fixture(scope="module")
def started(tmp_path_factory, request):
    """The results of so many processes."""
    chosen: dict[int, list[str]] = {2: [], 3: []}
    for item in request.session.items:
        if item.path == request.path and "alone" in getattr(item, "fixturenames", ()):
            given = item.callspec.params
            case = given["case"] if "case" in given else name_of(*(given[key] for key in ROW))
            chosen[given["count"]].append(case)
    made: dict[int, Results] = {}

    def results(count: int) -> Results:
        if count not in made:
            made[count] = Results(count, tmp_path_factory.mktemp(f"of{count}"), chosen[count])
        return made[count]

    return results


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return tmp_path_factory.mktemp("alone")


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(ROW, TABLE.values(), ids=TABLE)
def test_several_processes_train_as_one(count, kind, mode, optimizer, is_sharded, started, alone):
    check_trained_as_one(name_of(kind, mode, optimizer, is_sharded), count, started(count), alone)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", [name for name in CASES if name not in TABLE])
def test_several_processes_make_the_steps_of_one(count, case, started, alone):
    check_trained_as_one(case, count, started(count), alone)


def check_trained_as_one(case: str, count: int, results: Results, alone: Path) -> None:
    run = run_of(case)
    assert results.fault(case) == ""
    ours, theirs = (Record(folder / case / run.folder, run) for folder in (results.folder, alone))
    if case in STOPPED:
        assert ours.result is None
        assert trained(case, results.folder) == ""
    if theirs.result is None:
        assert trained(case, alone) == ""
    assert difference(ours.result, theirs.result) < 1e-6
    assert [difference(*rows) < 1e-6 for rows in zip(ours.history, theirs.history, strict=True)].count(False) == 0
    if ours.result["status"] == "done":
        torch.testing.assert_close(weights_in(ours), weights_in(theirs), rtol=0, atol=1e-6)
    expected = [count, 1] if case in STOPPED else [1, count] if case in CONTINUED else [count]
    assert [environment["processes"] for environment in ours.environments] == expected


def weights_in(record: Record) -> Row:
    return dict(torch.load(record.folder / "checkpoint.pt", weights_only=True)["model"])


def difference(ours: object, theirs: object) -> float:
    """The largest difference of two trees' numbers; infinite if anything else is another, but times and digests."""
    if isinstance(ours, dict):
        keys = ours.keys() - {"seconds", "sha256"}
        if keys != theirs.keys() - {"seconds", "sha256"}:
            return float("inf")
        return max((difference(ours[key], theirs[key]) for key in keys), default=0.0)
    if isinstance(ours, list) and len(ours) == len(theirs):
        return max(map(difference, ours, theirs), default=0.0)
    if isinstance(ours, float):
        return abs(ours - theirs)
    return 0.0 if ours == theirs else float("inf")


def test_a_difference_is_seen():
    assert difference({"a": [1.0, {"b": "x"}], "seconds": 1.0}, {"a": [1.5, {"b": "x"}], "seconds": 2.0}) == 0.5
    assert difference({"a": [1.0]}, {"a": [1.0, 2.0]}) == float("inf")
    assert difference({"a": "x"}, {"a": "y"}) == difference({"a": 1}, {"b": 1}) == float("inf")


@pytest.mark.parametrize("count", [2, 3])
def test_each_process_draws_its_own_numbers_in_each_epoch(count, started):
    drawn = started(count).fact("drawn")
    numbers = [number for epoch in drawn.values() for process in epoch for number in process]
    assert len(set(numbers)) == len(numbers) == 3 * count * 10


@pytest.mark.parametrize("count", [2, 3])
def test_a_process_holds_its_part_of_a_sharded_network(count, started):
    part, whole = started(count).fact("held")
    assert 1 / count <= part / whole < 1.3 / count  # the first process has the larger part of uneven ones


def test_the_parts_of_a_batch_make_up_the_whole(monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 3)
    for size in range(8):
        parts = []
        for number in range(3):
            monkeypatch.setattr(ranks, "number", lambda number=number: number)
            parts += range(size)[ranks.part(size)]
        assert parts == list(range(size))


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    (tmp_path / "small.toml").write_text(STUDY)
    return tmp_path / "small.toml"


def records(folder: Path) -> dict[str, Record]:
    return {path.parent.parent.name: Record(path.parent) for path in sorted(folder.glob("runs/*/*/config.json"))}


def said(done: subprocess.CompletedProcess) -> list[str]:
    """The lines that our processes wrote to standard error; others are torchrun's."""
    return [line for line in done.stderr.splitlines() if line.startswith(("error:", "note:", "stopped"))]


def test_a_study_is_that_of_one_process(study, tmp_path):
    assert run_study(load(study), tmp_path / "one", CPU) == []
    done = ended(2, "-m", "experiments", "run", study, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sparse/seed0") == done.stdout.count("Report: ") == 1
    assert "Warning" not in done.stderr
    for name, ours in records(tmp_path / "two").items():
        assert difference(ours.result, records(tmp_path / "one")[name].result) < 1e-6
    assert (tmp_path / "two" / "report.html").exists()


FAULTS = {
    "an odd batch": (
        ["run", "small.toml", "--set", "train.batch_size=31"],
        r"train\.batch_size: must be a multiple of torchrun's 2 processes, got 31: take 32, or .*",
    )
}
MORE_FAULTS = {
    "an average of sharded weights": (
        ["run", "small.toml", "--set", "train.shard=fsdp2", "--set", 'train.average.name="ema"'],
        r"train\.average: needs whole weights in each process: remove it, or train\.shard",
    ),
    "steps as graphs": (
        ["run", "small.toml", "--set", "train.compile=true"],
        r"train\.compile: is for one process, whose steps a graph can hold: set compile = false",
    ),
    "an engine": (
        ["run", "small.toml", "--jobs", "2"],
        "--engine, --jobs: are for one process, not for those of torchrun: leave them out",
    ),
    "another command": (["report", "out"], "report: is for one process, torchrun starts 'run' alone"),
    "a folder in use": (["run", "small.toml", "--out", "."], r"--out: \. must be empty .*"),
}


@pytest.mark.parametrize(
    ("args", "line"),
    [
        *(pytest.param(*fault, id=name) for name, fault in FAULTS.items()),
        *(pytest.param(*fault, id=name, marks=pytest.mark.slow) for name, fault in MORE_FAULTS.items()),
    ],
)
def test_what_torchrun_cannot_do_is_said_once(args, line, study, tmp_path):
    done = ended(2, "-m", "experiments", *args, cwd=tmp_path)
    (found,) = said(done)
    assert re.fullmatch(rf"error: {line}( \(tried in arm 'plain'\))?", found)
    assert set(re.findall(r"exitcode  : (-?\d+)", done.stderr)) <= {"2", "-15"}  # torchrun ends those that still wait
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


# -- processes that die -----------------------------------------------------------------------------------------------

LONG = STUDY.replace('"mlp", hidden = [16]', '"mlp", hidden = [64], dropout = { name = "Dropout", p = 0.5 }')
LONG = LONG.replace("epochs = 4", "epochs = 40")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def running(
    count: int, study: Path, folder: Path, moment: Callable[[], bool]
) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A study under way at that moment: torchrun's process, and the processes it has started."""
    args = ["-m", "experiments", "run", study, "--out", folder, "--resume"]
    with subprocess.Popen(
        torchrun(count, *args), cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        limit = time.monotonic() + studies.LIMIT
        while process.poll() is None and not moment() and time.monotonic() < limit:
            time.sleep(0.01)
        assert process.poll() is None, process.stderr.read()
        yield process, children(process.pid)


def has_rows(folder: Path, count: int) -> Callable[[], bool]:
    return lambda: sum(path.read_text().count("\n") for path in folder.glob("runs/*/*/history.jsonl")) >= count


def killed(count: int, study: Path, folder: Path, rows: int, victim: int, later: float = 0.0) -> None:
    """Kills one of the processes after so many rows of the history; all end, and one line says so."""
    with running(count, study, folder, has_rows(folder, rows)) as (process, ours):
        time.sleep(later)  # anywhere in an epoch, also while a file is being written
        os.kill(ours[victim], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        assert not any(map(is_alive, ours))
    lines = [line for line in errors.splitlines() if "--resume --out" in line]
    assert len(lines) == 1, errors
    assert "experiments/" not in errors, "a traceback"


def same_bits(ours: Path, theirs: Path) -> bool:
    found, expected = records(ours), records(theirs)
    assert found.keys() == expected.keys() != set()
    return all(
        (found[name].result["sha256"], found[name].history) == (one.result["sha256"], one.history)
        for name, one in expected.items()
    )


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_killed_process_ends_all_and_the_study_goes_on_in_one_process(study, tmp_path):
    study.write_text(STUDY.replace("epochs = 4", "epochs = 40"))
    killed(2, study, tmp_path / "cut", 20, victim=1)
    for folder in ("cut", "whole"):
        assert run_study(load(study), tmp_path / folder, CPU, resume=True) == []
    for name, ours in records(tmp_path / "cut").items():
        assert difference(ours.result, records(tmp_path / "whole")[name].result) < 1e-6
    assert [one["processes"] for one in records(tmp_path / "cut")["plain"].environments] == [2, 1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_study_that_was_killed_five_times_ends_with_the_same_bits(study, tmp_path):
    study.write_text(LONG)
    draw = random.Random(0)
    for rows in sorted(draw.sample(range(1, 75), 5)):
        killed(2, study, tmp_path / "cut", rows, victim=draw.randrange(2), later=0.05 * draw.random())
    for folder in ("cut", "whole"):
        done = ended(2, "-m", "experiments", "run", study, "--out", tmp_path / folder, "--resume")
        assert done.returncode == 0, done.stderr
    assert same_bits(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_no_process_outlives_torchrun(study, tmp_path):
    study.write_text(LONG.replace("epochs = 40", "epochs = 4000"))
    with running(2, study, tmp_path / "out", has_rows(tmp_path / "out", 5)) as (process, ours):
        process.kill()
        process.wait()
        limit = time.monotonic() + 5
        while any(map(is_alive, ours)) and time.monotonic() < limit:
            time.sleep(0.05)
        assert not any(map(is_alive, ours))
