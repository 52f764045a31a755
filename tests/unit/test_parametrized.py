"""Weights that a layer computes from stored tensors: the penalty is that of the weight the layer uses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from torchreg import L1, L2, L2SP, GroupLasso, Nuclear, Regularizer, Stacked, everything, in_modules, named
from torchreg.diagnostics import sparsity
from torchreg.tuning import AutoStrength, strength_max, strength_path

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")


class Same(nn.Module):
    def forward(self, w):
        return w


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).mT


class Lower(nn.Module):
    """A mask that is always the same."""

    def forward(self, w):
        return w.tril()


class Largest(nn.Module):
    """A mask that depends on the values."""

    def forward(self, w):
        return w * (w.abs() >= w.abs().median())


class Positive(nn.Module):
    def forward(self, w):
        return w.relu()


class Polar(nn.Module):
    """Two stored tensors for one weight."""

    def forward(self, size, direction):
        return size.exp() * direction

    def right_inverse(self, w):
        return torch.zeros_like(w), w


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(shape).double() / 4) for shape in ((4, 2), (2, 4)))

    def forward(self, w):
        return w + self.a @ self.b


class Equalized:
    """A forward pre-hook of another library, such as those of GANs with equalized learning rates."""

    name = "weight"

    def compute_weight(self, layer):
        return layer.weight_orig / 2

    def __call__(self, layer, inputs):
        layer.weight = self.compute_weight(layer)


def equalized(layer):
    layer.weight_orig = nn.Parameter(layer.weight.detach())
    del layer._parameters["weight"]
    layer.weight = layer.weight_orig.detach()
    layer.register_forward_pre_hook(Equalized())
    return layer


def by(*steps):
    def change(layer):
        for step in steps:
            parametrize.register_parametrization(layer, "weight", step())
        return layer

    return change


def linear():
    return nn.Linear(4, 4).double()


def transposed():
    return nn.ConvTranspose1d(4, 3, 2).double()


LAYERS = {
    "weight norm": lambda: parametrizations.weight_norm(linear()),
    "weight norm of a transposed convolution": lambda: parametrizations.weight_norm(transposed(), dim=1),
    "spectral norm": lambda: parametrizations.spectral_norm(linear()),
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "older weight norm": lambda: weight_norm(linear()),
    "older spectral norm": lambda: spectral_norm(linear()),
    "another hook": lambda: equalized(linear()),
    "pruned": lambda: prune.l1_unstructured(linear(), "weight", 5),
    "pruned twice": lambda: prune.random_structured(prune.l1_unstructured(linear(), "weight", 5), "weight", 1, dim=0),
    "symmetric": lambda: by(Symmetric)(linear()),
    "two tensors": lambda: by(Polar)(linear()),
    "a chain": lambda: by(Symmetric, LowRank)(linear()),
}
MASKS = {"pruned", "pruned twice"}
PENALTIES = {  # with closed forms, of a matrix with a row for each output
    L2(0.3): lambda w: 0.15 * w.square().sum(),
    L1(0.3): lambda w: 0.3 * w.abs().sum(),
    GroupLasso(0.3): lambda w: 0.3 * w.shape[1] ** 0.5 * torch.linalg.vector_norm(w, dim=1).sum(),
    Nuclear(0.3): lambda w: 0.3 * torch.linalg.matrix_norm(w, "nuc"),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def inputs_of(model):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(5, 4, 3, generator=draw).double()
    return x if isinstance(model[0], nn.ConvTranspose1d) else x[..., 0]


def weight_of(model):
    """The weight that the last forward pass used, differentiable: torch computes it in a pass in evaluation mode."""
    model.eval()(torch.ones_like(inputs_of(model)))
    weight = model[0].weight
    model.train()
    return weight


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


@each_layer
@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_modes_that_change_stored_tensors_refuse_what_they_cannot_change(make, mode, request):
    model = nn.Sequential(make())
    if request.node.callspec.id.split("-", 1)[1] in MASKS:
        Regularizer(model, L1(1.0), mode=mode)
        refused = GroupLasso(1.0) if mode == "prox" else Nuclear(1.0)
    else:
        refused = L1(1.0)
    with pytest.raises(ValueError, match=rf"mode '{mode}' .*0\.weight is computed from .*'grad' or 'loss'.*select"):
        Regularizer(model, refused, mode=mode)
    if isinstance(model[0], nn.Linear):
        model.append(linear())
        regularizer = Regularizer(model, refused, mode=mode, select=named("1.*"))
        assert [entry.name for entry in regularizer.entries if entry.is_penalized] == ["1.weight"]


@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_a_frozen_weight_is_refused_when_it_is_trained_again(mode):
    model = nn.Sequential(parametrizations.weight_norm(linear()), by(Same)(linear()), linear())
    model[:2].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(1.0), mode=mode).attach(optimizer)
    model[1].requires_grad_(True)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    start = model[1].weight.detach().clone()
    optimizer.step()
    less = (start.abs() - 0.1).clamp(min=0) * start.sign() if mode == "prox" else start - 0.1 * start.sign()
    torch.testing.assert_close(model[1].weight, less)
    assert [entry.name for entry in regularizer.entries if entry.is_penalized] == ["1.weight", "2.weight"]
    model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"0\.weight is computed from"):
        optimizer.step()


@pytest.mark.parametrize(
    ("step", "is_right"), [(Same, True), (Lower, True), (Largest, False), (Positive, False), (Symmetric, False)]
)
def test_a_parametrization_is_a_mask_if_it_behaves_like_one(step, is_right):
    model = nn.Sequential(by(step)(linear()))
    if is_right:
        Regularizer(model, L1(1.0), mode="prox")
    else:
        with pytest.raises(ValueError, match=f"the parametrization {step.__name__}"):
            Regularizer(model, L1(1.0), mode="prox")


@pytest.mark.parametrize("change", [by(Lower), lambda layer: prune.l1_unstructured(layer, "weight", 5)])
def test_masked_weights_are_trained_as_by_a_loop_of_ones_own(change):
    torch.manual_seed(0)
    model = nn.Sequential(change(linear()))
    mask = model[0].weight != 0
    w, bias = (tensor.detach().clone().requires_grad_() for tensor in (model[0].weight, model[0].bias))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(0.4), mode="prox").attach(optimizer)
    for _ in range(5):
        x = torch.randn(6, 4).double()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        gradient, slope = torch.autograd.grad((x @ (w * mask).T + bias).square().mean(), (w, bias))
        moved = w - 0.1 * gradient
        w = (moved.sign() * (moved.abs() - 0.04).clamp(min=0)).detach().requires_grad_()
        bias = (bias - 0.1 * slope).detach().requires_grad_()
    torch.testing.assert_close(weight_of(model), w * mask)


def test_the_identity_allows_any_penalty():
    plain, same = nn.Sequential(linear()), nn.Sequential(linear())
    same.load_state_dict(plain.state_dict())
    by(Same)(same[0])
    for model in (plain, same):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Regularizer(model, GroupLasso(0.5), mode="prox").attach(optimizer)
        model(torch.ones(2, 4).double()).sum().backward()
        optimizer.step()
    assert torch.equal(plain[0].weight, same[0].weight)


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


def test_a_step_refuses_a_weight_that_has_become_computed():
    model = nn.Sequential(linear())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(1.0), mode="prox").attach(optimizer)
    parametrizations.spectral_norm(model[0])
    model(inputs_of(model)).sum().backward()
    with pytest.raises(ValueError, match=r"0\.weight is computed from .* by the parametrization SpectralNorm"):
        optimizer.step()


def test_strengths_of_computed_weights_are_not_tuned():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 1)))
    regularizer = Regularizer(model, L2(1.0), mode="grad")
    with pytest.raises(ValueError, match=r"AutoStrength: .* 0\.weight are computed by parametrizations"):
        AutoStrength(regularizer, (torch.ones(2, 4), torch.ones(2, 1)), nn.MSELoss())


def test_a_path_of_a_masked_model_is_that_of_the_kept_inputs():
    torch.manual_seed(0)
    x, y = torch.randn(20, 4).double(), torch.randn(20, 1).double()

    def masked():
        return prune.custom_from_mask(nn.Linear(4, 1), "weight", torch.tensor([[1, 0, 1, 1]]))

    kept = x[:, [0, 2, 3]]
    slopes = 2 / len(x) * kept.T @ (y - y.mean())  # of the mean square, where the weights are zero
    assert strength_max(masked(), L1(1.0), (x, y)).strength == pytest.approx(slopes.abs().max().item())
    options = {"penalty": L1(1.0), "strengths": [0.1], "folds": 2, "executor": "stacked", "verbose": False}
    ours = strength_path(masked, train=(x, y), **options)
    plain = strength_path(lambda: nn.Linear(3, 1), train=(kept, y), **options)
    assert ours.points[0].valid_loss.mean == pytest.approx(plain.points[0].valid_loss.mean)


def test_zeros_are_counted_in_the_weight_that_acts():
    model = nn.Sequential(prune.l1_unstructured(linear(), "weight", 12))
    assert sparsity(model) == {"0.weight": 0.75}
