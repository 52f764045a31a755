"""Loggers of others: what each is told, and that a run does not depend on it. Fakes stand for those not installed."""

import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import pytest

from experiments.config import resolve
from experiments.config.toml import dumped
from experiments.errors import UserError
from experiments.running.engines import Processes
from experiments.running.study import run_study
from experiments.running.sweep import run_sweep
from experiments.training import loggers
from experiments.training.record import Record
from tests.integration.studies import CPU, TREE, arm, history, kill, outcome

L1 = {"regularizers": [{"penalty": "L1", "strength": 0.1, "mode": "prox"}]}
STUDY = {**TREE, "arms": [{"name": "none"}, {"name": "L1", **L1}]}


class Fakes:
    """Modules of the four names. What they are told is kept by run: settings, figures by step, and the end."""

    def __init__(self, monkeypatch):
        self.settings, self.rows, self.ends = {}, defaultdict(dict), {}
        self.begun = []
        for name, module in {
            "torch.utils.tensorboard": SimpleNamespace(SummaryWriter=lambda *a, **k: Writer(self, *a, **k)),
            "mlflow": SimpleNamespace(set_experiment=self.experiment, MlflowClient=lambda: Client(self)),
            "wandb": SimpleNamespace(init=lambda **k: Started(self, **k)),
            "trackio": SimpleNamespace(init=lambda **k: Started(self, **k)),
        }.items():
            monkeypatch.setitem(sys.modules, name, module)

    def experiment(self, name):
        return SimpleNamespace(experiment_id=f"id of {name}")

    def begin(self, run, settings, **more):
        self.begun.append(run)
        self.settings[run] = settings

    def end(self, run, status, figures):
        assert run not in self.ends
        self.ends[run] = status, figures


class Writer:
    def __init__(self, fakes, log_dir, purge_step):
        *_, arm, seed, last = log_dir.split("/")
        assert last == "tensorboard"
        self.fakes, self.run, self.purge_step = fakes, f"{arm}/{seed}", purge_step
        self.result = {}

    def add_text(self, tag, text):
        if tag == "settings":
            self.fakes.begin(self.run, json.loads(text.removeprefix("```json\n").removesuffix("\n```")))
        self.texts = {tag: text}

    def add_scalar(self, tag, value, step=None):
        if step is None:
            self.result[tag] = value
        else:
            assert step >= self.purge_step
            self.fakes.rows[self.run].setdefault(step, {})[tag] = value

    def close(self):
        self.fakes.end(self.run, self.texts["status"], self.result)


class Client:
    def __init__(self, fakes):
        self.fakes, self.result = fakes, {}

    def create_run(self, experiment_id, run_name):
        assert experiment_id == "id of small"
        self.fakes.begin(run_name, {})
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def log_param(self, run, key, value):
        self.fakes.settings[run][key] = json.loads(value)

    def log_metric(self, run, key, value, step=None):
        if step is None:
            self.result[key] = value
        else:
            self.fakes.rows[run].setdefault(step, {})[key] = value

    def set_tag(self, run, key, value):
        assert key == "status"
        self.status = value

    def set_terminated(self, run, status):
        assert status == ("FINISHED" if self.status in ("done", "pruned") else "FAILED")
        self.fakes.end(run, self.status, self.result)


class Started:
    """A run of wandb or of trackio."""

    def __init__(self, fakes, project, name, config, **more):
        assert project == "small"
        self.fakes, self.run, self.summary = fakes, name, {}
        fakes.begin(name, config)

    def log(self, figures, step=None):
        if step is None:  # what trackio is told at the end
            self.summary = dict(figures)
        else:
            self.fakes.rows[self.run].setdefault(step, {}).update(figures)

    def finish(self, exit_code=None):
        status = self.summary.pop("status")
        assert exit_code in (None, 0 if status in ("done", "pruned") else 1)
        self.fakes.end(self.run, status, self.summary)


@pytest.fixture
def fakes(monkeypatch):
    yield Fakes(monkeypatch)
    loggers.choose(None, "")


