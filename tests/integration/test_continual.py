"""Studies of tasks one after another, with and without elastic weight consolidation, against loops of torch alone."""

import re

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import SGD

from experiments.errors import UserError
from experiments.report import continual, summarize, table
from experiments.report.page import write_page
from experiments.running.engines import Processes
from experiments.running.plans import obstacle
from experiments.running.rehearsal import check
from experiments.running.study import run_study
from experiments.training import build
from experiments.training.continual import steps_of
from experiments.training.data import Split
from experiments.training.record import Record
from tests.helpers import assert_close
from tests.integration.plain import parts
from tests.integration.studies import CPU, history, outcome, results, small
from tests.integration.test_page import Tree

TASKS = [[3, 1], [2, 7], [4, 0]]
DATA = {"name": "digits", "train_size": 120, "valid_size": 60, "tasks": {"classes": TASKS}}
TRAIN = {"epochs": 6, "batch_size": 30, "dtype": "float64", "checkpoint_seconds": 0.0, "stack": False}
SGD_ = {"name": "SGD", "lr": 0.1}
HELD = {"penalty": "L2SP", "strength": 3.0, "anchor": "tasks", "select": "everything"}
EWC = {**HELD, "weights": "fisher"}


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), weight_norm(nn.Linear(64, 6)))


def one_arm(**changes):
    return small(**{"data": DATA, **changes}, arms=[{"name": "arm"}])


def study_of(*held, scenario="task", train=None, **changes):
    data = {**DATA, "tasks": {"classes": TASKS, "scenario": scenario}}
    return one_arm(data=data, optimizer=SGD_, train={**TRAIN, **(train or {})}, regularizers=list(held), **changes)


