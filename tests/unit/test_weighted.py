"""Penalties with a weight for each element, and the weights of the adaptive lasso and of EWC."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import MODES, WEIGHTED, each_mode
from tests.helpers import assert_bit_equal, assert_close
from torchreg import L1, L1SP, L2, L2SP, Regularizer, Stacked, adaptive, fisher
from torchreg.optim import AdamW, ProxAdam, ProxSGD


def model_of(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)


def weights_for(model):
    torch.manual_seed(5)
    return {name: torch.rand_like(param) for name, param in model.named_parameters()}


KINDS = {"L1": L1, "L2": L2, "L1SP": L1SP, "L2SP": L2SP}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def written_out(kind, strength, weights, start):
    """The penalty of a model by torch's own operations."""

    def value(model):
        total = 0.0
        for name, w in model.named_parameters():
            if name.endswith("weight"):
                away = w - start[name] if kind in (L1SP, L2SP) else w
                each = away.abs() if kind in (L1, L1SP) else away.square() / 2
                total = total + strength * (weights[name] * each).sum()
        return total

    return value


# -- on a model -------------------------------------------------------------------------------------------------------


@each_kind
def test_a_dict_gives_each_parameter_its_own_weights(kind):
    model = model_of()
    weights, start = weights_for(model), copy.deepcopy(model.state_dict())
    regularizer = Regularizer(model, kind(0.3, weights=weights), mode="loss")
    for param in model.parameters():
        param.data += 0.1
    expected = written_out(kind, 0.3, weights, start)
    assert_close(regularizer.value(), expected(model))
    ours, theirs = (
        torch.autograd.grad(v, [model[0].weight, model[2].weight]) for v in (regularizer.value(), expected(model))
    )
    assert_close(ours, theirs)


@each_kind
@each_mode
def test_weights_of_one_change_nothing(kind, mode):
    results = []
    for weights in (None, torch.tensor(1.0), lambda w: torch.ones_like(w), lambda w: torch.tensor(1)):
        model = model_of()
        regularizer = Regularizer(model, kind(0.3, weights=weights), mode=mode)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        results.append(train_with(model, optimizer, regularizer, mode))
    for other in results[1:]:
        assert_close(other, results[0])


def train_with(model, optimizer, regularizer, mode, steps=5):
    if mode != "loss":
        regularizer.attach(optimizer)
    torch.manual_seed(7)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 3, dtype=torch.float64)).square().mean()
        (loss + regularizer.value() if mode == "loss" else loss).backward()
        optimizer.step()
    return {name: param.detach() for name, param in model.named_parameters()}


@each_kind
def test_gradient_steps_are_those_of_the_loss(kind):
    results = []
    for mode in ("loss", "grad"):
        model = model_of()
        regularizer = Regularizer(model, kind(0.3, weights=weights_for(model)), mode=mode)
        results.append(train_with(model, AdamW(model, lr=0.05, weight_decay=0), regularizer, mode))
    assert_close(*results)


@pytest.mark.parametrize("optimizer", [ProxSGD, ProxAdam])
def test_proximal_optimizers_take_weights_of_named_parameters(optimizer):
    model = model_of()
    weights = {name: torch.where(w > 0.5, 1e3, 0.0).double() for name, w in weights_for(model).items()}
    made = optimizer(model, L1(1.0, weights=weights), lr=0.05)
    train_with(model, made, Regularizer(model, L2(0.0)), "loss")
    for name in ("0.weight", "2.weight"):
        assert_bit_equal(model.get_parameter(name) == 0, weights[name] > 0)


def test_a_function_that_a_checkpoint_could_not_hold_is_refused_there():
    with pytest.raises(ValueError, match="ProxSGD: weights must be tensors, got a function of the weights"):
        ProxSGD(model_of(), L1(1.0, weights=torch.ones_like), lr=0.1)