@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_a_logger_is_told_every_epoch_and_the_result(name, fakes, tmp_path):
    loggers.choose(name, "small")
    study = resolve(STUDY)
    run_study(study, tmp_path, CPU)
    assert fakes.begun == ["none/seed0", "L1/seed0"]
    for run in study.runs:
        record = Record(tmp_path / "runs" / run.folder, run)
        settings = fakes.settings[run.folder]
        assert settings["optimizer"] == {"name": "AdamW", "lr": 0.01}
        assert settings["arm"] == run.arm
        told = fakes.rows[run.folder]
        assert list(told) == [1, 2, 3, 4]
        for row in record.history:
            assert {key: told[row["epoch"]][key] for key in row if key.endswith(("loss", "error"))} == {
                key: value for key, value in row.items() if key.endswith(("loss", "error"))
            }
            assert [key for key in told[row["epoch"]] if "penalty" in key] == [
                f"penalty/{key}" for key in row["penalty"]
            ]
        status, figures = fakes.ends[run.folder]
        assert status == "done"
        assert figures["result/zeros"] == record.result["zeros"]
        assert figures["result/norms/linear1.weight"] == record.result["norms"]["linear1.weight"]
        assert not [key for key in figures if "histogram" in key or "files" in key]


@pytest.mark.parametrize("name", loggers.LOGGERS)
@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"optimizer": {"lr": 1e30}}, "diverged"),
        ({"model": {"class": "tests.integration.studies:Fragile", "fate": "raises"}}, "failed"),
    ],
)
def test_a_logger_is_told_of_a_broken_run(name, changes, status, fakes, tmp_path):
    loggers.choose(name, "small")
    run_study(arm("a", **changes), tmp_path, CPU)
    assert fakes.ends["a/seed0"][0] == status


def test_a_run_has_the_same_bits_with_a_logger_and_is_not_told_twice(fakes, tmp_path):
    study = arm("a", **L1)
    before = outcome(study, tmp_path / "a")
    loggers.choose("wandb", "small")
    assert outcome(study, tmp_path / "b") == before
    assert history(study, tmp_path / "c") == Record(tmp_path / "a" / "runs" / "a" / "seed0").history
    assert len(fakes.begun) == 2
    run_study(study, tmp_path / "b", CPU, resume=True)  # nothing is left to do
    assert len(fakes.begun) == 2


@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_a_resumed_run_goes_on_at_its_checkpoint(name, fakes, tmp_path):
    study = arm("a", train={"epochs": 200, "batch_size": 50, "checkpoint_seconds": 0.0})
    file = tmp_path / "runs" / "a" / "seed0" / "checkpoint.pt"
    kill(run_study, study, tmp_path, file.exists)
    loggers.choose(name, "small")
    run_study(study, tmp_path, CPU, resume=True)
    steps = list(fakes.rows["a/seed0"])
    assert steps == list(range(steps[0], 201))
    assert steps[0] > 1
    assert fakes.ends["a/seed0"][0] == "done"


@pytest.mark.parametrize("values", [{}, {"optimizer.lr": 0.1}], ids=["run", "point of a search"])
def test_links_of_a_logger_lie_beside_the_records(values, tmp_path):
    run = resolve(STUDY).runs[0]
    run = run.at(values) if values else run
    assert loggers.Start("small", run, tmp_path / "out" / "runs" / run.folder, 0).study == tmp_path / "out"


def test_several_runs_may_be_under_way(fakes, tmp_path):
    runs = resolve(STUDY).runs
    for name in loggers.LOGGERS:
        loggers.choose(name, "small")
        fakes.ends.clear()
        told = [loggers.Told(run, tmp_path / "runs" / run.folder) for run in runs]
        for epoch in (1, 2):
            for i, one in enumerate(told):
                one.row({"epoch": epoch, "test_loss": 10.0 * i + epoch})
        for one in told:
            one.finish({"status": "done"})
        assert [fakes.rows[run.folder][2]["test_loss"] for run in runs] == [2.0, 12.0]
        assert fakes.ends == {run.folder: ("done", {}) for run in runs}