def by_hand(run, weights):
    """The run's weights by a loop of torch alone: a list of penalties, one for each task so far."""
    examples, net, shuffle = parts(run)
    net.double()
    optimizer = SGD(net.parameters(), lr=run.optimizer.lr)
    scenario, past = run.data.tasks.scenario, []

    def loss_of(outputs, y, number):
        if scenario == "task":  # the outputs of the task's classes are side by side
            outputs, y = outputs[:, 2 * number : 2 * number + 2], y - 2 * number
        return cross_entropy(outputs, y)

    for number, group in enumerate(examples.groups):
        x, y = group.train.x, group.train.y
        for _ in range(run.train.epochs // len(TASKS)):
            net.train()
            for batch in torch.randperm(len(y), generator=shuffle).split(run.train.batch_size):
                optimizer.zero_grad()
                loss = loss_of(net(x[batch]), y[batch], number)
                for importances, before in past:
                    for param, importance, old in zip(net.parameters(), importances, before, strict=True):
                        loss = loss + run.regularizers[0].strength / 2 * (importance * (param - old) ** 2).sum()
                loss.backward()
                optimizer.step()
        importances = [torch.ones_like(param) for param in net.parameters()]
        if weights == "fisher":
            net.eval()
            importances = [torch.zeros_like(param) for param in net.parameters()]
            for one, label in zip(x, y, strict=True):
                own = torch.autograd.grad(loss_of(net(one[None]), label[None], number), list(net.parameters()))
                importances = [total + g**2 / len(y) for total, g in zip(importances, own, strict=True)]
        past.append((importances, [param.detach().clone() for param in net.parameters()]))
    return net.state_dict()


def weights_of(study, folder):
    assert run_study(study, folder, CPU) == []
    path = folder / "runs" / study.runs[0].folder / "checkpoint.pt"
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("weights", [None, "fisher"])
def test_the_penalty_is_a_sum_over_the_tasks_so_far(weights, scenario, tmp_path):
    study = study_of({**HELD, "weights": weights}, scenario=scenario)
    found = weights_of(study, tmp_path)
    assert_close(found, by_hand(study.runs[0], weights), 1e-10)
    free = weights_of(study_of(scenario=scenario), tmp_path / "free")
    assert max((found[name] - free[name]).abs().max() for name in free) > 1e-3


def test_the_mode_grad_makes_the_same_steps(tmp_path):
    one, other = (weights_of(study_of({**EWC, "mode": mode}), tmp_path / mode) for mode in ("loss", "grad"))
    assert_close(one, other, 1e-10)


@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_other_modes_hold_the_weights_too(mode, tmp_path):
    free, held = study_of(), study_of({**HELD, "mode": mode, "strength": 1e6 if mode == "prox" else 5.0})
    one, other = (weights_of(study, tmp_path / str(i)) for i, study in enumerate((free, held)))
    assert max((one[name] - other[name]).abs().max() for name in one) > 1e-2
    if mode == "prox":  # after the first task hardly anything moves
        stopped = study_of(scheduler={"name": "StepLR", "step_size": 2, "gamma": 0.0})
        first = weights_of(stopped, tmp_path / "first")
        assert_close(other, first, 1e-4)


def test_ewc_forgets_less_than_fine_tuning(tmp_path):
    study = small(
        data={**DATA, "train_size": 600, "tasks": {"classes": [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]}},
        optimizer={"name": "Adam", "lr": 0.01},
        train={"epochs": 100, "batch_size": 10, "evaluate_every": 20},
        arms=[{"name": "none"}, {"name": "EWC", "regularizers": [{**EWC, "strength": 1e4}]}],
        seeds=[0, 1, 2],
    )
    run_study(study, tmp_path, CPU)
    lost, average = {}, {}
    for run in study.runs:
        after = continual.accuracies(run, Record(tmp_path / "runs" / run.folder).history)
        lost.setdefault(run.arm, []).append(continual.forgetting(after))
        average.setdefault(run.arm, []).append(sum(after[-1]) / 5)
    for none, ewc in zip(lost["none"], lost["EWC"], strict=True):
        assert ewc < 0.5 * none
    assert sum(average["EWC"]) > sum(average["none"]) + 0.1


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_tasks_hold_the_images_of_their_classes(scenario):
    data = {**DATA, "standardize": False, "train_size": None, "tasks": {"classes": TASKS, "scenario": scenario}}
    examples = build.examples(one_arm(data=data).runs[0], CPU)
    x, y = load_digits(return_X_y=True)
    known = {tuple(image): int(label) for image, label in zip(x.astype("float32"), y, strict=True)}
    for part in ("train", "valid", "test"):
        whole = getattr(examples, part)
        assert len(whole) == sum(len(getattr(group, part)) for group in examples.groups)
        for number, group in enumerate(examples.groups):
            split = getattr(group, part)
            scale = 16 if split.x.max() <= 1 else 1
            labels = [known[tuple((scale * image).flatten().tolist())] for image in split.x]
            place = [TASKS[number].index(label) for label in labels]
            assert split.y.tolist() == [own + (0 if scenario == "domain" else 2 * number) for own in place]
    assert sum(examples.sizes.values()) == sum(y.tolist().count(label) for own in TASKS for label in own)
    names = ("3/2/4", "1/7/0") if scenario == "domain" else ("3", "1", "2", "7", "4", "0")
    assert examples.labels == names
    assert examples.task.outputs == len(names)


def test_the_task_of_an_image_is_told_in_one_scenario_alone(tmp_path):
    """The error is that of the best output among those that are allowed."""
    for scenario, allowed in {"task": 2, "class": 6}.items():
        study = study_of(scenario=scenario)
        state = weights_of(study, tmp_path / scenario)
        examples, net, _ = parts(study.runs[0])
        net.double().load_state_dict(state)
        (row,) = [row for row in history(study_of(scenario=scenario), tmp_path / f"{scenario}2") if row["epoch"] == 6]
        for number, group in enumerate(examples.groups):
            with torch.no_grad():
                outputs = net(group.test.x)
            start = 2 * number if allowed == 2 else 0
            wrong = outputs[:, start : start + allowed].argmax(1) + start != group.test.y
            assert_close(row["tasks"]["test"][number], wrong.double().mean().item())


@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
def test_a_resumed_run_is_the_uninterrupted_one(epoch, tmp_path, monkeypatch):
    study = study_of(EWC)
    whole = outcome(study, tmp_path / "whole")
    folder, append = tmp_path / "cut", Record.append

    class KilledError(BaseException):
        pass

    def die(self, row):
        append(self, row)
        if row["epoch"] == epoch:
            raise KilledError

    monkeypatch.setattr(Record, "append", die)
    with pytest.raises(KilledError):
        run_study(study, folder, CPU)
    monkeypatch.setattr(Record, "append", append)
    torch.manual_seed(12345)
    run_study(study, folder, CPU, resume=True)
    assert outcome(study, folder, resume=True) == whole
    path = f"runs/{study.runs[0].folder}"
    assert Record(folder / path).history == Record(tmp_path / "whole" / path).history


def test_other_processes_make_the_same_bits(tmp_path):
    arms = [{"name": "none"}, {"name": "EWC", "regularizers": [EWC]}]
    study = small(data=DATA, train=TRAIN, optimizer=SGD_, arms=arms, seeds=[0, 1])
    run_study(study, tmp_path / "one", CPU)
    run_study(study, tmp_path / "two", CPU, engine=Processes(2))
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_the_last_epoch_of_each_task_is_evaluated(tmp_path):
    rows = history(study_of(train={"epochs": 15, "evaluate_every": 3}), tmp_path)
    assert [row["epoch"] for row in rows] == [3, 5, 8, 10, 13, 15]


def test_the_recorded_penalty_is_that_of_the_steps(tmp_path):
    rows = history(study_of(EWC), tmp_path)
    values = [row["penalty"]["L2SP"] for row in rows]
    assert values[:2] == [0.0, 0.0]
    assert min(values[2:4]) > 0


def test_all_tasks_at_once_are_an_ordinary_run(tmp_path):
    data = {**DATA, "tasks": {"classes": TASKS, "scenario": "class", "in_turn": False}}
    study = one_arm(data=data, optimizer=SGD_, train=TRAIN)
    found = weights_of(study, tmp_path)
    examples, net, shuffle = parts(study.runs[0])
    net.double()
    optimizer = SGD(net.parameters(), lr=0.1)
    for _ in range(6):
        for batch in torch.randperm(120, generator=shuffle).split(30):
            optimizer.zero_grad()
            cross_entropy(net(examples.train.x[batch]), examples.train.y[batch]).backward()
            optimizer.step()
    assert_close(found, net.state_dict(), 1e-10)


def test_steps_are_counted_task_by_task():
    turns = [Split(torch.zeros(count, 1), torch.zeros(count)) for count in (10, 25, 7)]
    assert [steps_of(turns, 10, 2, epochs) for epochs in range(7)] == [0, 1, 2, 5, 8, 9, 10]


def test_a_run_that_diverges_says_at_which_step(tmp_path):
    result = outcome(study_of({**HELD, "strength": 1e100}), tmp_path)
    assert result["status"] == "diverged"
    sizes = [len(group.train) for group in build.examples(study_of().runs[0], CPU).groups]
    step, epoch = map(int, re.search(r"step (\d+) \(epoch (\d+)\)", result["reason"]).groups())
    each = [-(-size // 30) for size in sizes for _ in range(2)]
    assert epoch > 2
    assert sum(each[: epoch - 1]) < step <= sum(each[:epoch])


def test_stacks_are_refused_and_the_runs_made_one_after_another(tmp_path, capsys):
    arms = [{"name": "EWC", "regularizers": [EWC]}]
    study = small(data=DATA, train={**TRAIN, "stack": True}, optimizer=SGD_, arms=arms, seeds=[0, 1])
    assert obstacle(study.runs[0]).startswith("data.tasks: ")
    run_study(study, tmp_path / "stack", CPU)
    assert "EWC: 2 runs one after another: data.tasks: " in capsys.readouterr().err
    alone = small(data=DATA, train=TRAIN, optimizer=SGD_, arms=arms, seeds=[0, 1])
    run_study(alone, tmp_path / "alone", CPU)
    assert results(tmp_path / "stack") == results(tmp_path / "alone")


def test_the_report_has_the_accuracies_and_the_forgetting(tmp_path):
    at_once = {"name": "at once", "data": {"tasks": {"in_turn": False}}, "train": {"epochs": 2}}
    study = small(data=DATA, train=TRAIN, optimizer=SGD_, arms=[{"name": "none"}, at_once], seeds=[0, 1])
    run_study(study, tmp_path, CPU)
    summary = summarize(tmp_path)
    rows = {row[0]: row for row in continual.by_task(summary).rows}
    histories = [Record(tmp_path / "runs" / run.folder).history for run in study.runs]
    lost, average = [], []
    for found in histories[:2]:
        first, second, last = ([1 - e for e in row["tasks"]["test"]] for row in found if row["epoch"] in (2, 4, 6))
        lost.append(100 * sum(max(first[i], second[i]) - last[i] for i in range(2)) / 2)
        average.append(100 * sum(last) / 3)
    assert rows["none"][1].startswith(f"{sum(average) / 2:.1f}")
    assert rows["none"][2].startswith(f"{sum(lost) / 2:.1f}")
    assert rows["at once"][2] == "-"
    assert "forgetting" in table(summary)
    tree = Tree(write_page(summary, tmp_path).read_text(encoding="utf-8"))
    shown = tree.rows("tasks")
    assert len(shown) == 3 * sum(map(len, histories))
    assert {row["task"] for row in shown} == {"task 1", "task 2", "task 3"}
    row = next(row for row in shown if (row["label"], row["seed"], row["epoch"]) == ("none", "1", "6"))
    assert float(row["accuracy"]) == 1 - histories[1][-1]["tasks"]["test"][0]


@pytest.mark.parametrize("train", [{"average": {"name": "swa"}}, {"early_stopping": {"patience": 1}}])
def test_what_is_not_measured_after_each_task_has_no_forgetting(train, tmp_path):
    data = {**DATA, "tasks": {"classes": TASKS, "in_turn": "average" in train}}
    study = small(data=data, train={**TRAIN, "epochs": 60, **train}, arms=[{"name": "arm"}])
    run_study(study, tmp_path, CPU)
    last = Record(tmp_path / "runs" / study.runs[0].folder).result["tasks"]["test"]
    first, *others = continual.by_task(summarize(tmp_path)).rows
    assert first[3:] == [f"{100 * (1 - error):.1f}" for error in last]
    assert (first if "early_stopping" in train else others[0])[2] == "-"
    write_page(summarize(tmp_path), tmp_path)


IN_TURN = {"train": TRAIN, "data": DATA}
WRONG = {
    "a class in two tasks": (
        {"data": {**DATA, "tasks": {"classes": [[0, 1], [1, 2]]}}},
        "data.tasks: classes must be in one task each, got 1 twice",
    ),
    "one task": ({"data": {**DATA, "tasks": {"classes": [[0, 1]]}}}, "data.tasks.classes: must have at least 2 items"),
    "a task without a choice": (
        {"data": {**DATA, "tasks": {"classes": [[0, 1], [2]]}}},
        r"data.tasks: classes must be 2 or more in each task, which is told, got \[2, 1\]",
    ),
    "unequal tasks": (
        {"data": {**DATA, "tasks": {"classes": [[0, 1], [2]], "scenario": "domain"}}},
        r"data.tasks: classes must be as many in each task, and 2 or more, got \[2, 1\]: change them, or set scenario",
    ),
    "an unknown scenario": (
        {"data": {**DATA, "tasks": {"classes": TASKS, "scenario": "hard"}}},
        "data.tasks.scenario: must be 'task', 'domain' or 'class', got 'hard'",
    ),
    "an unknown class": (
        {**IN_TURN, "data": {**DATA, "tasks": {"classes": [[0, 1], [2, 3], [4, 10]]}}},
        "data.tasks.classes: must be from 0 to 9, the classes of 0, 1, .*, got 10",
    ),
    "a regression": (
        {**IN_TURN, "data": {"name": "diabetes", "tasks": {"classes": TASKS}}},
        "data.tasks: are parts of the classes, the data is a regression: remove the key",
    ),
    "label noise": ({"data": {**DATA, "label_noise": 0.1}}, "data: label_noise would move examples to other tasks"),
    "no examples": (
        {**IN_TURN, "data": {**DATA, "valid_size": 1}},
        "data.tasks: each must have valid examples, got none of task .: take more examples",
    ),
    "epochs": ({**IN_TURN, "train": {**TRAIN, "epochs": 7}}, "train.epochs: must be a multiple of the 3 tasks, .* 7"),
    "early stopping": (
        {**IN_TURN, "train": {**TRAIN, "early_stopping": {"patience": 1}}},
        "train.early_stopping: is not for tasks one after another: remove it, or set data.tasks.in_turn = false",
    ),
    "a tuned strength": (
        {**IN_TURN, "data": {**DATA, "tasks": {"classes": TASKS, "scenario": "domain"}}, "auto_strength": {"lr": 0.1}},
        "auto_strength: is not for tasks one after another",
    ),
    "a loss": (
        {**IN_TURN, "train": {**TRAIN, "loss": {"name": "MSELoss"}}},
        "train.loss: a network that is told the task has the cross-entropy of its classes: remove it, or set",
    ),
    "no tasks": (
        {"data": {"name": "digits", "train_size": 100}, "regularizers": [HELD]},
        "regularizers.0.anchor: 'tasks' needs tasks one after another, the study has none",
    ),
    "tasks at once": (
        {"data": {**DATA, "tasks": {"classes": TASKS, "in_turn": False}}, "regularizers": [HELD]},
        "regularizers.0.anchor: 'tasks' needs tasks one after another, the study has them all at once",
    ),
    "another penalty": (
        {**IN_TURN, "regularizers": [{**HELD, "penalty": "L1SP"}]},
        "regularizers.0: anchor 'tasks' is for L2SP, whose sum over tasks is one penalty; got L1SP",
    ),
    "fisher from the start": (
        {**IN_TURN, "regularizers": [{"penalty": "L2SP", "strength": 1.0, "weights": "fisher"}]},
        "regularizers.0: weights 'fisher' are of the tasks so far: set anchor = 'tasks', with penalty L2SP",
    ),
    "a reference": (
        {**IN_TURN, "regularizers": [{**HELD, "reference": 1.0}]},
        "regularizers.0: anchor 'tasks' takes reference from the tasks: remove it",
    ),
    "a computed weight": (
        {**IN_TURN, "model": {"class": "tests.integration.test_continual:Normed"}, "regularizers": [EWC]},
        "regularizers.0.weights: 'fisher' is not known of .*, which a layer computes: select other weights",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_told_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        check(one_arm(**changes))
    assert "\n" not in str(error.value)
