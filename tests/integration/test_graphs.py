"""``train.compile`` without CUDA: what a graph cannot hold is refused, and all else is as without it."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from experiments.errors import UserError
from experiments.running.study import run_study
from experiments.training import graphs
from experiments.training.graphs import Graphs
from experiments.training.loop import make_steps
from experiments.training.sameness import digest_of
from experiments.training.setup import set_up
from tests.helpers import assert_bit_equal, assert_close, assert_differs
from tests.integration.plain import finished, sgd
from tests.integration.studies import CPU, arm

COMPILED = {"epochs": 3, "batch_size": 30, "compile": True}
RAMP = {"name": "linear", "steps": 8}
ONE_CYCLE = {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 30, "interval": "step"}
STEPWISE = {"name": "ExponentialLR", "gamma": 0.9, "interval": "step"}
REFUSED = {
    "auto_strength": {"auto_strength": {}, "regularizers": [{"penalty": "L2", "strength": 0.1}]},
    "sparsity": {
        "sparsity": {"target": 0.5},
        "optimizer": {"name": "ProxSGD", "lr": 0.1, "penalty": {"name": "L1", "strength": 0.1}},
    },
    "dropout_schedule": {"dropout_schedule": RAMP, "model": {"name": "mlp", "dropout": {"name": "Dropout"}}},
    "regularizers.1.schedule": {
        "regularizers": [{"penalty": "L1", "strength": 0.1}, {"penalty": "L2", "strength": 0.1, "schedule": RAMP}]
    },
    "regularizers.0.activity": {"regularizers": [{"activity": "L1", "strength": 0.1, "modules": ["relu1"]}]},
    "the steps of Adagrad, ": {"optimizer": {"name": "Adagrad", "lr": 0.1}},
    "the steps of Adafactor, ": {"optimizer": {"name": "Adafactor", "lr": 0.1}},
    "the steps of Adamax under amp": {"optimizer": {"name": "Adamax", "lr": 0.1}, "train": {**COMPILED, "amp": True}},
    "the momentum that OneCycleLR sets": {"scheduler": ONE_CYCLE},
    "the learning rate of SGD": {"optimizer": {"name": "SGD", "lr": 0.1, "foreach": True}, "scheduler": STEPWISE},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_graph_cannot_hold_is_refused_before_anything_is_written(what, tmp_path):
    study = arm(**{"train": COMPILED, **REFUSED[what]})
    with pytest.raises(UserError) as caught:
        run_study(study, tmp_path / "out", CPU)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"arms[arm].train.compile: a graph cannot hold {what}")
    assert not (tmp_path / "out").exists()


def test_on_the_cpu_a_study_has_the_bits_of_one_without_it_and_says_so_once(tmp_path, capsys):
    graphs._note_other_device.cache_clear()
    arms = [{"name": "a"}, {"name": "b"}]
    compiled = finished(sgd(arms, {"compile": True}), tmp_path / "compiled")
    assert capsys.readouterr().err.count("note: train.compile: is for CUDA, on cpu steps are made as without it") == 1
    plain = finished(sgd(arms), tmp_path / "plain")
    for run, (_, _, weights) in plain.items():
        assert_bit_equal(compiled[run][2], weights)


def test_a_run_may_go_on_with_the_other_setting(tmp_path):
    study, other = (sgd(train={"compile": compile}) for compile in (False, True))
    assert digest_of(study.runs[0]) == digest_of(other.runs[0])
    run_study(study, tmp_path, CPU)
    run_study(other, tmp_path, CPU, resume=True)  # would be refused if it were another study


CASES = {
    "dropout": {"model": {"name": "mlp", "hidden": [16], "dropout": {"name": "Dropout", "p": 0.3}}},
    "momentum": {"optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9}},
    "a rate by steps": {"scheduler": STEPWISE},
    "a rate by epochs": {"scheduler": {"name": "ExponentialLR", "gamma": 0.5}},
    "two batches in a step": {"train": {"epochs": 5, "batch_size": 20, "accumulate": 2}},
}


@pytest.mark.parametrize("rate_changes", [True, False], ids=["a tensor as rate", "numbers"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_replayed_gets_the_batches_and_the_rates(case, rate_changes, monkeypatch):
    """With graphs that compute the step anew from what they hold, in place of those that only CUDA has."""
    recordings = []

    def record(self, step, batches):
        held = [(x.clone(), y.clone()) for x, y in batches]
        numbers = [group["lr"] for group in self._optimizer.param_groups]  # which a graph would keep
        losses = torch.zeros(())

        def replay():
            rates = self._rates or numbers
            before = [group["lr"] for group in self._optimizer.param_groups]
            for group, lr in zip(self._optimizer.param_groups, rates, strict=True):
                group["lr"] = lr
            losses.copy_(step(held))
            for group, lr in zip(self._optimizer.param_groups, before, strict=True):
                group["lr"] = lr

        recordings.append(len(held))
        return graphs._Recorded(SimpleNamespace(replay=replay), held, losses)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(wait_stream=lambda stream: None))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_stream=lambda stream: None))
    monkeypatch.setattr(Graphs, "_record", record)
    results = []
    for compiled in (False, True):
        study = arm(
            **{"optimizer": {"name": "SGD", "lr": 0.05}, "train": {"epochs": 5, "batch_size": 30}, **CASES[case]}
        )
        setup = set_up(study.runs, CPU)
        if compiled:
            setup.graphs = Graphs(setup.model, setup.optimizer, CPU, rate_changes)
        start = {name: value.clone() for name, value in setup.model.state_dict().items()}
        losses = []
        for epoch in range(1, 6):
            losses.append(make_steps(setup, setup.batches(), epoch))
            setup.end_epoch(epoch)
        results.append((torch.cat(losses), setup.model.state_dict()))
    assert_differs(results[0][1], start)
    assert_close(*results, tolerance=1e-6)
    if "rate" not in case or rate_changes:
        assert len(recordings) == 2  # of the full batches, and of the smaller ones at the end of an epoch
    if setup.scheduler is not None:  # the optimizer has the number again, which a checkpoint holds
        assert setup.optimizer.param_groups[0]["lr"] == setup.scheduler.get_last_lr()[0]
