"""Held-out losses, errors and standard errors of a path, against sums over the examples written out by hand."""

import math
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import assert_close
from torchreg import L1, Stacked
from torchreg.tuning import strength_max, strength_path
from torchreg.tuning.path.problem import measure

CLASSES, N = 3, 60
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randint(0, CLASSES, (N,), generator=torch.Generator().manual_seed(1))
WEIGHT = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)


def ignoring(y, number):
    y = y.clone()
    y[::3] = number
    return y


def nll(o, y):
    return -o.log_softmax(1)[torch.arange(len(y)), y.clamp(min=0)]


def ones(y):
    return torch.ones(len(y), dtype=torch.float64)


CASES = {  # the criterion, the targets, and by hand: losses of examples, their weights, whether it is their sum
    "mean": (nn.CrossEntropyLoss(), Y, nll, ones, False),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), Y, nll, ones, True),
    "ignored": (nn.CrossEntropyLoss(), ignoring(Y, -100), nll, lambda y: (y != -100).double(), False),
    "ignored class": (nn.CrossEntropyLoss(ignore_index=0), Y, nll, lambda y: (y != 0).double(), False),
    "ignored, sum": (
        nn.CrossEntropyLoss(ignore_index=-1, reduction="sum"),
        ignoring(Y, -1),
        nll,
        lambda y: (y != -1).double(),
        True,
    ),
    "ignored, function": (
        partial(F.cross_entropy, ignore_index=-7),
        ignoring(Y, -7),
        nll,
        lambda y: (y != -7).double(),
        False,
    ),
    "weighted": (nn.CrossEntropyLoss(WEIGHT), Y, nll, lambda y: WEIGHT[y], False),
    "weighted, ignored": (
        nn.CrossEntropyLoss(WEIGHT, ignore_index=-100),
        ignoring(Y, -100),
        nll,
        lambda y: WEIGHT[y.clamp(min=0)] * (y != -100),
        False,
    ),
    "weighted, sum": (nn.CrossEntropyLoss(WEIGHT, reduction="sum"), Y, nll, lambda y: WEIGHT[y], True),
    "nll": (lambda o, y: F.nll_loss(o.log_softmax(1), y, weight=WEIGHT), Y, nll, lambda y: WEIGHT[y], False),
    "margin": (
        lambda o, y: ((1 - o.gather(1, y[:, None]) + o).clamp(min=0).sum(1) - 1).mean() / CLASSES,
        Y,
        lambda o, y: ((1 - o.gather(1, y[:, None]) + o).clamp(min=0).sum(1) - 1) / CLASSES,
        ones,
        False,
    ),
    "halved": (lambda o, y: F.cross_entropy(o, y) / 2, Y, lambda o, y: nll(o, y) / 2, ones, False),
}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(3)
    return [nn.Linear(4, CLASSES, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("size", [1.0, 30.0], ids=["", "far from the margin"])
def test_figures_are_those_of_the_targets_that_count(case, size, models):
    criterion, y, each, weight, is_sum = case
    figures = measure(Stacked(models), lambda o, t: criterion(o * size, t), (X, y))
    for member, model in enumerate(models):
        o = model(X).detach() * size
        q, own = weight(y), each(o, y)
        counted = q > 0
        n, wrong = int(counted.sum()), (o.argmax(1) != y)[counted].double()
        if is_sum:
            loss = (q * own).sum()
            spread = math.sqrt(n) * (q * own)[counted].std()
        else:
            loss = (q * own).sum() / q.sum()
            spread = math.sqrt(n / (n - 1)) * (q * (own - loss)).norm() / q.sum()
        error = wrong.mean()
        expected = [loss, error, spread, (error * (1 - error) / n).sqrt()]
        assert_close([figure[member] for figure in figures], expected, tolerance=1e-10)


def test_one_weight_for_all_is_none(models):
    plain, weighted = (
        measure(Stacked(models), nn.CrossEntropyLoss(weight), (X, Y))
        for weight in (None, torch.full((CLASSES,), 0.3, dtype=torch.float64))
    )
    assert_close(list(weighted), list(plain))
    assert_close(plain[2][0], nll(models[0](X).detach(), Y).std() / N**0.5)


def test_each_pixel_is_a_target():
    torch.manual_seed(4)
    models = [nn.Conv2d(2, CLASSES, 1, dtype=torch.float64) for _ in range(2)]
    x, y = torch.randn(6, 2, 5, 4, dtype=torch.float64), torch.randint(0, CLASSES, (6, 5, 4))
    y[0], y[1, :, 0] = -100, -100
    loss, error, spread, _ = measure(Stacked(models), nn.CrossEntropyLoss(), (x, y))
    for member, model in enumerate(models):
        o = model(x).detach()
        own = F.cross_entropy(o, y, reduction="none")
        counted = y != -100
        means = own[counted].mean()
        sums, counts = own.flatten(1).sum(1)[1:], counted.flatten(1).sum(1)[1:]
        assert_close(loss[member], means)
        assert_close(error[member], (o.argmax(1) != y)[counted].double().mean())
        expected = math.sqrt(5 / 4) * (sums - counts * means).norm() / counts.sum()
        assert_close(spread[member], expected)


POSITIVE = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("criterion", "is_sum"),
    [
        (lambda o, y: POSITIVE(o[:, 0], y.to(o.dtype)), False),
        (lambda o, y: F.softplus((1 - 2 * y) * o[:, 0]).sum(), True),
        (lambda o, y: F.relu(1 + (1 - 2 * y) * o[:, 0]).mean(), False),
    ],
    ids=["positive weight", "logistic sum", "hinge"],
)
def test_single_outputs(criterion, is_sum):
    model = nn.Linear(4, 1, dtype=torch.float64)
    y = (X[:, 0] > 0.3).long()
    loss, error, spread, error_se = measure(Stacked([model]), criterion, (X, y))
    own = torch.stack([criterion(model(X[i : i + 1]), y[i : i + 1]) for i in range(N)]).detach()
    wrong = ((model(X)[:, 0] > 0).long() != y).double()
    assert_close(loss[0], own.sum() if is_sum else own.mean())
    assert_close(spread[0], own.std() * N**0.5 if is_sum else own.std() / N**0.5)
    assert_close([error[0], error_se[0]], [wrong.mean(), (wrong.mean() * (1 - wrong.mean()) / N).sqrt()])


def test_the_sum_of_squares():
    model, y = nn.Linear(4, 2, dtype=torch.float64), torch.randn(N, 2, dtype=torch.float64)
    loss, error, spread, _ = measure(Stacked([model]), nn.MSELoss(reduction="sum"), (X, y))
    squares = (model(X) - y).square().sum(1).detach()
    assert_close([loss[0], spread[0]], [squares.sum(), squares.std() * N**0.5])
    assert_close(error[0], squares.sum().div(2 * N).sqrt())


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(reduction="none"), nn.MSELoss(reduction="none")], ids=repr)
def test_a_loss_for_each_example_is_refused(criterion):
    targets = Y if isinstance(criterion, nn.CrossEntropyLoss) else X[:, :CLASSES]
    for call in (
        lambda: strength_path(
            lambda: nn.Linear(4, CLASSES), L1(1.0), (X, targets), strengths=[0.1], criterion=criterion
        ),
        lambda: strength_max(nn.Linear(4, CLASSES), L1(1.0), (X, targets), criterion=criterion),
    ):
        with pytest.raises(
            ValueError, match=r"criterion must return one number, got a tensor of shape .*reduction='mean'"
        ):
            call()


