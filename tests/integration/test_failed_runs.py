"""A run that raises: it is told in a line, the other runs are made, and resuming makes it again."""

import pytest
import torch
from torch import nn

from experiments.report import page as report
from experiments.report import summarize
from experiments.running.study import run_study
from experiments.training.record import Record
from tests.integration.studies import CPU, outcome, small


class Interrupted(nn.Sequential):
    """Raises an error at a call after those that the rehearsal makes, unless the cause is gone."""

    cause: BaseException | None = None

    def __init__(self, at: int = 8) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.at, self.calls = at, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at and Interrupted.cause is not None:
            raise Interrupted.cause
        return super().forward(x)


@pytest.fixture
def raising(monkeypatch):
    """Sets what :class:`Interrupted` raises."""
    return lambda cause: monkeypatch.setattr(Interrupted, "cause", cause)


class MuteError(RuntimeError):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise self


MODEL = {"model": {"class": "tests.integration.test_failed_runs:Interrupted"}}
BAD = {"name": "bad", **MODEL}
KEPT = {"epochs": 4, "batch_size": 30, "checkpoint_seconds": 0.0}
CAUSES = [
    (ValueError("no\nmore"), "no more"),
    (torch.linalg.LinAlgError("it did not converge"), "it did not converge"),
    (KeyError("width"), "KeyError: 'width'"),
    (MemoryError(), "MemoryError: MemoryError"),
    (FileNotFoundError(2, "No such file", "mine.pt"), "FileNotFoundError: [Errno 2] No such file: 'mine.pt'"),
    (AssertionError(), "AssertionError: AssertionError"),
    (SystemExit(3), "SystemExit: 3"),
    (BrokenPipeError(32, "Broken pipe"), "BrokenPipeError: [Errno 32] Broken pipe"),  # one of the user's own
    (MuteError(), "MuteError"),
    (ValueError("caf\udce9"), r"caf\udce9"),  # a name of a file that is not UTF-8
]


@pytest.mark.parametrize(("cause", "reason"), CAUSES, ids=lambda value: type(value).__name__)
def test_the_other_runs_are_made_and_a_line_tells(cause, reason, raising, tmp_path):
    raising(cause)
    (line,) = run_study(small(arms=[BAD, {"name": "none"}]), tmp_path, CPU)
    assert line.startswith(f"failed: bad/seed0: {reason}")
    assert "\n" not in line
    assert Record(tmp_path / "runs" / "none" / "seed0").result["status"] == "done"
    assert Record(tmp_path / "runs" / "bad" / "seed0").result["reason"].startswith(reason)


def test_the_report_shows_it_and_the_other_seeds_are_made(raising, tmp_path):
    raising(ValueError("no more"))
    study = small(arms=[{"name": "none"}, BAD], seeds=[0, 1])
    assert [line[:18] for line in run_study(study, tmp_path, CPU)] == ["failed: bad/seed0:", "failed: bad/seed1:"]
    summary = summarize(tmp_path)
    assert [cell.status for cell in summary.cells] == ["done", "failed"]
    lines = report.table(summary).splitlines()
    assert lines[3].split() == ["bad", "failed"]
    assert "failed" in report.write_page(summary, tmp_path).read_text()


def test_a_study_of_failed_runs_only_has_a_report(raising, tmp_path):
    raising(ValueError("no more"))
    run_study(small(arms=[BAD]), tmp_path, CPU)
    assert "failed" in report.table(summary := summarize(tmp_path))
    assert report.write_page(summary, tmp_path).exists()


@pytest.mark.parametrize("at", [3, 8, 20])
def test_resuming_makes_it_again_and_ends_with_the_bits_of_one_that_never_failed(at, raising, tmp_path):
    bad = {"name": "bad", "model": {**MODEL["model"], "args": {"at": at}}, "train": KEPT}
    study = small(arms=[bad, {"name": "none"}])
    whole = outcome(study, tmp_path / "whole")
    raising(OSError(5, "Input/output error"))
    assert len(run_study(study, tmp_path / "cut", CPU)) == 1
    made = (tmp_path / "cut" / "runs" / "none" / "seed0" / "result.json").stat().st_mtime_ns
    raising(None)
    assert outcome(study, tmp_path / "cut", resume=True) == whole
    assert (tmp_path / "cut" / "runs" / "none" / "seed0" / "result.json").stat().st_mtime_ns == made


def test_a_constructor_that_raises_for_one_seed_only_fails_that_run(tmp_path, monkeypatch):
    init = Interrupted.__init__

    def picky(self: Interrupted, *args: int) -> None:
        if torch.initial_seed() == 1:
            raise ValueError("not this seed")
        init(self, *args)

    monkeypatch.setattr(Interrupted, "__init__", picky)
    (line,) = run_study(small(arms=[BAD], seeds=[0, 1, 2]), tmp_path, CPU)
    assert line.startswith("failed: bad/seed1: ")
    assert "not this seed" in line
    assert len(summarize(tmp_path).cells[0].runs) == 3


def test_an_interrupt_is_no_failure(raising, tmp_path):
    raising(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run_study(small(arms=[BAD, {"name": "none"}]), tmp_path, CPU)
    assert Record(tmp_path / "runs" / "bad" / "seed0").result is None


def test_the_command_ends_with_1_and_one_line(experiments, raising, tmp_path):
    raising(ValueError("no more"))
    (tmp_path / "study.toml").write_text(
        'name = "s"\ndata = { train_size = 50, valid_size = 50 }\noptimizer = { name = "SGD", lr = 0.1 }\n'
        'train = { epochs = 4, batch_size = 25 }\nmodel = { name = "mlp", hidden = [8] }\n'
        '[[arms]]\nname = "bad"\nmodel = { class = "tests.integration.test_failed_runs:Interrupted" }\n'
        '[[arms]]\nname = "none"\n'
    )
    code, out, err = experiments("run", "study.toml", "--device", "cpu")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("failed: bad/seed0: no more (")
    assert "Report: " in out
    raising(None)
    assert experiments("run", "study.toml", "--device", "cpu", "--resume")[::2] == (0, "")
