"""A model that changes after its regularizer was made, and a copy of it that is trained instead."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.cases import each_step_mode
from torchreg import L1, L1SP, L2, L2SP, ActivityRegularizer, Regularizer
from torchreg.schedules import linear


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))


def tied():
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["table"].weight
    return model


def shared():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def replaced_while_frozen(model):
    model[0] = nn.Linear(4, 4)


def untied(model):
    model["head"].weight = nn.Parameter(torch.full((5, 4), 9.0))


def unshared(model):
    model[2] = nn.Linear(4, 4)


def added(model):
    model.append(nn.Linear(4, 2))


def added_deep_inside(model):
    model[2].append(nn.Linear(4, 4))


def a_layer_instead_of_an_activation(model):
    model[1] = nn.Linear(4, 4)


def a_parameter(model):
    model[2].register_parameter("mixing", nn.Parameter(torch.ones(3, 3)))


def an_empty_place_filled(model):
    model[1].register_parameter("kernel", nn.Parameter(torch.ones(3, 3)))


CHANGES = [
    (network, replaced_while_frozen),
    (tied, untied),
    (shared, unshared),
    (network, added),
    (network, added_deep_inside),
    (network, a_layer_instead_of_an_activation),
    (network, a_parameter),
    (network, an_empty_place_filled),
]
each_change = pytest.mark.parametrize(("make", "change"), CHANGES, ids=lambda it: it.__name__)


def half_squares(model):
    return sum(param.square().sum().item() for param in model.parameters() if param.ndim > 1) / 2


@each_change
def test_new_parameters_are_penalized_from_then_on(make, change):
    model = make()
    if change is replaced_while_frozen:
        model[0].requires_grad_(False)
    regularizer = Regularizer(model, L2(1.0))
    assert regularizer.value().item() <= half_squares(model)
    change(model)
    assert regularizer.value().item() == pytest.approx(half_squares(model))
    assert regularizer.terms()["L2"].item() == pytest.approx(half_squares(model))
    names = {entry.name for entry in Regularizer(model, L2(1.0)).entries if entry.is_penalized}
    assert {entry.name for entry in regularizer.entries if entry.is_penalized} == names


@each_change
@each_step_mode
def test_steps_penalize_new_parameters_as_a_new_regularizer_does(make, change, mode):
    def trained(late):
        torch.manual_seed(0)
        model = make()
        if change is replaced_while_frozen:
            model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if not late:
            Regularizer(model, L1(0.3), mode=mode).attach(optimizer)
        held = set(model.parameters())
        torch.manual_seed(1)
        change(model)
        optimizer.add_param_group({"params": [p for p in model.parameters() if p not in held]})
        if late:
            Regularizer(model, L1(0.3), mode=mode).attach(optimizer)
        for _ in range(2):
            for param in model.parameters():
                param.grad = torch.ones_like(param) if param.requires_grad else None
            optimizer.step()
        return list(model.parameters())

    for ours, theirs in zip(trained(late=False), trained(late=True), strict=True):
        assert torch.equal(ours, theirs)


def test_parameters_that_no_optimizer_holds_are_named_once():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L2(1.0), mode="grad").attach(optimizer)
    model.append(nn.LayerNorm(4))
    with warnings.catch_warnings(action="error"):
        optimizer.step()
    added(model)
    with pytest.warns(UserWarning, match=r"4\.weight came into the model .* SGD does not hold .* add_param_group"):
        optimizer.step()
    with warnings.catch_warnings(action="error"):
        optimizer.step()


def test_a_new_group_that_would_decay_twice_is_refused():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    Regularizer(model, L2(1.0), mode="grad").attach(optimizer)
    added(model)
    optimizer.add_param_group({"params": model[3].parameters(), "weight_decay": 0.1})
    with pytest.raises(ValueError, match=r"3\.weight would decay twice"):
        optimizer.step()


@pytest.mark.parametrize("penalty", [L2SP(2.0), L1SP(1.0)])
def test_each_weight_keeps_its_own_reference(penalty):
    model = network()
    regularizer = Regularizer(model, penalty)
    with torch.no_grad():
        model[0].weight += 1.0
    added(model)
    assert regularizer.value().item() == pytest.approx(16.0)
    with torch.no_grad():
        model[3].weight += 1.0
    assert regularizer.value().item() == pytest.approx(24.0)


def test_a_scale_for_each_name_has_to_name_the_new_ones():
    model = network()
    regularizer = Regularizer(model, L2(1.0))
    regularizer.scale = {"0.weight": 1.0, "2.0.weight": 2.0}
    added(model)
    with pytest.raises(ValueError, match=r"scale must name each penalized parameter.*3\.weight"):
        regularizer.value()


def test_a_saved_regularizer_follows_its_model_if_its_selector_was_saved():
    model = network()
    for select, is_saved in ((lambda info: info.param.ndim > 1, False), (is_matrix, True)):
        twin, its = pickle.loads(pickle.dumps((model, Regularizer(model, L2(1.0), select=select))))
        assert its.value().item() == pytest.approx(half_squares(twin))
        added(twin)
        if is_saved:
            assert its.value().item() == pytest.approx(half_squares(twin))
        else:
            with pytest.raises(ValueError, match=r"3\.weight, 3\.bias came into the model, and the selector was not"):
                its.value()


def is_matrix(info):
    return info.param.ndim > 1


# -- copies -----------------------------------------------------------------------------------------------------------


@each_step_mode
def test_attaching_to_the_optimizer_of_a_copy_is_refused(mode):
    model = network()
    regularizer = Regularizer(model, L1(1.0), mode=mode)
    optimizer = torch.optim.Adam(copy.deepcopy(model).parameters())
    with pytest.raises(ValueError, match=r"does not hold 0\.weight, 2\.0\.weight: Adam trains another model.*copy"):
        regularizer.attach(optimizer)


def test_a_schedule_of_a_loss_does_not_follow_the_optimizer_of_a_copy():
    model = network()
    regularizer = Regularizer(model, L1(1.0), schedule=linear(10, start=0.0, end=1.0))
    with pytest.raises(ValueError, match=r"Adam must train the regularized model.*0\.weight.*deepcopy"):
        regularizer.attach(torch.optim.Adam(copy.deepcopy(model).parameters()))
    regularizer.attach(torch.optim.Adam([nn.Parameter(torch.ones(7))]))  # of another model, whose steps it counts
    regularizer.remove()
    regularizer.attach(torch.optim.Adam(model.parameters()))


@pytest.mark.parametrize(
    "make",
    [
        lambda model: Regularizer(model, L1(1.0)),
        lambda model: ActivityRegularizer(model, L1(1.0), modules=nn.Linear),
    ],
    ids=["of parameters", "of activities"],
)
def test_the_loss_of_a_copy_is_noticed_once(make):
    model = network()
    regularizer = make(model)
    criterion = regularizer.penalize(nn.MSELoss())
    trained, x = copy.deepcopy(model), torch.ones(2, 4)
    with pytest.warns(UserWarning, match=r"depends on another model, such as a copy, and not on the Sequential"):
        criterion(trained(x), x)
    with warnings.catch_warnings(action="error"):
        criterion(trained(x), x)


def frozen_but_the_last(model, x):
    model[0].requires_grad_(False)
    return model(x)


def checkpointed(model, x):
    return checkpoint(model, x.requires_grad_(), use_reentrant=True)


def after_another_network(model, x):
    return model(nn.Linear(4, 4)(x))


def of_a_smaller_network(model, x):
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))(x)


def of_no_network(model, x):
    return x


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "outputs", [frozen_but_the_last, checkpointed, after_another_network, of_a_smaller_network, of_no_network]
)
def test_other_losses_are_no_copies(outputs):
    model, x = network(), torch.ones(2, 4)
    Regularizer(model, L1(1.0)).penalize(nn.MSELoss())(outputs(model, x), torch.zeros(2, 4))