@pytest.mark.parametrize("optimizer", [None, partial(torch.optim.Adam, lr=0.1)], ids=["to the minimum", "Adam"])
def test_a_path_with_ignored_targets_is_that_of_the_others(optimizer):
    ignored = ignoring(Y, -100)
    kept = ignored != -100
    paths = [
        strength_path(
            lambda: nn.Linear(4, CLASSES),
            L1(1.0),
            (x.float(), y),
            (x.float(), y),
            strengths=[0.05, 0.01],
            criterion=nn.CrossEntropyLoss(WEIGHT.float()),  # the solver computes in double precision
            optimizer=optimizer,
            epochs=None if optimizer is None else 5,
            verbose=False,
        )
        for x, y in ((X, ignored), (X[kept], Y[kept]))
    ]
    for ours, theirs in zip(*paths, strict=True):
        for name in ("train_loss", "valid_loss", "train_error", "valid_error"):
            assert tuple(getattr(ours, name)) == pytest.approx(tuple(getattr(theirs, name)), rel=1e-5)


def test_a_sum_over_the_examples_has_the_path_of_the_mean_at_as_many_times_the_strength():
    def path(criterion, strengths):
        return strength_path(
            lambda: nn.Linear(4, CLASSES),
            L1(1.0),
            (X, Y),
            (X, Y),
            strengths=strengths,
            criterion=criterion,
            verbose=False,
        )

    mean = path(nn.CrossEntropyLoss(), [0.05, 0.01])
    total = path(nn.CrossEntropyLoss(reduction="sum"), [0.05 * N, 0.01 * N])
    for ours, theirs in zip(total, mean, strict=True):
        assert ours.norms["weight"] == pytest.approx(theirs.norms["weight"], rel=1e-6)
        assert tuple(ours.valid_loss) == pytest.approx([N * figure for figure in theirs.valid_loss], rel=1e-6)
        assert ours.valid_error == pytest.approx(theirs.valid_error)


