"""Paths of strengths beyond linear models: against loops by hand, and what is refused."""

import math
import os
import re
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from tests.helpers import assert_bit_equal, assert_close
from torchreg import L1, L2, L2SP, Lp, Nuclear, Regularizer
from torchreg import nn as layers
from torchreg.nn import seed_dropout
from torchreg.tuning import Point, best, one_standard_error, strength_max, strength_path
from torchreg.tuning.path import executors
from torchreg.tuning.path.folds import splits
from torchreg.tuning.path.selection import Mean

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(60, 5, generator=DRAW, dtype=torch.float64)
Y = X[:, :1] - X[:, 1:2] + 0.3 * torch.randn(60, 1, generator=DRAW, dtype=torch.float64)
CLASSES = (Y[:, 0] > 0).long() + (X[:, 2] > 1).long()
ADAM = partial(torch.optim.Adam, lr=0.01)
WAYS = ["stacked", "processes", "one after another"]


def network():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), layers.Dropout(0.3), nn.Linear(8, 3)).double()


def path(make=network, penalty=None, train=(X, CLASSES), valid=(X, CLASSES), **options):
    options = {"strengths": [0.3, 0.01], "optimizer": ADAM, "epochs": 3, "batch_size": 25, "verbose": False, **options}
    return strength_path(make, penalty or L1(1.0) + L2(0.5), train, valid, **options)


def by_hand(strength, mode, seed=0):
    """What anyone would write for one network."""
    torch.manual_seed(seed)
    model = network()
    seed_dropout(model, seed)
    optimizer = ADAM(model.parameters())
    regularizer = Regularizer(model, L1(1.0) + L2(0.5), mode=mode)
    regularizer.scale = strength
    if mode != "loss":
        regularizer.attach(optimizer)
    order = torch.Generator().manual_seed(0)
    for _ in range(3):
        for batch in torch.randperm(60, generator=order).split(25):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X[batch]), CLASSES[batch])
            (loss + regularizer.value() if mode == "loss" else loss).backward()
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize("executor", WAYS)
@pytest.mark.parametrize("mode", ["loss", "grad", "decoupled", "prox"])
def test_each_member_is_what_a_loop_by_hand_makes_of_it(mode, executor):
    for point in path(mode=mode, executor=executor, jobs=2, keep=True):
        model = by_hand(point.strength, mode)
        assert_close(dict(point.models[0].named_parameters()), dict(model.named_parameters()), 1e-8)
        outputs = model(X)
        assert_close(point.train_loss.mean, F.cross_entropy(outputs, CLASSES).item(), 1e-8)
        error = (outputs.argmax(1) != CLASSES).double().mean().item()
        assert_close(point.valid_error, Mean(error, math.sqrt(error * (1 - error) / 60)), 1e-8)
        each = F.cross_entropy(outputs, CLASSES, reduction="none")
        assert_close(point.valid_loss.se, (each.std() / 60**0.5).item(), 1e-8)
        assert math.isnan(point.optimality)


def test_torchs_own_dropout_is_repeatable_and_the_same_in_every_way_of_training():
    make = lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()  # noqa: E731
    losses = [
        [point.train_loss.mean for point in path(make, executor=executor, jobs=2)] for executor in (*WAYS, WAYS[0])
    ]
    for other in losses[1:]:
        assert_close(other, losses[0], 1e-10)


