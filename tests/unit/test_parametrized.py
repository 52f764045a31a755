"""Weights that a layer computes from stored tensors: the penalty is that of the weight the layer uses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from tests.unit.parametrizing import LowRank, Same, by, each_layer, inputs_of, linear, weight_of
from torchreg import L1, L2, L2SP, GroupLasso, Nuclear, Regularizer, Stacked, everything, in_modules, named
from torchreg.tuning import AutoStrength

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")


# -- value and gradients ------------------------------------------------------------------------------------------


PENALTIES = {  # with closed forms, of a matrix with a row for each output
    L2(0.3): lambda w: 0.15 * w.square().sum(),
    L1(0.3): lambda w: 0.3 * w.abs().sum(),
    GroupLasso(0.3): lambda w: 0.3 * w.shape[1] ** 0.5 * torch.linalg.vector_norm(w, dim=1).sum(),
    Nuclear(0.3): lambda w: 0.3 * torch.linalg.matrix_norm(w, "nuc"),
}


def matrix(model):
    weight = weight_of(model)
    return weight.transpose(0, 1).flatten(1) if isinstance(model[0], nn.ConvTranspose1d) else weight


def trained(make, step, steps=3, lr=0.05):
    """The state after some steps of Adam on a loss to which ``step(model, optimizer)`` adds."""
    torch.manual_seed(0)
    model = nn.Sequential(make())
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    extra = step(model, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(inputs_of(model)) - 1).square().mean()
        (loss + extra()).backward()
        optimizer.step()
    return model.state_dict()


@each_layer
def test_the_value_and_the_table_are_of_the_weight_that_the_layer_uses(make):
    model = nn.Sequential(make())
    for penalty, formula in PENALTIES.items():
        regularizer = Regularizer(model, penalty)
        (entry,) = [entry for entry in regularizer.entries if entry.is_penalized]
        assert (entry.name, entry.param.shape) == ("0.weight", model[0].weight.shape)
        assert regularizer.value().item() == pytest.approx(formula(matrix(model)).item())
        assert regularizer.terms()[penalty.label].item() == pytest.approx(regularizer.value().item())
        assert f"{penalty!r} (computed by " in repr(regularizer)


@each_layer
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_modes_loss_and_grad_train_as_autograd_of_the_sum_does(make, penalty):
    def oracle(model, optimizer):
        return lambda: PENALTIES[penalty](matrix(model))

    def loss(model, optimizer):
        return Regularizer(model, penalty).value

    def grad(model, optimizer):
        Regularizer(model, penalty, mode="grad").attach(optimizer)
        return lambda: 0.0

    expected = trained(make, oracle)
    for ours in (loss, grad):
        for name, value in trained(make, ours).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9, msg=f"{ours.__name__}: {name}")


@each_layer
def test_looking_at_the_weight_changes_nothing(make):
    model = nn.Sequential(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for mode in ("loss", "grad"):
        regularizer = Regularizer(model, L1(1.0), mode=mode)
        repr(regularizer), regularizer.value(), regularizer.terms()
    model[0].bias.grad = torch.zeros(4 if isinstance(model[0], nn.Linear) else 3).double()
    with regularizer.attach(optimizer):
        optimizer.step()  # with gradients of the bias alone
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_frozen_part_gets_no_gradient_and_a_frozen_weight_no_penalty():
    model = nn.Sequential(parametrizations.weight_norm(linear()))
    stored = model[0].parametrizations.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(1.0), mode="grad").attach(optimizer)
    stored.original0.requires_grad_(False)
    model(inputs_of(model)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert torch.equal(stored.original0, before["0.parametrizations.weight.original0"])
    assert not torch.equal(stored.original1, before["0.parametrizations.weight.original1"])
    stored.original1.requires_grad_(False)
    assert regularizer.value() == 0
    assert "- frozen" in repr(regularizer)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("scale", [1.0, {"0.weight": 3.0, "1.weight": 0.5}])
def test_the_gradient_in_a_step_has_the_scale_and_the_sign_of_the_objective(maximize, scale):
    model = nn.Sequential(parametrizations.weight_norm(linear()), linear())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, maximize=maximize)
    regularizer = Regularizer(model, L2(0.3), mode="grad").attach(optimizer)
    regularizer.scale = scale
    factors = scale if isinstance(scale, dict) else {"0.weight": scale, "1.weight": scale}
    value = sum(0.15 * factors[f"{i}.weight"] * model[i].weight.square().sum() for i in range(2))
    assert regularizer.value().item() == pytest.approx(value.item())
    params = [param for name, param in model.named_parameters() if "bias" not in name]
    expected = torch.autograd.grad(value, params)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param, slope in zip(params, expected, strict=True):
        torch.testing.assert_close(param.grad, -slope if maximize else slope)


def test_a_line_search_minimizes_the_penalized_loss():
    def trained_by(mode):
        torch.manual_seed(0)
        model = nn.Sequential(parametrizations.weight_norm(linear()))
        x, optimizer = inputs_of(model), torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
        regularizer = Regularizer(model, L2(0.3), mode=mode)
        if mode == "grad":
            regularizer.attach(optimizer)

        def closure():
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            if mode == "loss":
                loss = loss + regularizer.value()
            loss.backward()
            return loss

        optimizer.step(closure)
        return torch.cat([param.detach().flatten() for param in model.parameters()])

    torch.testing.assert_close(trained_by("grad"), trained_by("loss"))


def test_each_member_of_a_stack_has_its_own_weight():
    changes = parametrizations.weight_norm, weight_norm, by(Same)
    models = [nn.Sequential(*(change(nn.Linear(4, 4)) for change in changes)) for _ in range(3)]
    values = Regularizer(Stacked(models), GroupLasso(0.3)).value()
    expected = [sum(PENALTIES[GroupLasso(0.3)](layer.weight) for layer in model) for model in models]
    torch.testing.assert_close(values, torch.stack(expected))


def test_strengths_of_computed_weights_are_not_tuned():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 1)))
    regularizer = Regularizer(model, L2(1.0), mode="grad")
    with pytest.raises(ValueError, match=r"AutoStrength: .* 0\.weight are computed by parametrizations"):
        AutoStrength(regularizer, (torch.ones(2, 4), torch.ones(2, 1)), nn.MSELoss())


# -- the selection ------------------------------------------------------------------------------------------------


CHANGES = {
    "nothing": lambda layer: layer,
    "the identity": by(Same),
    "two steps": by(Same, Same),
    "weight norm": parametrizations.weight_norm,
    "older weight norm": weight_norm,
    "pruning": lambda layer: prune.random_unstructured(layer, "weight", 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_selection_is_that_of_the_layer(change):
    def chosen(**options):
        return {entry.name: entry.reason for entry in Regularizer(model, L2(1.0), **options).entries}

    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((3, 4)), nn.Conv1d(4, 4, 3), nn.Embedding(5, 4))
    before = (chosen(), chosen(select=in_modules(nn.Linear)), chosen(select=named("2.*")), chosen(select=everything))
    own = chosen(select=lambda info: info.param.ndim == 3 and isinstance(info.module, nn.Conv1d))
    for layer in model:
        change(layer)
    after = (chosen(), chosen(select=in_modules(nn.Linear)), chosen(select=named("2.*")), chosen(select=everything))
    assert after == before
    assert chosen(select=lambda info: info.param.ndim == 3 and isinstance(info.module, nn.Conv1d)).items() >= {
        (name, reason) for name, reason in own.items() if reason is None
    }


@pytest.mark.parametrize("change", [by(Same), lambda layer: prune.random_unstructured(layer, "weight", 1)])
def test_marks_are_seen_through_a_parametrization(change):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    model[0].weight._no_weight_decay = True
    model.no_weight_decay = lambda: {"1.weight"}
    for layer in model:
        change(layer)
    reasons = {entry.name: entry.reason for entry in Regularizer(model, L2(1.0)).entries if "weight" in entry.name}
    assert reasons == {"0.weight": "_no_weight_decay", "1.weight": "no_weight_decay()", "2.weight": None}


def test_parameters_of_a_parametrization_act_through_the_weight_and_can_be_chosen():
    model = nn.Sequential(by(LowRank)(linear()))
    part = "0.parametrizations.weight.0.a"
    reasons = {entry.name: entry.reason for entry in Regularizer(model, L2(1.0)).entries}
    assert reasons[part] == "acts through 0.weight"
    regularizer = Regularizer(model, L2(1.0), mode="prox", select=lambda info: info.name == part)
    assert [entry.name for entry in regularizer.entries if entry.is_penalized] == [part]


# -- models that change -------------------------------------------------------------------------------------------


def test_a_copy_follows_the_copied_model():
    model = nn.Sequential(parametrizations.weight_norm(linear()))
    regularizer = Regularizer(model, L2SP(2.0))
    twin, its = copy.deepcopy((model, regularizer))
    with torch.no_grad():
        twin[0].parametrizations.weight.original0 *= 2
    assert regularizer.value() == 0
    assert its.value().item() == pytest.approx((weight_of(model)).square().sum().item())


@pytest.mark.parametrize("change", [prune.identity, by(Same), parametrizations.spectral_norm])
def test_a_weight_may_become_computed_later_and_an_ordinary_one_again(change):
    model = nn.Sequential(linear(), linear())
    regularizer = Regularizer(model, L1(1.0))
    if change is prune.identity:
        change(model[0], "weight")
    else:
        change(model[0])

    def norms():
        return sum(layer.weight.abs().sum().item() for layer in model.eval()), model.train()

    assert regularizer.value().item() == pytest.approx(norms()[0])
    if change is prune.identity:
        prune.remove(model[0], "weight")
    else:
        parametrize.remove_parametrizations(model[0], "weight")
    assert regularizer.value().item() == pytest.approx(norms()[0])
    assert [entry.name for entry in regularizer.entries if entry.is_penalized] == ["0.weight", "1.weight"]


def test_pruning_during_training_keeps_the_reference():
    model = nn.Sequential(linear())
    start = model[0].weight.detach().clone()
    regularizer = Regularizer(model, L2SP(2.0))
    prune.l1_unstructured(model[0], "weight", 10)
    assert regularizer.value().item() == pytest.approx((model[0].weight - start).square().sum().item())