def test_each_point_is_as_near_to_its_minimum_as_its_own_strength_asks():
    y = X[:, :1] - 0.5 * X[:, 1:2] + 0.1 * X[:, 2:3].sin()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = strength_path(lambda: nn.Linear(4, 1), L1(1.0), (X, y), (X, y), count=20, ratio=1e-5, verbose=False)
    assert all(point.optimality <= 1e-6 * point.strength for point in path)


def masked_mean(o, y):
    kept = (y != -99).double()
    return ((o - y).square() * kept).sum() / kept.sum().clamp(min=1)


def tube(o, y):
    return ((o - y).abs() - 0.5).clamp(min=0).mean()


def short_or_long(o, y):
    return F.l1_loss(o, y) if (o - y).abs().max() > 1e3 else F.mse_loss(o, y)


REGRESSIONS = {  # the criterion, the number of outputs, and whether it ignores -99
    "mask": (masked_mean, 1, True),
    "mask, two outputs": (masked_mean, 2, True),
    "boolean mask": (lambda o, y: (o - y)[y != -99].square().mean(), 1, True),
    "boolean mask, two outputs": (lambda o, y: (o - y)[y != -99].square().mean(), 2, True),
    "an if by the targets": (lambda o, y: o.sum() if y.abs().max() > 1e3 else F.mse_loss(o, y), 2, False),
    "an if by the outputs": (short_or_long, 2, False),
    "none": (F.mse_loss, 2, False),
    "flat near the target": (tube, 1, False),
}


@pytest.mark.parametrize(("criterion", "width", "ignores"), REGRESSIONS.values(), ids=REGRESSIONS.keys())
def test_errors_of_a_regression_are_those_of_the_targets_that_count(criterion, width, ignores):
    torch.manual_seed(5)
    models = [nn.Linear(4, width, dtype=torch.float64) for _ in range(2)]
    y = X[:, :width] + 0.1
    counted = torch.ones_like(y, dtype=torch.bool)
    if ignores:
        counted[::6], counted[::4, 0] = False, False
        y[~counted] = -99
    loss, error, spread, error_se = measure(Stacked(models), criterion, (X, y))
    for member, model in enumerate(models):
        o = model(X).detach()
        squares = (o - y).square() * counted
        mean = squares.sum() / counted.sum()
        own, n = counted.any(1), int(counted.any(1).sum())
        off = (squares.sum(1) - counted.sum(1) * mean)[own]
        se = math.sqrt(n / (n - 1)) * off.norm() / counted.sum()
        assert_close([loss[member], error[member]], [criterion(o, y), mean.sqrt()])
        assert_close(error_se[member], se / (2 * mean.sqrt()))
        if criterion is not tube and width == 1:
            assert_close(spread[member], se)


@pytest.mark.parametrize("optimizer", [None, partial(torch.optim.Adam, lr=0.1)], ids=["to the minimum", "Adam"])
@pytest.mark.parametrize("name", ["mask", "boolean mask", "an if by the outputs"])
def test_a_regression_path_is_that_of_the_targets_that_count(name, optimizer):
    criterion, _, ignores = REGRESSIONS[name]
    y = X[:, :1] + 0.1
    kept = torch.arange(N) % 6 > 0 if ignores else torch.ones(N, dtype=torch.bool)
    holed = y.masked_fill(~kept[:, None], -99)
    ours, theirs = (
        strength_path(
            lambda: nn.Linear(4, 1),
            L1(1.0),
            (x.float(), t.float()),
            (x.float(), t.float()),
            strengths=[0.1, 0.01],
            criterion=chosen,
            optimizer=optimizer,
            epochs=None if optimizer is None else 5,
            verbose=False,
        )
        for x, t, chosen in ((X, holed, criterion), (X[kept], y[kept], F.mse_loss))
    )
    for our, their in zip(ours, theirs, strict=True):
        for figure in ("train_loss", "valid_loss", "train_error", "valid_error"):
            assert tuple(getattr(our, figure)) == pytest.approx(tuple(getattr(their, figure)), rel=1e-4)


def test_a_criterion_that_fails_by_itself_fails_with_its_own_words():
    def broken(o, y):
        raise RuntimeError("no such loss")

    with pytest.raises(RuntimeError, match=r"^no such loss$"):
        measure(Stacked([nn.Linear(4, 1, dtype=torch.float64)]), broken, (X, X[:, :1]))