# -- what a function gave ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "penalty", [L1(0.3, weights=torch.abs), L2(1.0) + L1(0.3, weights=torch.abs), L2SP(0.1, weights=torch.abs)]
)
def test_a_state_holds_the_weights_that_a_function_gave(penalty):
    model = model_of()
    regularizer = Regularizer(model, penalty)
    for param in model.parameters():
        param.data += 0.5
    resumed = Regularizer(model, penalty)
    assert resumed.value() != regularizer.value()
    resumed.load_state_dict(regularizer.state_dict())
    assert_bit_equal(resumed.value(), regularizer.value())
    state = regularizer.state_dict()
    first = next(iter(state["weights"]))
    del state["weights"][first]
    with pytest.raises(ValueError, match=r"Regularizer: state must hold the weights of 0.weight, got 2.weight"):
        resumed.load_state_dict(state)


def test_the_weights_of_two_functions_are_kept_apart():
    model, penalty = model_of(), L1(0.3, weights=torch.abs) + L2(1.0, weights=torch.square)
    regularizer, other = Regularizer(model, penalty), Regularizer(model_of(1), penalty)
    other.load_state_dict(regularizer.state_dict())
    assert_bit_equal(
        {a.name: [term.weights for term in a.acting.terms] for a in other.entries if a.acting},
        {a.name: [term.weights for term in a.acting.terms] for a in regularizer.entries if a.acting},
    )


def test_members_of_a_stack_have_weights_of_their_own():
    members = [model_of(seed) for seed in range(3)]
    alone = [Regularizer(member, L1(0.3, weights=torch.abs)).value() for member in members]
    stack = Stacked(members)
    regularizer = Regularizer(stack, L1(0.3, weights=torch.abs))
    assert_close(regularizer.value(), torch.stack(alone))
    given = {name: param.detach().abs() for name, param in stack.named_parameters()}
    assert_close(Regularizer(stack, L1(0.3, weights=given)).value(), torch.stack(alone))
    shifted = Regularizer(Stacked([model_of(seed + 5) for seed in range(3)]), L1(0.3, weights=torch.abs))
    shifted.load_state_dict(regularizer.state_dict())
    assert_bit_equal(shifted.state_dict()["weights"], regularizer.state_dict()["weights"])


# -- sums, kinds, precision -------------------------------------------------------------------------------------------


def test_terms_with_the_same_weights_add_up_and_others_stay_apart():
    weights = torch.tensor([1.0, 2.0])
    assert len((L1(0.1, weights=weights) + L1(0.2, weights=weights)).terms) == 1
    assert len((L1(0.1, weights=weights) + L1(0.2)).terms) == 2
    assert len((L2(0.1, weights=weights) + L2(0.2, weights=weights.clone())).terms) == 2
    w = torch.tensor([3.0, -1.0])
    assert_close((0.5 * L1(0.2, weights=weights)).value(w), torch.tensor(0.5))


def test_a_plain_ridge_joins_a_weighted_lasso_and_a_weighted_ridge_joins_nothing():
    weights, w = torch.tensor([1.0, 4.0]), torch.tensor([3.0, -1.0])
    both = L1(0.2, weights=weights) + L2(1.0)
    assert_close(both.prox(w, 0.5), torch.tensor([(3 - 0.1) / 1.5, -(1 - 0.4) / 1.5]))
    assert not hasattr(L1(0.2) + L2(1.0, weights=weights), "prox")