def test_patience_takes_each_members_best_epoch():
    found = path(patience=2, epochs=30, optimizer=partial(torch.optim.Adam, lr=0.1), strengths=[1e-6, 0.1], keep=True)
    ends = []
    for point in found:
        torch.manual_seed(0)
        model = network()
        seed_dropout(model, 0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        regularizer = Regularizer(model, L1(1.0) + L2(0.5), mode="prox").attach(optimizer)
        regularizer.scale = point.strength
        order, losses, states = torch.Generator().manual_seed(0), [], []
        while not losses or len(losses) - 1 - losses.index(min(losses)) < 2:
            for batch in torch.randperm(60, generator=order).split(25):
                optimizer.zero_grad()
                F.cross_entropy(model.train()(X[batch]), CLASSES[batch]).backward()
                optimizer.step()
            losses.append(F.cross_entropy(model.eval()(X), CLASSES).item())
            states.append({name: value.clone() for name, value in model.named_parameters()})
        ends.append(len(losses))
        assert_close(dict(point.models[0].named_parameters()), states[losses.index(min(losses))], 1e-8)
    assert max(ends) < 30


def test_figures_of_seeds_are_means_and_of_folds_have_their_standard_errors():
    folds = {"valid": None, "folds": 4, "strengths": [0.1]}
    both, *apart = (path(seeds=seeds, **folds)[0] for seeds in ((0, 1), (0,), (1,)))
    assert_close(both.valid_loss.mean, sum(one.valid_loss.mean for one in apart) / 2)
    models = path(keep=True, **folds)[0].models
    found = splits((X, CLASSES), None, 4, 0)
    losses = torch.stack([F.cross_entropy(m.eval()(x), y) for m, (_, (x, y)) in zip(models, found, strict=True)])
    assert_close(apart[0].valid_loss, Mean(losses.mean().item(), (losses.std() / 2).item()), 1e-10)


def test_folds_are_complete_apart_even_and_repeatable():
    found = splits((torch.arange(60)[:, None], CLASSES), None, 5, 3)
    held_out = torch.cat([theirs[0] for _, theirs in found]).flatten()
    assert sorted(held_out.tolist()) == list(range(60))
    for ours, theirs in found:
        assert not set(ours[0].flatten().tolist()) & set(theirs[0].flatten().tolist())
        counts = torch.bincount(theirs[1], minlength=3)
        assert all(abs(counts - torch.bincount(CLASSES, minlength=3) / 5) <= 1)
    again, other = (splits((torch.arange(60)[:, None], CLASSES), None, 5, seed) for seed in (3, 4))
    assert_bit_equal(again[0][1][0], found[0][1][0])
    assert other[0][1][0].tolist() != found[0][1][0].tolist()
    mask = torch.arange(60) < 20
    (ours, theirs), _ = splits((X, CLASSES), None, [(~mask, mask), ([0, 1, 2, 3], [4])], 0)
    assert_bit_equal((ours[0], theirs[0]), (X[20:], X[:20]))


def a_point(strength, loss, se=0.0, error=0.0):
    mean = Mean(loss, se)
    return Point(strength, mean, mean, mean, Mean(error, 0.0), 0.0, {"w": 1.0}, 0.0, ())


def test_the_best_is_the_strongest_of_equals_and_one_standard_error_goes_further():
    points = [a_point(s, loss, 0.1) for s, loss in ((8.0, 0.61), (4.0, 0.59), (2.0, 0.5), (1.0, 0.5), (0.5, 0.55))]
    assert best(points).strength == 2.0
    assert one_standard_error(points).strength == 4.0
    assert best([a_point(1.0, 0.1, error=0.3), a_point(2.0, 0.2, error=0.2)], by="error").strength == 2.0
    points.append(a_point(16.0, math.nan))
    assert one_standard_error(points).strength == 4.0
    with pytest.raises(ValueError, match="all points diverged"):
        best([a_point(1.0, math.nan)])
    with pytest.raises(ValueError, match="by must be one of loss, error, got 'accuracy'"):
        best(points, by="accuracy")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strengths": 0.1}, r"strengths must be a list of numbers, got 0\.1: write \[0\.1\]"),
        ({"strengths": "0.1"}, r"strengths must be a list of numbers, got '0\.1'"),
        ({"strengths": ["a"]}, r"strengths must be a list of numbers, got \['a'\]"),
        ({"strengths": [None]}, r"strengths must be a list of numbers, got \[None\]"),
        ({"strengths": torch.tensor(0.1)}, r"strengths must be a list of numbers, got tensor\(0\.1000\)"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1)])}, "optimizer must be a function that makes one, .* got SGD"),
    ],
    ids=["one strength", "text", "a list of text", "a list of None", "a 0-d tensor", "an optimizer"],
)
def test_what_is_given_in_place_of_several_or_of_a_function_is_one_clear_line(options, said):
    with pytest.raises(TypeError, match=rf"\Astrength_path: {said}\Z"):
        strength_path(lambda: nn.Linear(2, 1), L1(1.0), (torch.ones(9, 2), torch.ones(9, 1)), verbose=False, **options)


def test_members_that_diverge_are_told_and_the_others_are_sound():
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1), "mode": "grad", "epochs": 40}
    found = path(penalty=L2(1.0), strengths=[1e9, 0.1], **options)
    assert [point.diverged for point in found] == [True, False]
    assert best(found).strength == 0.1
    assert "diverged" in repr(found)


def test_one_logit_is_judged_by_its_sign():
    binary = lambda o, t: F.binary_cross_entropy_with_logits(o.flatten(), t.to(o.dtype))  # noqa: E731
    y = (Y[:, 0] > 0).long()
    for make in (lambda: nn.Linear(5, 1), lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))):
        options = {"criterion": binary, "strengths": [0.05], "verbose": False, "keep": True}
        for point in strength_path(make, L1(1.0), (X, y), (X, y), **options):
            wrong = (point.models[0](X).flatten() > 0) != y
            assert_close(point.valid_error.mean, wrong.double().mean().item())
            assert point.valid_error.mean < 0.2


