"""``train.solve``: the last linear layer in closed form, against scikit-learn, lstsq, and the gradient of the loss."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import nn

from experiments import config
from experiments.errors import UserError
from experiments.report import summarize
from experiments.running.study import run_study
from experiments.training.record import Record
from experiments.training.setup import set_up
from experiments.training.solving import solve
from tests.integration.studies import CPU, TREE, small
from torchreg import tuning

MSE = {"name": "MSELoss"}
TRAIN = {"solve": True, "epochs": 1, "batch_size": 30, "dtype": "float64", "loss": MSE}
MODEL = {"name": "mlp", "hidden": [40], "freeze": ["linear1.*"]}
SIZES = {"more images than features": 100, "fewer": 25, "as many": 40}
BIASES = {"intercept": ["linear1.*"], "none": ["linear1.*", "output.bias"]}


def study_of(strength=None, data=TREE["data"], train=TRAIN, model=MODEL, **changes):
    penalty = [] if strength is None else [{"penalty": "L2", "strength": strength}]
    changes = {"regularizers": penalty, **changes}
    return small(data=data, train=train, model=model, optimizer={"name": "SGD", "lr": 0.0}, **changes)


def solved(study):
    """The setup of the study's first run after its solution."""
    setup = set_up(study.runs[:1], CPU)
    solve(setup.model, setup.examples, setup.ridge)
    return setup


def features(setup):
    x = setup.examples.train.x
    return nn.Sequential(*list(setup.model)[:-1])(x).detach().double().numpy()


def targets(setup):
    y = setup.examples.train.y
    return (nn.functional.one_hot(y, 10).double() if y.ndim == 1 else y.double()).numpy()