@pytest.mark.parametrize("at", ["begin", "row", "finish"])
def test_a_logger_that_fails_is_left_out(at, fakes, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **named):
        raise ConnectionError("no network")

    monkeypatch.setattr(
        *{
            "begin": (sys.modules["wandb"], "init"),
            "row": (Started, "log"),
            "finish": (Started, "finish"),
        }[at],
        fail,
    )
    loggers.choose("wandb", "small")
    assert run_study(arm("a"), tmp_path, CPU) == []
    assert Record(tmp_path / "runs" / "a" / "seed0").result["status"] == "done"
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: --log wandb: ConnectionError: no network")
    assert note.endswith(": the run goes on without it")


@pytest.mark.parametrize("name", loggers.LOGGERS)
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_logger_that_is_not_installed_is_one_line(name, command, experiments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    if name != "tensorboard":
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "study.toml").write_text(dumped(STUDY))
    code, out, err = experiments(command, "study.toml", "--log", name)
    assert (code, out) == (2, "")
    assert err == f"error: --log: {name} needs the package {name}, which is not installed: pip install {name}\n"
    assert not (tmp_path / "runs").exists()


def test_a_logger_that_cannot_be_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "wandb.py").write_text("raise RuntimeError('an old protobuf')")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"^--log: wandb needs the package wandb, an old protobuf .*: pip install wandb$"
    ):
        loggers.choose("wandb", "small")
    assert loggers.chosen() == (None, "")


def test_an_unknown_logger_is_one_line(experiments, tmp_path):
    (tmp_path / "study.toml").write_text(dumped(STUDY))
    code, out, err = experiments("run", "study.toml", "--log", "wandbb")
    assert (code, out) == (2, "")
    assert err == "error: --log: unknown name 'wandbb', valid: mlflow, tensorboard, trackio, wandb\n"


def test_the_command_line_chooses_for_one_command(fakes, experiments, tmp_path):
    (tmp_path / "study.toml").write_text(dumped(STUDY))
    assert experiments("run", "study.toml", "--log", "trackio", "--device", "cpu")[0] == 0
    assert fakes.ends.keys() == {"none/seed0", "L1/seed0"}
    assert experiments("run", "study.toml", "--device", "cpu", "--out", "again")[0] == 0
    assert len(fakes.begun) == 2


TOLD = """
def init(project, name, config, **more):
    return Run(name)
class Run:
    def __init__(self, name):
        self.name = name
    def log(self, figures, step=None):
        with open("told.txt", "a") as file:
            file.write(f"{self.name} {step}\\n")
    def finish(self):
        pass
"""


def test_the_processes_of_a_sweep_tell_it_too(tmp_path, monkeypatch):
    (tmp_path / "trackio.py").write_text(TOLD)
    monkeypatch.syspath_prepend(tmp_path)  # which a process that is spawned has, too
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.chdir(tmp_path)
    try:
        loggers.choose("trackio", "small")
        study = resolve({**TREE, "sweep": {"space": {"optimizer.lr": [0.1, 0.2]}}})
        assert run_sweep(study, tmp_path / "out", CPU, engine=Processes(2)) == []
    finally:
        loggers.choose(None, "")
    told = sorted((tmp_path / "told.txt").read_text().split("\n")[:-1])
    ends = ["1", "2", "3", "4", "None"]
    assert told == [f"none/optimizer.lr={lr}/seed0 {end}" for lr in (0.1, 0.2) for end in ends]


def test_tensorboard_itself_holds_the_history(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    try:
        loggers.choose("tensorboard", "small")
        study = arm("a", **L1)
        rows = history(study, tmp_path)
    finally:
        loggers.choose(None, "")
    events = EventAccumulator(str(tmp_path / "runs" / "a" / "seed0" / "tensorboard")).Reload()
    for key in ("train_loss", "test_error"):
        told = [(event.step, event.value) for event in events.Scalars(key)]
        assert told == [(row["epoch"], pytest.approx(row[key], rel=1e-6)) for row in rows]