def test_the_loss_is_the_criterion_whether_or_not_it_is_a_mean_over_examples():
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 20.0, 3.0]).double())
    for criterion in (weighted, nn.CrossEntropyLoss(reduction="sum")):
        (point,) = path(criterion=criterion, strengths=[0.1], keep=True)
        assert_close(point.valid_loss.mean, criterion(point.models[0].eval()(X), CLASSES).item(), 1e-10)


def test_buffers_that_are_not_persistent_are_kept():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 3, dtype=torch.float64)
            self.register_buffer("mean", torch.zeros(3, dtype=torch.float64), persistent=False)

        def forward(self, x):
            y = self.linear(x)
            if self.training:
                self.mean.copy_(y.detach().mean(0))
            return y - self.mean

    point = path(Shifted, strengths=[0.1], keep=True)[0]
    assert point.models[0].mean.abs().sum() > 0
    assert_close(point.train_loss.mean, F.cross_entropy(point.models[0].eval()(X), CLASSES).item(), 1e-10)


def test_the_largest_strength_of_a_deep_network_is_bracketed():
    def make():
        return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()

    torch.manual_seed(0)
    model = make()
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1), "epochs": 60}
    found = strength_max(model, L1(1.0), (X, CLASSES), **options)
    assert not found.exact
    assert found.lower < found.strength < 2 * found.lower
    torch.manual_seed(0)
    ends = path(make, L1(1.0), strengths=[found.lower, found.strength], batch_size=None, seeds=(0,), **options)
    assert [point.zeros == 1 for point in ends] == [True, False]
    assert strength_max(model, {"2.*": L1(1.0)}, (X, CLASSES)).exact
    model[0].weight.requires_grad_(False)
    assert strength_max(model, L1(1.0), (X, CLASSES)).exact


def test_a_penalty_that_is_not_convex_is_bracketed_too():
    found = strength_max(nn.Linear(5, 1).double(), Lp(1.0, p=0.5), (X, Y), optimizer=partial(torch.optim.SGD, lr=0.1))
    assert not found.exact
    assert found.strength > 0.05


def test_the_nuclear_norm_and_unused_parameters_go_along():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return self.used(x)

    for make, penalty in ((lambda: nn.Linear(5, 3), Nuclear(1.0)), (Spare, L1(1.0))):
        found = strength_path(make, penalty, (X, CLASSES), (X, CLASSES), count=3, ratio=0.1, verbose=False)
        assert all(point.optimality < 1e-5 for point in found)


def test_the_table_and_the_picture(monkeypatch):
    found = strength_path(lambda: nn.Linear(5, 1), L1(1.0), (X, Y), count=6, verbose=False)
    lines = repr(found).splitlines()
    assert len(lines) == 7
    assert "best" in repr(found)
    assert "1 SE" in repr(found)
    assert found.at(found[2].strength * 1.01) is found[2]
    pytest.importorskip("matplotlib")
    assert len(found.plot().axes) == 3
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        found.plot()


def test_it_says_which_way_it_goes(capsys):
    path(verbose=True)
    line = capsys.readouterr().out
    assert line.startswith("strength_path: training 2 models ")
    assert " ms" in line
    path(verbose=True, executor="stacked")
    assert capsys.readouterr().out == "strength_path: training 2 models as one stack\n"


def test_what_fails_in_a_process_reaches_the_caller():
    def broken(outputs, targets):
        if len(outputs) > 2:  # not where it is tried out
            raise KeyError("no such thing")
        return outputs.mean()

    with pytest.raises(RuntimeError, match="a worker process failed: KeyError: 'no such thing'"):
        path(criterion=broken, executor="processes", jobs=2)


class Looks(nn.Module):
    def forward(self, x):
        return x if x.sum().item() < 1e9 else 2 * x


def test_what_cannot_be_stacked_is_trained_all_the_same():
    make = lambda: nn.Sequential(nn.Linear(5, 3), Looks()).double()  # noqa: E731
    with pytest.warns(UserWarning, match=r"1 \(Looks\) cannot be vectorized"):
        stacked = path(make, executor="stacked")
    alone = path(lambda: nn.Sequential(nn.Linear(5, 3)).double(), executor="one after another")
    assert_close([point.train_loss for point in stacked], [point.train_loss for point in alone], 1e-8)