def test_a_weighted_ridge_and_weight_decay_are_refused_together():
    with pytest.raises(ValueError, match="weights would decay twice"):
        ProxSGD(model_of(), L2(0.1, weights=torch.tensor(1.0)), lr=0.1, weight_decay=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", WEIGHTED, ids=lambda case: type(case.penalty).__name__)
def test_half_precision_keeps_its_dtype_and_large_weights_do_not_overflow(case, dtype):
    w = torch.linspace(-2, 2, 12).view(4, 3)
    penalty = case.penalty
    ours = penalty.gradient(w.to(dtype)), penalty.prox(w.to(dtype), 0.5), penalty.value(w.to(dtype))
    exact = penalty.gradient(w), penalty.prox(w, 0.5), penalty.value(w)
    assert all(half.dtype == dtype for half in ours)
    assert_close([half.float() for half in ours], list(exact), tolerance=0.02)
    huge = L1(1.0, weights=torch.full((2,), 1e30))
    held = torch.tensor([0.0, 1.0], dtype=dtype)
    assert not huge.prox(held, 1.0).any()
    assert huge.gradient(held)[0] == 0


def test_complex_weights_have_real_factors():
    w, factors = torch.tensor([3 + 4j, 1j], dtype=torch.complex128), torch.tensor([0.5, 2.0], dtype=torch.float64)
    penalty = L1(1.0, weights=factors)
    assert_close(penalty.value(w), torch.tensor(4.5, dtype=torch.float64))
    assert_close(penalty.prox(w, 1.0), torch.tensor([(3 + 4j) * 0.9, 0], dtype=torch.complex128))
    grad = torch.zeros_like(w)
    assert_close(penalty._add_gradient_(grad, w, 2.0), 2 * penalty.gradient(w))


BAD = [
    (-torch.ones(4, 3), ValueError, r"weights must be finite and >= 0, got -1.0"),
    (torch.full((4, 3), float("nan")), ValueError, r"weights must be finite and >= 0, got nan"),
    (torch.full((4, 3), float("inf")), ValueError, r"weights must be finite and >= 0, got inf"),
    (torch.ones(3, 4), ValueError, r"weights must have the shape of 0.weight, \(4, 3\), got \(3, 4\)"),
    ({"0.weight": torch.ones(4, 3)}, ValueError, r"weights must hold 2.weight, got 1 names: 0.weight"),
    ({"0.weight": 1.0}, TypeError, r"weights must be None, a tensor or a dict of tensors, got 1.0"),
    ([1.0], TypeError, r"weights must be None, a tensor, a dict of tensors or a function .*, got \[1.0\]"),
    (lambda w: w.sum(0), ValueError, r"weights must have the shape of 0.weight, \(4, 3\), got \(3,\)"),
    (lambda w: -w.abs(), ValueError, r"weights must be finite and >= 0, got -"),
]


@each_kind
@pytest.mark.parametrize(("weights", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_weights_that_do_not_fit_get_one_line(kind, weights, error, message):
    with pytest.raises(error, match=rf"\A{kind.__name__}: [^\n]*{message}[^\n]*\Z"):
        Regularizer(model_of(), kind(0.1, weights=weights))


def test_without_a_model_names_mean_nothing():
    with pytest.raises(ValueError, match=r"L1: weights must be a tensor, got .*use a Regularizer"):
        L1(0.1, weights={"weight": torch.ones(2)}).value(torch.ones(2))


@pytest.mark.parametrize("mode", MODES)
def test_unweighted_kinds_are_as_before(mode):
    assert L1(0.1).is_uniform
    assert L2(0.1)._lasso_and_ridge == (0.0, 0.1)
    assert not L1(0.1, weights=torch.ones(2)).is_uniform
    assert repr(L1(0.1)) == "L1(0.1)"


# -- adaptive ---------------------------------------------------------------------------------------------------------


def test_adaptive_weights_are_inverse_powers_with_a_floor():
    model = nn.Linear(2, 1, dtype=torch.float64)
    model.weight.data.copy_(torch.tensor([[4.0, 0.0]]))
    found = adaptive(model, power=0.5, floor=1e-4)
    assert_close(found["weight"], torch.tensor([[0.5, 100.0]], dtype=torch.float64))
    assert found.keys() == {"weight", "bias"}
    model.weight.data.fill_(1.0)  # the weights are those of the call
    assert found["weight"][0, 1] == 100.0


def test_tied_weights_have_adaptive_weights_under_each_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert {"0.weight", "1.weight"} <= adaptive(model).keys()
    Regularizer(model, L1(0.1, weights=adaptive(model)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 0}, "adaptive: power must be positive and finite, got 0"),
        ({"floor": 0.0}, "adaptive: floor must be positive and finite, got 0.0"),
        ({"power": 9.0}, "adaptive: weights must be finite, those of weight are not with floor=1e-06 and power=9.0"),
    ],
    ids=str,
)
def test_adaptive_says_what_is_wrong(options, message):
    model = nn.Linear(2, 1)
    model.weight.data.zero_()
    with pytest.raises(ValueError, match=message):
        adaptive(model, **options)
    with pytest.raises(TypeError, match=r"adaptive: model must be a torch.nn.Module, got generator"):
        adaptive(model.parameters())


# -- fisher -----------------------------------------------------------------------------------------------------------


def examples(count=6):
    torch.manual_seed(3)
    return torch.randn(count, 3, dtype=torch.float64), torch.randint(2, (count,))


def squares_one_by_one(model, x, y, loss=F.cross_entropy):
    total = {name: torch.zeros_like(param) for name, param in model.named_parameters()}
    for i in range(len(x)):
        gradients = torch.autograd.grad(loss(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            total[name] += gradient.square() / len(x)
    return total


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_fisher_is_the_mean_square_of_the_gradients_of_single_examples(batch):
    model, (x, y) = model_of(), examples()
    assert_close(fisher(model, zip(x.split(batch), y.split(batch), strict=True)), squares_one_by_one(model, x, y))


def test_fisher_of_another_likelihood():
    model, (x, _) = model_of(), examples()
    targets = torch.randn(6, 2, dtype=torch.float64)
    expected = squares_one_by_one(model, x, targets, F.mse_loss)
    assert_close(fisher(model, [(x, targets)], loss=F.mse_loss), expected)


class Sequence(nn.Module):
    """A layer that cannot be vectorized."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x.unsqueeze(1))[0][:, -1])


class Normalized(nn.Module):
    """Its batch normalization and dropout must not see single examples, or drop."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.drop(self.norm(x)))


@pytest.mark.parametrize("make", [Sequence, Normalized])
def test_fisher_runs_in_evaluation_mode_and_leaves_the_model_as_it_was(make):
    torch.manual_seed(0)
    model, (x, y) = make().double(), examples()
    model.head.bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    found = fisher(model, [(x, y)])
    assert model.training
    assert_bit_equal(dict(model.state_dict()), dict(before))
    model.head.bias.requires_grad_()
    assert_close(found, squares_one_by_one(model.eval(), x, y))


def test_labels_that_the_model_draws_give_the_fisher_information():
    # Of a linear softmax the expected square over its own labels is x_j**2 * p_c * (1 - p_c).
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(3, 4, bias=False).double(), examples(3)
    p = model(x).softmax(1).detach()
    expected = torch.einsum("nc,nj->cj", p * (1 - p), x.square()) / len(x)
    draw = torch.Generator().manual_seed(0)
    batches = [(x.repeat(5000, 1), y.repeat(5000))]
    found = fisher(model, batches, labels="model", generator=draw)["weight"]
    assert ((found - expected).abs() / expected < 0.1).all()
    again = fisher(model, batches, labels="model", generator=draw.manual_seed(0))["weight"]
    assert_bit_equal(found, again)


def test_ewc_keeps_what_the_first_task_needs():
    """Two features: the first task uses one of them, the second both; EWC moves the free one alone."""
    model = nn.Linear(2, 2, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    train_classes(model, x, y)
    learned = model.weight.detach().clone()
    Regularizer(model, L2SP(1e4, weights=fisher(model, [(x, y)])), mode="prox").attach(
        optimizer := torch.optim.SGD(model.parameters(), lr=0.1)
    )
    other = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    train_classes(model, other, y, optimizer)
    assert_close(model.weight[:, 0].detach(), learned[:, 0], tolerance=0.01)
    assert (model.weight[:, 1] - learned[:, 1]).abs().min() > 0.5
    assert (model(x).argmax(1) == y).all()
    assert (model(other).argmax(1) == y).all()


def train_classes(model, x, y, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        ([], {}, ValueError, "fisher: batches must hold at least one example, got none"),
        (
            [torch.ones(2, 3)],
            {},
            TypeError,
            "fisher: a batch must be a pair of tensors, inputs and targets, got Tensor",
        ),
        ([(torch.ones(2, 3).double(), torch.ones(3).long())], {}, ValueError, "must be equally many, got 2 and 3"),
        ([examples()], {"labels": "true"}, ValueError, "fisher: labels must be 'data' or 'model', got 'true'"),
        ([(examples()[0] * float("nan"), examples()[1])], {}, ValueError, "those of 0.weight are not: check the model"),
    ],
    ids=["none", "no pair", "counts", "labels", "nan"],
)
def test_fisher_says_what_is_wrong(batches, options, error, message):
    with pytest.raises(error, match=message):
        fisher(model_of(), batches, **options)
