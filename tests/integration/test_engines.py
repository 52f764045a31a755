"""Engines: each makes the same records; what dies goes on from its checkpoint, is counted once, and leaves nothing."""

import os
import signal
from multiprocessing import parent_process
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from torch import nn

from experiments.config import Study
from experiments.errors import UserError
from experiments.running import engines
from experiments.running.engines import Local, Processes
from experiments.running.search import opened
from experiments.running.study import run_study
from experiments.running.sweep import run_sweep
from tests.integration.studies import CPU, results, small

DROPOUT = {"name": "mlp", "hidden": [64], "dropout": {"name": "Dropout", "p": 0.5}}
TRAIN = {"epochs": 12, "batch_size": 10, "checkpoint_seconds": 0.0}
L1 = {"name": "L1", "model": DROPOUT, "regularizers": [{"penalty": "L1", "mode": "prox"}]}
RUNS = small(arms=[{"name": "none", "model": DROPOUT}, {**L1, "strengths": [0.1, 1.0]}], seeds=[0, 1], train=TRAIN)
STACKS = [
    {**L1, "strengths": [0.0, 0.1, 1.0]},
    {"name": "L2", "strengths": [0.1, 1.0], "regularizers": [{"penalty": "L2"}]},
]
STACK = small(arms=STACKS, seeds=[0, 1], train={**TRAIN, "epochs": 40, "stack": True})
SEARCH = small(
    arms=[{"name": "none"}, L1],
    seeds=[0, 1],
    train=TRAIN,
    sweep={
        "arms": ["L1"],
        "space": {"regularizers.0.strength": {"low": 1e-3, "high": 10.0, "log": True}},
        "trials": 5,
        "sampler": {"name": "RandomSampler"},
        "pruner": {"name": "ThresholdPruner", "upper": 0.8, "n_warmup_steps": 3},  # which others do not decide over
    },
)
STUDIES = {"runs": RUNS, "stack": STACK, "search": SEARCH}


