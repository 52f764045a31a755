"""What a process of torchrun does by itself, in a group of one; ``tests/distributed`` has those of several."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

from experiments.errors import RecordError, UserError
from experiments.running.stacks import StackStore
from experiments.running.study import run_study
from experiments.training import ranks
from experiments.training.record import Record
from tests.integration.studies import CPU, arm, outcome, small

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs a torch with gloo")


@pytest.fixture
def group(monkeypatch):
    """A group of this process alone."""
    store = dist.HashStore()
    monkeypatch.setattr(ranks, "_store", store)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def is_lost(monkeypatch):
    """Nobody else comes."""
    monkeypatch.setattr(ranks, "_PATIENCE", 0.1)
    monkeypatch.setattr(ranks, "count", lambda: 2)


UNUSED = {"class": "tests.integration.test_ranks:Unused"}


class Unused(nn.Sequential):
    """Has weights that no output depends on."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self[1](self[0](x))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": UNUSED},
        {"model": UNUSED, "regularizers": [{"penalty": "L2", "strength": 0.1, "mode": "loss"}]},
        {"model": {"name": "cnn", "channels": [4, 4]}},
    ],
    ids=["unused weights", "unused weights with a penalty", "a convolution"],
)
def test_a_run_has_the_weights_of_a_plain_one(changes, tmp_path, request):
    plain = outcome(arm(**changes), tmp_path / "plain")
    request.getfixturevalue("group")
    assert outcome(arm(**changes), tmp_path / "group") == plain


def test_stacks_are_not_made_and_a_note_says_so(tmp_path, group, capsys):
    study = small(seeds=[0, 1], train={"epochs": 1, "batch_size": 30, "stack": True})
    assert run_study(study, tmp_path, CPU) == []
    assert "note: none: 2 runs one after another: torchrun: its processes train one network" in capsys.readouterr().err
    assert not (tmp_path / "stacks").exists()


def test_a_stack_that_was_begun_is_left_alone(tmp_path, group):
    study = small(seeds=[0, 1], train={"epochs": 1, "batch_size": 30, "stack": True})
    store = StackStore(tmp_path, study.runs)
    store.runs = list(study.runs)
    tmp_path.mkdir(exist_ok=True)
    store.save({"epoch": 1})
    (tmp_path / "study.json").write_text(study.model_dump_json(by_alias=True))
    with pytest.raises(UserError, match=r"begun as a stack: go on with them without torchrun$"):
        run_study(study, tmp_path, CPU, resume=True)


@pytest.mark.parametrize(
    ("key", "changes"),
    {
        "auto_strength": {"regularizers": [{"penalty": "L2", "strength": 0.1, "mode": "grad"}], "auto_strength": {}},
        "optimizer.penalty": {
            "optimizer": {"name": "ProxSGD", "lr": 0.1, "penalty": {"name": "L1", "strength": 0.1}},
        },
    }.items(),
)
def test_what_needs_whole_weights_is_not_sharded(key, changes, tmp_path, group):
    with pytest.raises(UserError, match=rf"^arms\[arm\]\.{key}: needs whole weights in each process: remove it, or"):
        run_study(arm(train={"epochs": 1, "batch_size": 30, "shard": "fsdp2"}, **changes), tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_without_torchrun_nothing_is_sharded(tmp_path):
    study = arm(train={"epochs": 1, "batch_size": 30, "shard": "fsdp2"})
    assert outcome(study, tmp_path)["status"] == "done"


def test_a_study_may_be_sharded_when_it_goes_on(tmp_path):
    run_study(small(), tmp_path, CPU)
    sharded = small(train={"epochs": 4, "batch_size": 30, "shard": "fsdp2"})
    assert run_study(sharded, tmp_path, CPU, resume=True) == []


def test_a_run_that_fails_in_all_processes_is_recorded_and_the_next_one_begins(tmp_path, group):
    fragile = {"class": "tests.integration.studies:Fragile", "fate": "raises"}
    study = small(arms=[{"name": "bad", "model": fragile}, {"name": "good"}], model={"name": "mlp"})
    (line,) = run_study(study, tmp_path, CPU)
    assert line.startswith("failed: bad/seed0: no more")
    assert Record(tmp_path / "runs" / "good" / "seed0").result["status"] == "done"


def test_a_run_that_fails_in_one_process_ends_it(tmp_path, group, is_lost):
    with pytest.raises(ranks.LostError, match=r"^no more$"):
        ranks.check_all_failed(ValueError("no more"))


def test_what_the_first_process_raises_all_raise(group):
    @ranks.by_first
    def damaged():
        raise RecordError("a: is damaged")

    @ranks.by_first
    def nested():
        return ranks.by_first(len)("abc")

    class OddError(Exception):
        def __init__(self, one, other):
            super().__init__(f"{one} and {other}")

    @ranks.by_first
    def odd():
        raise OddError(1, 2)

    with pytest.raises(RecordError, match=r"^a: is damaged$"):
        damaged()
    assert nested() == 3
    with pytest.raises(RuntimeError, match="1 and 2"):  # which could not be sent
        odd()
    assert nested() == 3


def test_the_last_word_is_said_once(group, monkeypatch):
    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    said = []
    monkeypatch.setattr("builtins.print", lambda line, **_: said.append(line))
    ranks.end("stopped", 1)
    ranks.end("lost", 1)
    assert (said, ends) == (["stopped"], [1, 1])


def test_more_processes_than_gpus_are_refused(group, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    line = "^--device: needs a GPU for each of 2 processes, got 1: start fewer, or use cpu$"
    with pytest.raises(UserError, match=line), ranks.begun(torch.device("cuda")):
        pass


def test_whole_keeps_what_is_whole():
    state = {"a": [1, (2, torch.ones(2))], "b": {"c": torch.ones(1)}}
    assert ranks.whole(state) is state