def test_an_unfinished_path_says_so():
    with pytest.warns(UserWarning, match=r"2 of 2 points are farther .* standardize the inputs"):
        strength_path(lambda: nn.Linear(5, 1), L1(1.0), (1e3 * X + 1e4, Y), strengths=[0.1, 0.01], epochs=5, folds=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": (X[:0], CLASSES[:0])}, "train must hold .* at least one, got 0 inputs"),
        ({"train": (X, CLASSES[:5])}, "as many targets as inputs.*60 inputs and 5 targets"),
        ({"valid": (X[:0], CLASSES[:0])}, "valid must hold"),
        ({"train": (X, CLASSES * 0), "valid": (X, CLASSES)}, "two classes or more, got only 0"),
        ({"train": (X, Y[:, 0]), "valid": (X, Y[:, 0])}, r"outputs' shape \(n, 3\), got \(60,\)"),
        ({"train": (X * math.nan, CLASSES)}, "inputs must be finite"),
        *(({"strengths": wrong}, "strengths must be") for wrong in ([0.0], [-1.0], [math.inf], [math.nan], [])),
        ({"valid": None, "folds": 1}, "folds must be from 2"),
        ({"valid": None, "folds": 61}, "folds must be from 2"),
        ({"valid": None, "folds": []}, "folds must be at least one"),
        ({"executor": "quickly"}, "executor must be one of fastest, stacked"),
        ({"epochs": 0}, "epochs must be"),
        ({"patience": 0}, "patience must be"),
        ({"tolerance": -1.0}, "tolerance must be"),
        ({"ratio": 1.0}, "ratio must be"),
        ({"seeds": ()}, "seeds must be"),
        ({"optimizer": None, "mode": "grad", "batch_size": None}, "mode must be 'prox'"),
        ({"optimizer": None}, "batch_size and patience need an optimizer"),
        ({"penalty": L2(1.0), "strengths": None}, "must make weights zero, L2.* never does: give strengths"),
        ({"penalty": L2SP(1.0)}, "L2SP must have a reference"),
    ],
)
def test_a_mistake_is_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        path(**options)


def test_what_is_no_tensor_and_no_module_is_told():
    with pytest.raises(TypeError, match="must be two tensors, got ndarray"):
        path(train=(X.numpy(), CLASSES.numpy()))
    with pytest.raises(TypeError, match=r"must make a torch\.nn\.Module, got int"):
        path(make=lambda: 3)


PAIR = "examples must be a pair \\(inputs, targets\\), got "
NO_MODEL = "the first argument is a function that makes the model, as in lambda: nn.Linear(...), got "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"make": network()}, f"strength_path: {re.escape(NO_MODEL)}a Sequential$"),
        ({"make": nn.Identity()}, f"strength_path: {re.escape(NO_MODEL)}an Identity$"),
        ({"make": "net"}, f"{re.escape(NO_MODEL)}a str$"),
        ({"penalty": [0.1, 1]}, r"strength_path: penalty must be a Penalty such as L1\(1\.0\), got a list$"),
        ({"penalty": {"*": 0.1}}, r"penalty must be a Penalty .* got 0\.1$"),
        ({"penalty": L1}, r"penalty must be a Penalty .* got the class L1: give it a strength, as in L1\(1e-4\)$"),
        ({"train": TensorDataset(X, CLASSES)}, f"strength_path: train {PAIR}a TensorDataset$"),
        ({"valid": TensorDataset(X, CLASSES)}, f"strength_path: valid {PAIR}a TensorDataset$"),
        ({"train": X}, f"{PAIR}a Tensor$"),
        ({"train": (X, CLASSES, X)}, f"{PAIR}a tuple of 3$"),
    ],
)
def test_an_argument_of_another_kind_is_told(options, message):
    with pytest.raises(TypeError, match=message):
        path(**options)
    if "make" not in options and "valid" not in options:
        options = {"penalty": L1(1.0), "train": (X, CLASSES), **options}
        with pytest.raises(TypeError, match=message.replace("strength_path", "strength_max")):
            strength_max(network(), **options)


def test_a_list_of_two_tensors_and_a_class_without_arguments_are_served():
    class Net(nn.Linear):
        def __init__(self):
            super().__init__(5, 3, dtype=torch.float64)

    assert len(path(make=Net, train=[X, CLASSES], valid=TensorDataset(X, CLASSES).tensors)) == 2


def test_workers_that_cannot_differentiate_leave_it_to_this_process(monkeypatch):
    here, stacked = os.getpid(), executors._stacked

    def refusing(*args):
        if os.getpid() != here:
            raise RuntimeError(f"{executors._NO_FORK}-based multiprocessing")
        return stacked(*args)

    def job(stack, strengths):
        with torch.no_grad():
            for param in stack.parameters():
                param.add_(torch.tensor(strengths).view(-1, *[1] * (param.ndim - 1)))

    models, strengths = [nn.Linear(2, 1) for _ in range(3)], [1.0, 2.0, 3.0]
    expected = executors.train_all(models, strengths, job, "one after another", 2)
    monkeypatch.setattr(executors, "_stacked", refusing)
    with pytest.warns(RuntimeWarning, match="strength_path: worker processes cannot differentiate"):
        found = executors.train_all(models, strengths, job, "processes", 2)
    assert_bit_equal(found, expected)