def make(study: Study, folder: Path, **options: Any) -> list[str]:
    """Runs a study or a search."""
    return (run_study if study.sweep is None else run_sweep)(study, folder, CPU, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What each study makes where nothing happens."""
    found = {}
    for name, study in STUDIES.items():
        folder = tmp_path_factory.mktemp(name)
        assert make(study, folder) == []
        found[name] = results(folder)
    assert {result["status"] for result in found["search"].values()} == {"done", "pruned"}
    return found


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("name", STUDIES)
def test_processes_make_the_records_that_one_process_makes(name, jobs, undisturbed, tmp_path):
    assert make(STUDIES[name], tmp_path, engine=Processes(jobs)) == []
    assert results(tmp_path) == undisturbed[name]


@pytest.mark.parametrize("first", [Local(), Processes(2)], ids=["local first", "processes first"])
def test_a_study_that_one_engine_began_is_resumed_with_another(first, undisturbed, tmp_path, monkeypatch):
    class StoppedError(BaseException):
        pass

    def stop(*_: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr("experiments.running.study._summary", stop)  # after the first run
        with pytest.raises(StoppedError):
            make(RUNS, tmp_path, engine=first)
    assert 1 <= len(results(tmp_path)) < len(undisturbed["runs"])
    other = Local() if isinstance(first, Processes) else Processes(2)
    assert make(RUNS, tmp_path, resume=True, engine=other) == []
    assert results(tmp_path) == undisturbed["runs"]


DYING = """
name = "dying"
arms = [{ name = "none" }]
data = { name = "digits", train_size = 100, valid_size = 100 }
model = { class = "tests.integration.test_engines:Fragile", args = { mark = "" } }
optimizer = { name = "AdamW", lr = 1e-2 }
train = { epochs = 2, batch_size = 20 }
"""


class Fragile(nn.Sequential):
    """Kills its process in its third step, every time, or only the first time if it leaves a file."""

    def __init__(self, mark: str) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.mark, self.steps = mark, 0

    def forward(self, x):
        self.steps += 1
        if self.steps > 2 and not (self.mark and Path(self.mark).exists()):
            if self.mark:
                Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def test_a_run_whose_process_dies_is_tried_again_and_given_up_after_three_times(tmp_path):
    fragile = {"class": "tests.integration.test_engines:Fragile"}
    once = {"name": "once", "model": {**fragile, "args": {"mark": str(tmp_path / "mark")}}}
    always = {"name": "always", "model": {**fragile, "args": {"mark": ""}}}
    study = small(arms=[once, always, {"name": "none"}], train={"epochs": 2, "batch_size": 20})
    (line,) = run_study(study, tmp_path / "out", CPU, engine=Processes(2))
    assert line == "failed: always/seed0: its process died with exit code -9"
    assert sorted(results(tmp_path / "out")) == ["runs/none/seed0", "runs/once/seed0"]


def test_a_command_whose_processes_all_die_ends_with_1_and_says_which(experiments, tmp_path):
    (tmp_path / "study.toml").write_text(DYING)
    code, _, err = experiments("run", "study.toml", "--jobs", "2", "--device", "cpu")
    assert (code, err.splitlines()[-1]) == (1, "failed: none/seed0: its process died with exit code -9")


class Told(nn.Sequential):
    """Fails with what its process has in its environment."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        if parent_process() is not None:
            raise ValueError(f"{os.environ.get('TOLD')}, {Path.cwd().name}")
        return super().forward(x)


def test_processes_have_the_environment_and_the_folder_of_now(tmp_path, monkeypatch):
    study = small(arms=[{"name": "none", "model": {"class": "tests.integration.test_engines:Told"}}])
    said = []
    for i, value in enumerate(("first", "second", None)):
        monkeypatch.setenv("TOLD", value) if value else monkeypatch.delenv("TOLD")
        (tmp_path / f"{i}").mkdir()
        monkeypatch.chdir(tmp_path / f"{i}")
        said += make(study, tmp_path / f"{i}" / "out", engine=Processes(1))
    assert [line.split(": ")[2].split(" (")[0] for line in said] == ["first, 0", "second, 1", "None, 2"]


@pytest.mark.slow
def test_eight_workers_of_one_storage_lose_and_double_no_trial(tmp_path):
    sweep = {**SEARCH.model_dump(by_alias=True)["sweep"], "trials": 24}
    study = small(arms=[L1], train={"epochs": 3, "batch_size": 50}, sweep={**sweep, "arms": None})
    url = f"sqlite:///{tmp_path}/optuna.db"
    assert run_sweep(study, tmp_path / "out", CPU, engine=Processes(8), storage=url) == []
    (summary,) = optuna.get_all_study_summaries(url)
    trials = optuna.load_study(study_name=summary.study_name, storage=url).get_trials()
    assert [trial.number for trial in trials] == [*range(24)]
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    values = {trial.params["regularizers.0.strength"] for trial in trials}
    assert len(values) == len(results(tmp_path / "out")) == 24
    for trial in trials:
        assert [*trial.intermediate_values] == [1, 2][: len(trial.intermediate_values)]


def test_the_journal_in_a_searchs_folder_is_one_that_optuna_opens(tmp_path):
    assert make(SEARCH, tmp_path) == []
    ours = optuna.load_study(study_name="small: L1", storage=opened(str(tmp_path / "optuna.log")))
    assert len(ours.trials) == 5
    errors: dict[str, list[float]] = {}
    for path, result in results(tmp_path).items():
        if "L1" in path and result["status"] == "done":
            errors.setdefault(path.rpartition("/")[0], []).append(result["valid_error"])
    assert ours.best_value == min(fmean(each) for each in errors.values() if len(each) == 2)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (("process", None), "--engine: unknown name 'process', valid: local, processes, ray"),
        (("local", 2), "--jobs: must be 1 with --engine local, got 2: --engine processes has several"),
    ],
)
def test_an_engine_that_is_asked_for_in_vain_is_told(given, line):
    with pytest.raises(UserError) as told, engines.choose(*given, CPU):
        pass
    assert str(told.value) == line
