"""The gradient of a step in a study: of several batches, clipped, and in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.config import resolve
from experiments.running.study import run_study
from tests.integration.plain import finished, only, sgd, trained
from tests.integration.studies import CPU, TREE, history, outcome
from tests.integration.test_stacks import compare

DOUBLE = {"dtype": "float64"}
WEIGHTS = [1.0, 2.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 3.0, 1.0]

# -- accumulation -------------------------------------------------------------------------------------------------

LOSSES = {
    "cross-entropy": None,
    "weights of classes": {"name": "CrossEntropyLoss", "weight": WEIGHTS, "label_smoothing": 0.1},
    "a class ignored": {"name": "CrossEntropyLoss", "ignore_index": 3},
    "a class ignored, weights": {"name": "CrossEntropyLoss", "ignore_index": 4, "weight": WEIGHTS},
    "weights of classes, NLL": {"class": "tests.integration.test_gradients:Weighted"},
    "MSE": {"name": "MSELoss"},
}
REGULARIZED = {
    "none": [],
    **{mode: [{"penalty": "L2", "strength": 0.5, "mode": mode}] for mode in ("loss", "grad", "decoupled", "prox")},
    "scheduled": [
        {"penalty": "L1", "strength": 0.1, "mode": mode, "schedule": {"name": "linear", "steps": 8, "start": 0.0}}
        for mode in ("loss", "grad")
    ],
}


class Weighted(nn.NLLLoss):
    def __init__(self):
        super().__init__(torch.tensor(WEIGHTS))

    def forward(self, outputs, y):
        return super().forward(outputs.log_softmax(-1), y)


def halves(train_size=95, **changes):
    """The same study with the batches of a step as one, and as three of which the last ones are smaller."""
    data = {**TREE["data"], "train_size": train_size}
    train = changes.pop("train", {})
    for size, accumulate in ((30, 1), (10, 3)):
        yield sgd(train={**DOUBLE, "batch_size": size, "accumulate": accumulate, **train}, data=data, **changes)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for (rows, _, weights), (other_rows, _, others) in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(weights, others, rtol=1e-9, atol=1e-11)
        for row, other in zip(rows, other_rows, strict=True):
            assert row["test_loss"] == pytest.approx(other["test_loss"], rel=1e-6)


CASES = [(loss, "none") for loss in LOSSES] + [("cross-entropy", mode) for mode in REGULARIZED if mode != "none"]


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize(("loss", "mode"), CASES)
def test_the_batches_of_a_step_are_as_one(loss, mode, stack, tmp_path):
    loss, regularizers = LOSSES[loss], REGULARIZED[mode]
    train = {"stack": stack, **({} if loss is None else {"loss": loss})}
    whole, parts = halves(train=train, seeds=[0, 1], regularizers=regularizers)
    assert_equal(finished(parts, tmp_path / "parts"), finished(whole, tmp_path / "whole"))


@pytest.mark.parametrize("train_size", [100, 91, 61, 30, 7])
def test_the_last_step_of_an_epoch_has_what_is_left(train_size, tmp_path):
    whole, parts = halves(train_size)
    assert_equal(finished(parts, tmp_path / "parts"), finished(whole, tmp_path / "whole"))


COUNTED = {
    "a schedule of steps": {"scheduler": {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 12, "interval": "step"}},
    "a share of zeros": {
        "optimizer": {"name": "ProxSGD", "lr": 0.05, "penalty": {"name": "L1", "strength": 1e-2}},
        "sparsity": {"target": 0.5},
    },
    "an average": {"train": {"average": {"name": "ema", "decay": 0.7}}},
    "clipping": {"train": {"clip_norm": 0.1}},
    "clipping of elements": {"train": {"clip_value": 1e-3}},
}


@pytest.mark.parametrize("changes", COUNTED.values(), ids=COUNTED)
def test_a_step_counts_once_for_what_counts_steps(changes, tmp_path):
    changes = dict(changes)
    arm = {"name": "arm", **changes}
    whole, parts = halves(arms=[arm])
    assert_equal(finished(parts, tmp_path / "parts"), finished(whole, tmp_path / "whole"))


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"ignore_index": 3}, {"weight": [0.0, 1, 1, 0.0, 1, 0.1, 1, 1, 0.0, 10]}, {"ignore_index": 0, "weight": WEIGHTS}],
    ids=["ignored", "weights of 0", "both"],
)
def test_a_batch_whose_examples_count_nothing_adds_nothing(options, stack, tmp_path):
    train = {**DOUBLE, "loss": {"name": "CrossEntropyLoss", **options}, "stack": stack}
    whole, parts = (
        sgd(train={**train, "batch_size": size, "accumulate": accumulate}, seeds=[0, 1])
        for size, accumulate in ((10, 1), (1, 10))
    )
    assert_equal(finished(parts, tmp_path / "parts"), finished(whole, tmp_path / "whole"))


@pytest.mark.torchvision
def test_mixed_images_count_alike(tmp_path):
    data = {**TREE["data"], "train_size": 95, "mix": {"name": "MixUp", "alpha": 0.4}}
    loss = {"name": "CrossEntropyLoss", "weight": WEIGHTS}
    rows = history(sgd(train={"loss": loss, "batch_size": 10, "accumulate": 3}, data=data), tmp_path)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


# -- clipping -----------------------------------------------------------------------------------------------------

CLIPPED = {
    "by the norm": ({"clip_norm": 0.3}, lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.3)),
    "by the value": ({"clip_value": 0.01}, lambda net: nn.utils.clip_grad_value_(net.parameters(), 0.01)),
    "by both": (
        {"clip_norm": 0.3, "clip_value": 0.02},
        lambda net: (
            nn.utils.clip_grad_norm_(net.parameters(), 0.3),
            nn.utils.clip_grad_value_(net.parameters(), 0.02),
        ),
    ),
}


@pytest.mark.parametrize(("train", "clip"), CLIPPED.values(), ids=CLIPPED)
def test_a_gradient_is_clipped_as_torch_does_it(train, clip, tmp_path):
    study = sgd(train=train)
    _, _, weights = only(study, tmp_path)
    net = trained(study.runs[0], F.cross_entropy, clip)
    torch.testing.assert_close(weights, net.state_dict(), rtol=1e-5, atol=1e-7)
    unclipped = trained(study.runs[0], F.cross_entropy)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(net.parameters(), unclipped.parameters(), strict=True))


def penalized(net, strength):
    return strength / 2 * sum((w**2).sum() for name, w in net.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("mode", ["loss", "grad"])
def test_a_penalty_in_the_loss_is_clipped_and_one_in_the_step_is_not(mode, tmp_path):
    strength = 2.0
    regularizers = [{"penalty": "L2", "strength": strength, "mode": mode}]
    study = sgd(train={"clip_norm": 0.3}, regularizers=regularizers)

    def clip(net):
        if mode == "loss":
            penalized(net, strength).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        if mode == "grad":
            penalized(net, strength).backward()

    _, _, weights = only(study, tmp_path)
    net = trained(study.runs[0], F.cross_entropy, clip)
    torch.testing.assert_close(weights, net.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("train", [train for train, _ in CLIPPED.values()], ids=CLIPPED)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_each_member_of_a_stack_has_its_own_norm(train, model, tmp_path, capsys):
    models = {"mlp": {"name": "mlp", "hidden": [16]}, "cnn": {"name": "cnn", "channels": [2, 4], "hidden": 8}}
    regularizers = [{"penalty": "L2", "mode": "loss"}]  # the strengths of compare(): most clip one of the members only
    compare(tmp_path, capsys, train=train, model=models[model], regularizers=regularizers)


def test_a_stack_clips_one_member_and_leaves_another_alone(tmp_path):
    arm = {"name": "arm", "strengths": [0.0, 300.0], "regularizers": [{"penalty": "L2", "mode": "loss"}]}
    train = {"stack": True, "epochs": 1, "clip_norm": 40.0}
    clipped = finished(sgd([arm], train), tmp_path / "clipped")
    unclipped = finished(sgd([arm], {**train, "clip_norm": 1e9}), tmp_path / "unclipped")
    assert all("stack" in result for _, result, _ in clipped.values())
    same = {
        name: all(torch.equal(w, unclipped[name][2][key]) for key, w in weights.items())
        for name, (_, _, weights) in clipped.items()
    }
    assert same == {"arm@0/seed0": True, "arm@300/seed0": False}


def test_half_precision_is_clipped_too(tmp_path):
    rows = {}
    for name, train in {"all": {"clip_norm": 1e-12}, "none": {}}.items():
        rows[name] = history(sgd(train={"amp": True, **train}), tmp_path / name)
    assert rows["all"][0]["train_loss"] == pytest.approx(rows["all"][-1]["train_loss"], abs=1e-6)
    assert rows["none"][-1]["train_loss"] < rows["none"][0]["train_loss"]


# -- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["digits", "diabetes"])
def test_double_precision_is_that_of_the_same_weights(data, tmp_path):
    settings = TREE["data"] if data == "digits" else {"name": data}
    study = sgd(train=DOUBLE, data=settings)
    before = torch.get_default_dtype()
    _, result, weights = only(study, tmp_path / "double")
    assert torch.get_default_dtype() == before == torch.float32
    assert {value.dtype for value in weights.values()} == {torch.float64}
    net = trained(study.runs[0], F.cross_entropy if data == "digits" else F.mse_loss, net=net_in_double(study.runs[0]))
    torch.testing.assert_close(weights, net.state_dict(), rtol=1e-10, atol=1e-12)
    single = outcome(sgd(data=settings), tmp_path / "single")
    assert result["test_loss"] == pytest.approx(single["test_loss"], rel=1e-3)
    assert result["sha256"] != single["sha256"]


def net_in_double(run):
    from tests.integration.plain import parts

    return parts(run)[1].double()


def test_double_precision_in_a_stack_is_alike_to_its_own_rounding(tmp_path):
    made = {}
    model = {"name": "mlp", "hidden": [16], "dropout": {"name": "Dropout", "p": 0.5}}
    arm = {"name": "arm", "strengths": [0.0, 0.1], "regularizers": [{"penalty": "L1", "mode": "prox"}]}
    for stack in (True, False):
        study = sgd([arm], {**DOUBLE, "stack": stack}, model=model, seeds=[0, 1])
        made[stack] = finished(study, tmp_path / str(stack))
    assert all("stack" in result for _, result, _ in made[True].values())
    assert_equal(made[True], made[False])


BAD = {
    "another dtype": ({"dtype": "float16"}, "train.dtype: must be 'float32' or 'float64', got 'float16'"),
    "half and double": ({"amp": True, "dtype": "float64"}, "amp mixes half with single precision: remove it, or"),
    "no batch": ({"accumulate": 0}, "train.accumulate: must be greater than or equal to 1, got 0"),
    "half a batch": ({"accumulate": 1.5}, "train.accumulate: "),
    "no norm": ({"clip_norm": 0.0}, "train.clip_norm: must be greater than 0, got 0.0"),
    "a negative value": ({"clip_value": -1.0}, "train.clip_value: must be greater than 0, got -1.0"),
}


@pytest.mark.parametrize(("train", "line"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_one_line(train, line, tmp_path):
    with pytest.raises(Exception, match=r"^train") as error:
        run_study(resolve({**TREE, "train": {**TREE["train"], **train}}), tmp_path / "out", CPU)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