@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("freeze", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_ridge_is_that_of_scikit_learn(size, freeze, strength):
    """The mean over n * k squares plus s / 2 * |w|^2 is the sum of squares plus s * n * k / 2 * |w|^2."""
    data = {**TREE["data"], "train_size": size}
    setup = solved(study_of(strength, data, model={**MODEL, "init": {"name": "normal_", "std": 0.2}, "freeze": freeze}))
    theirs = Ridge(alpha=strength * size * 10 / 2, fit_intercept="output.bias" not in freeze, solver="svd")
    theirs.fit(features(setup), targets(setup))
    np.testing.assert_allclose(setup.model.output.weight.detach(), theirs.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(setup.model.output.bias.detach(), theirs.intercept_ + np.zeros(10), atol=1e-9)


@pytest.mark.parametrize("strength", [None, 0.0])
@pytest.mark.parametrize("freeze", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("size", [25, 100])
def test_without_strength_it_is_the_solution_with_the_least_norm(size, freeze, strength):
    data = {**TREE["data"], "train_size": size}
    model = {**MODEL, "freeze": freeze, "init": {"name": "normal_", "std": 0.2}}
    setup = solved(study_of(strength, data, model=model))
    f, y = features(setup), targets(setup)
    if "output.bias" in freeze:
        expected = torch.linalg.pinv(torch.from_numpy(f)) @ torch.from_numpy(y)
        lstsq = torch.linalg.lstsq(torch.from_numpy(f), torch.from_numpy(y), driver="gelsd").solution
        torch.testing.assert_close(expected, lstsq)
    else:
        expected = torch.from_numpy(LinearRegression().fit(f, y).coef_.T)
    torch.testing.assert_close(setup.model.output.weight.detach().T, expected, rtol=1e-6, atol=1e-8)


class Half(nn.Module):
    """Half the squared distance, which is five times torch's mean over ten classes, for targets that are one-hot."""

    def forward(self, outputs, y):
        wanted = nn.functional.one_hot(y, outputs.shape[1]) if y.ndim == 1 else y
        return 0.5 * (outputs - wanted).square().sum(1).mean()


@pytest.mark.parametrize("strength", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("data", [TREE["data"], {"name": "diabetes"}], ids=lambda data: data["name"])
def test_the_gradient_of_the_loss_and_its_penalty_is_zero(data, strength):
    setup = solved(study_of(strength, data))
    x, y = setup.examples.train.x, setup.examples.train.y
    outputs = setup.model(x)
    loss = nn.functional.mse_loss(outputs, setup.examples.task.targets(y, outputs))
    assert abs(setup.examples.task.loss(outputs, setup.examples.task.targets(y, outputs)) - loss) < 1e-12
    (loss + setup.regularizers[0].value()).backward()
    for param in (setup.model.output.weight, setup.model.output.bias):
        assert param.grad.abs().max() < 1e-12


def test_a_multiple_of_the_squared_error_is_told_by_its_values():
    data = {"name": "diabetes"}
    loss = {"class": "tests.integration.test_solving:Half"}
    twice = solved(study_of(0.2, data, train={**TRAIN, "loss": loss})).model.output.weight
    torch.testing.assert_close(twice, solved(study_of(0.4, data)).model.output.weight)
    assert not torch.allclose(twice, solved(study_of(0.2, data)).model.output.weight)


@pytest.mark.parametrize("data", [{"name": "diabetes"}, TREE["data"]], ids=["regression", "classes"])
def test_hubers_loss_that_is_everywhere_a_squared_error_has_its_solution(data):
    loss = {"name": "HuberLoss", "delta": 100.0}
    ours, theirs = (solved(study_of(s, data, train={**TRAIN, "loss": name})) for s, name in ((0.1, loss), (0.2, MSE)))
    torch.testing.assert_close(ours.model.output.weight, theirs.model.output.weight)


def test_a_study_records_the_solution_and_its_penalty(tmp_path):
    study = study_of(arms=[{"name": "ridge", "strengths": [0.0, 0.1], "regularizers": [{"penalty": "L2"}]}])
    assert not run_study(study, tmp_path, CPU)
    for run in study.runs:
        record = Record(tmp_path / "runs" / run.folder, run)
        (row,) = record.history
        weights = torch.load(record.folder / "checkpoint.pt", weights_only=True)["model"]
        torch.testing.assert_close(weights["output.weight"], solved(study_at(study, run)).model.output.weight.detach())
        penalty = run.strength / 2 * weights["output.weight"].square().sum().item()
        assert row["penalty"] == {"L2": pytest.approx(penalty)}
        assert record.result["status"] == "done"


def study_at(study, run):
    return study.model_copy(update={"runs": (run,)})


def test_runs_that_solve_are_no_stack(tmp_path, capsys):
    study = study_of(seeds=[0, 1], train={**TRAIN, "stack": True})
    assert not run_study(study, tmp_path, CPU)
    assert "one after another: train.solve: " in capsys.readouterr().err


class Doubled(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return 2 * super().forward(x)


class OnlyConvolutions(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 10, 8), nn.Flatten())


HERE = "tests.integration.test_solving"
L2 = {"penalty": "L2", "strength": 0.1}
FAULTS = {
    "two epochs": ({"train": {**TRAIN, "epochs": 2}}, "train.epochs: must be 1 with train.solve, .* got 2"),
    "cross-entropy": ({"train": {**TRAIN, "loss": None}}, "train.loss: must be a squared error, such as MSELoss"),
    "another loss": ({"train": {**TRAIN, "loss": {"name": "HuberLoss"}}}, "train.loss: must be a squared error"),
    "Huber's, whose far side is met at the solution": (
        {"data": {"name": "diabetes"}, "train": {**TRAIN, "loss": {"name": "HuberLoss", "delta": 2.3}}},
        "train.loss: must be a squared error",
    ),
    "the same, smooth L1": (
        {"data": {"name": "diabetes"}, "train": {**TRAIN, "loss": {"name": "SmoothL1Loss", "beta": 2.3}}},
        "train.loss: must be a squared error",
    ),
    "clipping": ({"train": {**TRAIN, "clip_norm": 1.0}}, "train.clip_norm: acts in steps"),
    "averages": ({"train": {**TRAIN, "average": {"name": "ema"}}}, "train.average: acts in steps"),
    "a scheduler": ({"scheduler": {"name": "StepLR", "step_size": 1}}, "scheduler: acts in steps"),
    "decay": ({"optimizer": {"name": "SGD", "lr": 0.0, "weight_decay": 0.1}}, "optimizer.weight_decay: acts in steps"),
    "all is trained": (
        {"model": {"name": "mlp", "hidden": [4]}},
        r"train.solve: finds .* alone: .*'linear1.\*'",
    ),
    "it is frozen": ({"model": {**MODEL, "freeze": "*.weight"}}, "train.solve: finds the weights of the last linear"),
    "dropout": ({"model": {**MODEL, "dropout": {"name": "Dropout", "p": 0.5}}}, "train.solve: .* same in training"),
    "not the end": ({"model": {"class": f"{HERE}:Doubled"}}, "train.solve: the outputs of the last linear layer must"),
    "no linear layer": ({"model": {"class": f"{HERE}:OnlyConvolutions"}}, "train.solve: needs a model that ends in"),
    "L1": ({"regularizers": [{"penalty": "L1", "strength": 0.1}]}, "regularizers.0: must be an L2 of mode 'loss'"),
    "a mode": ({"regularizers": [{**L2, "mode": "prox"}]}, "regularizers.0: must be an L2 of mode 'loss'"),
    "a constraint": ({"regularizers": [{"penalty": "NonNegative"}]}, "regularizers.0: must be an L2 of mode 'loss'"),
    "on the bias too": (
        {"regularizers": [{**L2, "select": "everything"}]},
        "train.solve: takes one regularizer",
    ),
}


@pytest.mark.parametrize(("changes", "line"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_solved_is_one_line(changes, line, tmp_path):
    changes = dict(changes)
    train = {key: value for key, value in changes.pop("train", TRAIN).items() if value is not None}
    model = changes.pop("model", MODEL)
    optimizer = changes.pop("optimizer", {"name": "SGD", "lr": 0.0})
    study = small(train=train, model=model, optimizer=optimizer, **changes)
    with pytest.raises(UserError, match=rf"^arms\[none\]\.{line}[^\n]*$"):
        run_study(study, tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


# -- the published studies ------------------------------------------------------------------------------------------

PUBLISHED = "configs/published"


@pytest.mark.parametrize("name", ["decoupling", "double_descent", "omnigrok"])
def test_a_published_study_runs_on_small_data(name, tmp_path):
    """With digits in the place of MNIST."""
    path = Path(__file__).parents[2] / PUBLISHED / f"{name}.toml"
    tree = config.tree_of(path, ["seeds=[0, 1]", "train.epochs=1", "train.batch_size=10", "model.hidden=[20]"])
    tree["data"] = {**tree["data"], "name": "digits", "valid_size": 50, "train_size": 20}
    del tree["published"]  # which names arms that are left out here
    for arm in tree["arms"]:
        arm.get("data", {}).update(train_size=20)
        arm.get("train", {}).pop("epochs", None)
        arm["strengths"] = arm["strengths"][:2] if "strengths" in arm else None
    tree["arms"] = [{key: value for key, value in arm.items() if value is not None} for arm in tree["arms"][:3]]
    study = config.resolve(tree)
    assert not run_study(study, tmp_path, CPU)
    results = [Record(tmp_path / "runs" / run.folder, run).result for run in study.runs]
    assert {result["status"] for result in results} == {"done"}


def test_double_descent_has_its_peak_where_images_are_as_many_as_features(tmp_path):
    errors = {}
    for size in (10, 40, 300):
        study = study_of(data={"name": "digits", "train_size": size}, model={**MODEL, "hidden": [40]}, seeds=[0, 1, 2])
        assert not run_study(study, tmp_path / str(size), CPU)
        found = [Record(tmp_path / str(size) / "runs" / run.folder, run).result["test_error"] for run in study.runs]
        errors[size] = sum(found) / 3
    assert errors[10] < errors[40] - 0.1
    assert errors[300] < errors[40] - 0.3


@pytest.mark.parametrize("freeze", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_leave_one_out_is_that_of_refitting_without_each_image(size, freeze):
    """The chosen strength has the lowest error of scikit-learn's Ridge on the image that was left out, near it."""
    train = {**TRAIN, "solve": "leave_one_out"}
    model = {**MODEL, "init": {"name": "normal_", "std": 0.2}, "freeze": freeze}
    data = {**TREE["data"], "train_size": size}
    setup = solved(study_of(data=data, train=train, model=model, regularizers=[{"penalty": "L2"}]))
    x, y, fits = features(setup), targets(setup), "output.bias" not in freeze

    def left_out(strength):
        total = 0.0
        for i in range(size):
            rest = np.arange(size) != i
            ridge = Ridge(alpha=strength * size * 10 / 2, fit_intercept=fits, solver="svd").fit(x[rest], y[rest])
            total += np.square(ridge.predict(x[i : i + 1]) - y[i]).sum()
        return total

    chosen = setup.ridge.strength
    assert left_out(chosen) < 1.01 * min(left_out(chosen * factor) for factor in (0.1, 0.3, 3.0, 10.0))
    ridge = Ridge(alpha=chosen * size * 10 / 2, fit_intercept=fits, solver="svd").fit(x, y)
    np.testing.assert_allclose(setup.model.output.weight.detach(), ridge.coef_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("criterion", ["leave_one_out", "generalized_cv", "evidence"])
def test_a_chosen_strength_is_that_of_torchreg_and_stands_in_the_record(criterion, tmp_path):
    study = study_of(train={**TRAIN, "solve": criterion}, regularizers=[{"penalty": "L2"}])
    setup = solved(study)
    head = nn.Linear(40, 10, dtype=torch.float64)
    path = tuning.ridge_path(head, (torch.from_numpy(features(setup)), torch.from_numpy(targets(setup))))
    assert setup.ridge.strength == pytest.approx(getattr(tuning, criterion)(path).strength)
    run_study(study, tmp_path, CPU)
    result = Record(tmp_path / "runs" / study.runs[0].folder).result
    assert result["strengths"] == {"L2": pytest.approx(setup.ridge.strength)}
    square = float(setup.model.output.weight.detach().square().sum())
    assert result["penalty"]["L2"] == pytest.approx(setup.ridge.strength / 2 * square)
    (cell,) = summarize(tmp_path).cells
    assert cell.strength == pytest.approx(setup.ridge.strength)


@pytest.mark.parametrize(
    ("regularizers", "got"), [([{"penalty": "L2", "strength": 0.1}], "one of strength 0.1"), ([], "none")]
)
def test_a_strength_is_either_given_or_chosen(regularizers, got):
    study = study_of(train={**TRAIN, "solve": "leave_one_out"}, regularizers=regularizers)
    with pytest.raises(UserError, match=f"train.solve: 'leave_one_out' chooses the strength .* got {got}"):
        set_up(study.runs[:1], CPU)
