"""A penalty on outputs: its number is the hand-written one's, and it is never stale."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.helpers import assert_bit_equal, assert_close, make_data, make_model
from tests.unit.recording import (
    PENALTY,
    Block,
    formula,
    gradients,
)
from torchreg import L1, L2, KLSparsity, Regularizer
from torchreg.regularizer.activity import ActivityRegularizer

# -- the number ---------------------------------------------------------------------------------------------------


def test_value_and_gradient_are_those_of_the_loss_written_by_hand():
    model, (x, y) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    ours = gradients(model, F.mse_loss(model(x), y) + activity.value())
    theirs = gradients(model, F.mse_loss(model(x), y) + formula(model[:2](x)))
    assert_close(ours, theirs)
    model(x)
    assert_close(activity.value(), formula(model[:2](x)))
    assert_close(sum(activity.terms().values()), activity.value())
    assert activity.terms().keys() == {"L1", "L2"}


def test_the_value_does_not_depend_on_how_often_the_batch_is_repeated():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY + KLSparsity(0.2, squash="sigmoid"), "1")
    model(x)
    once = activity.value()
    model(torch.cat([x, x, x]))
    assert_close(activity.value(), once)


def test_micro_batches_add_up_to_the_whole_batch():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    model(x)
    whole = gradients(model, activity.value())
    model.zero_grad()
    for part in x.chunk(4):
        model(part)
        (activity.value() / 4).backward()
    assert_close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, whole)


def test_every_call_of_a_module_counts_with_its_own_batch_size():
    model, (x, _) = Block(lambda layer, x: layer(x) + layer(x[:2]).sum()), make_data()
    activity = ActivityRegularizer(model, PENALTY, ["shared", "other"])
    model(x)
    first = model.shared(x)
    second = model.shared(first)
    expected = sum(map(formula, (first, second, model.other(second), model.other(second[:2]))))
    assert_close(activity.value(), expected)


def test_a_tensor_that_two_chosen_modules_put_out_counts_once():
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.Identity()), nn.Linear(4, 2)).double()
    x, _ = make_data()
    activity = ActivityRegularizer(model, PENALTY, ["0", "0.*"])
    model(x)
    assert_close(activity.value(), formula(model[0](x)))


@pytest.mark.parametrize(
    ("module", "taken"),
    [
        (nn.LSTM(6, 4, batch_first=True), lambda output: output[0]),
        (nn.MultiheadAttention(6, 2, batch_first=True), lambda output: output[0]),
    ],
    ids=["LSTM", "attention"],
)
def test_of_several_outputs_the_first_counts(module, taken):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module.double()

        def forward(self, x):
            return self.inner(*[x] * (3 if isinstance(module, nn.MultiheadAttention) else 1))

    x = torch.randn(5, 7, 6, dtype=torch.float64)
    model = Model()
    activity = ActivityRegularizer(model, PENALTY, "inner")
    assert_close(activity.value(), torch.zeros(()))
    expected = formula(taken(model(x)))
    assert_close(activity.value(), expected)


class Named(nn.Module):
    def forward(self, x):
        return {"index": x.argmax(1), "hidden": [2 * x, 3 * x]}


def test_of_a_mapping_the_first_floating_point_tensor_counts():
    model, (x, _) = Named(), make_data()
    activity = ActivityRegularizer(model, PENALTY)
    model(x)
    assert_close(activity.value(), formula(2 * x))


def test_the_batch_may_be_another_dimension():
    model, x = nn.LSTM(6, 4).double(), torch.randn(7, 5, 6, dtype=torch.float64)
    activity = ActivityRegularizer(model, KLSparsity(0.2, squash="sigmoid"), batch_dim=1)
    output = model(x)[0].transpose(0, 1)
    assert_close(activity.value(), KLSparsity(0.2, squash="sigmoid").value(output) / 5)


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5, dtype=torch.float64)], ids=["number", "tensor"])
def test_the_scale_multiplies_the_value(scale):
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    model(x)
    before = activity.value()
    activity.scale = scale
    assert_close(activity.value(), before / 2)


def test_half_precision_outputs_are_summed_in_single_precision():
    model = nn.Linear(4, 4).half()
    with torch.no_grad():
        model.weight.copy_(1000 * torch.eye(4))
        model.bias.zero_()
    activity = ActivityRegularizer(model, L1(1.0))
    model(torch.ones(100, 4, dtype=torch.float16))
    assert_close(activity.value(), torch.tensor(4000.0))


def test_complex_outputs_are_penalized_by_magnitude():
    model, x = nn.Linear(6, 4, dtype=torch.complex128), torch.randn(5, 6, dtype=torch.complex128)
    activity = ActivityRegularizer(model, L1(0.3))
    output = model(x)
    assert_close(activity.value(), 0.3 * output.abs().sum() / 5)


def test_an_empty_batch_costs_nothing():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY + KLSparsity(1.0, squash="sigmoid"), "1")
    model(x[:0])
    assert_close(activity.value().item(), 0.0)


# -- what is recorded ---------------------------------------------------------------------------------------------


def test_nothing_is_recorded_in_evaluation_or_without_gradients():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    for context in (torch.no_grad(), torch.inference_mode()):
        model(x)
        assert activity.value() > 0
        with context:
            model(x)
        assert_close(activity.value(), torch.zeros(()))
        assert activity.terms() == {}
    model(x)
    model.eval()(x)
    assert_close(activity.value(), torch.zeros(()))


def test_the_criterion_adds_the_penalty_in_training_mode_only():
    model, (x, y) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    criterion = activity.penalize(nn.MSELoss())
    assert_close(criterion(model(x), y), F.mse_loss(model(x), y) + formula(model[:2](x)))
    model.eval()
    assert_bit_equal(criterion(model(x), y), F.mse_loss(model(x), y))
    assert list(criterion.parameters()) == []


def test_the_criterion_stacks_on_that_of_a_regularizer_of_weights():
    model, (x, y) = make_model(), make_data()
    activity, weights = ActivityRegularizer(model, PENALTY, "1"), Regularizer(model, L2(0.1))
    criterion = activity.penalize(weights.penalize(nn.MSELoss()))
    assert_close(criterion(model(x), y), F.mse_loss(model(x), y) + formula(model[:2](x)) + weights.value())


def test_forward_passes_without_a_backward_pass_do_not_pile_up():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    outputs = [weakref.ref(model[1](model[0](x)))]  # past the model: not recorded at all
    model[1].register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))
    for _ in range(3):
        model(x)
    assert_close([output() is None for output in outputs], [True, True, True, False])
    activity.value()
    with torch.no_grad():
        model(x)
    assert all(output() is None for output in outputs)


def test_removal_forgets_the_last_pass():
    model, (x, _) = make_model(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "1")
    outputs = []
    model[1].register_forward_hook(lambda module, args, output: outputs.append(weakref.ref(output)))
    model(x)
    activity.remove()
    assert outputs[0]() is None
    assert_close(activity.value(), torch.zeros(()))


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_pass_that_raises_halfway_is_forgotten_by_the_next(error):
    failing = True

    def after(layer, x):
        if failing:
            raise error
        return layer(x)

    model, (x, _) = Block(after), make_data()
    activity = ActivityRegularizer(model, PENALTY, "shared")
    for _ in range(3):
        with pytest.raises(error):
            model(x)
    if error is KeyError:
        before = activity.value()
        model.shared(x)  # past the model, so not a part of any pass
        assert_close(activity.value(), before)
    failing = False
    for _ in range(2):
        model(x)
        first = model.shared(x)
        assert_close(activity.value(), formula(first) + formula(model.shared(first)))


def test_a_model_that_calls_itself_is_one_pass():
    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6, dtype=torch.float64)

        def forward(self, x, depth=2):
            return self.layer(x if depth == 0 else self(self.layer(x), depth - 1))

    model, (x, _) = Recursive(), make_data()
    activity = ActivityRegularizer(model, PENALTY, "layer")
    for _ in range(2):
        model(x)
        steps = [x]
        for _ in range(6):
            steps.append(model.layer(steps[-1]))
        assert_close(activity.value(), sum(map(formula, steps[1:7])) - formula(steps[6]))


def test_what_checkpointing_computes_again_does_not_count():
    (x, _) = make_data()
    plain, frugal = Block(), Block(lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    frugal.load_state_dict(plain.state_dict())
    ours, theirs = ActivityRegularizer(frugal, PENALTY, "*"), ActivityRegularizer(plain, PENALTY, "*")
    for model in (plain, frugal):
        model(x)
    value = theirs.value()
    assert_close(gradients(frugal, ours.value()), gradients(plain, value))
    assert_close(ours.value(), value)


def test_an_output_changed_in_place_is_refused_not_mistaken():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True)).double()
    x, _ = make_data()
    activity = ActivityRegularizer(model, PENALTY, "0")
    model(x)
    with pytest.raises(ValueError, match="the output of '0' must not be changed in place by a later operation"):
        activity.value()
    activity = ActivityRegularizer(model, PENALTY, "1")
    model(x)
    assert_close(activity.value(), formula(model(x)))
