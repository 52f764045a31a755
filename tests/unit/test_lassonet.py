"""LassoNet: its proximal operator against brute force, and its training."""

import copy

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, assert_differs
from torchreg import L2, LassoNet, Regularizer, Stacked, linear
from torchreg import functional as f
from torchreg.optim import ProxAdam, ProxSGD


class Net(nn.Module):
    def __init__(self, features=5, outputs=2, units=8):
        super().__init__()
        self.skip = nn.Linear(features, outputs, bias=False)
        self.first, self.last = nn.Linear(features, units), nn.Linear(units, outputs)

    def forward(self, x):
        return self.skip(x) + self.last(self.first(x).tanh())


def net(**shape):
    torch.manual_seed(3)
    return Net(**shape).double()


def matrices(outputs, units, features, *, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(rows, features, dtype=torch.float64, generator=draw) for rows in (outputs, units))


def objective(a, b, v, u, amount):
    return ((a - v) ** 2).sum() / 2 + ((b - u) ** 2).sum() / 2 + amount * torch.linalg.vector_norm(a)


def steps(model, optimizer, number=5):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(32, model.skip.in_features, dtype=model.skip.weight.dtype, generator=draw)
    for _ in range(number):
        optimizer.zero_grad()
        (model(x) - x[:, : model.skip.out_features].sin() * 2).square().mean().backward()
        optimizer.step()


# -- the proximal operator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("bound", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("amount", [0.0, 0.4, 2.0])
def test_the_proximal_point_is_what_a_solver_finds(outputs, bound, amount):
    v, u = matrices(outputs, 4, 6)
    a, b = f.hierarchical_threshold(v, u, amount, bound)
    for j in range(6):

        def loss(x, j=j):  # by the norm of a, whose direction is that of v, and the elements of b
            norm, own = x[0], torch.tensor(x[1:])
            direction = v[:, j] / torch.linalg.vector_norm(v[:, j])
            return float(objective(norm * direction, own, v[:, j], u[:, j], amount))

        limits = [
            {"type": "ineq", "fun": lambda x, i=i, sign=sign: bound * x[0] - sign * x[1 + i]}
            for i in range(4)
            for sign in (1, -1)
        ]
        found = minimize(
            loss, [1.0, 0, 0, 0, 0], method="SLSQP", bounds=[(0, None)] + [(None, None)] * 4, constraints=limits
        )
        best = float(objective(a[:, j], b[:, j], v[:, j], u[:, j], amount))
        assert best <= found.fun + 1e-7
        assert_close(best, found.fun, 1e-5)


@pytest.mark.parametrize("outputs", [1, 2])
def test_no_point_of_the_hierarchy_is_nearer(outputs):
    v, u = matrices(outputs, 3, 1, seed=5)
    amount, bound = 0.5, 0.8
    a, b = f.hierarchical_threshold(v, u, amount, bound)
    best = objective(a, b, v, u, amount)
    draw = torch.Generator().manual_seed(2)
    for spread in (1e-3, 1e-1, 1.0, 3.0):
        for _ in range(500):
            other = a + spread * torch.randn(a.shape, dtype=a.dtype, generator=draw)
            most = bound * torch.linalg.vector_norm(other)
            rest = (b + spread * torch.randn(b.shape, dtype=b.dtype, generator=draw)).clamp(-most, most)
            assert objective(other, rest, v, u, amount) >= best - 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", [1, 4])
def test_the_bound_holds_to_the_bit(outputs, dtype):
    v, u = (w.to(dtype) for w in matrices(outputs, 50, 400, scale=3.0))
    a, b = f.hierarchical_threshold(v, u, 1.7, 0.37)
    norms = a.abs() if outputs == 1 else f.row_norms(a.mT).mT
    assert (b.abs() <= 0.37 * norms).all()
    assert (b.abs() == 0.37 * norms).any()  # it is active
    assert ((b == u) & (u != 0)).any()  # and elsewhere nothing moves


def test_special_bounds_and_amounts():
    v, u = matrices(2, 4, 7)
    wide_a, wide_b = f.hierarchical_threshold(v, u / 100, 0.0, 1e3)
    assert_close(wide_a, v)
    assert_bit_equal(wide_b, u / 100)
    killed = f.hierarchical_threshold(v, u, 1e3, 1.0)
    assert all(not part.any() for part in killed)
    a, b = f.hierarchical_threshold(v, torch.zeros_like(u), 0.7, 1.0)
    assert_close(a, f.group_soft_threshold(v.mT, 0.7).mT)  # without W it is the group lasso
    assert not b.any()


def test_where_the_skip_weight_is_zero_the_features_weights_may_bring_it_back():
    u = torch.tensor([[3.0, 0.1], [-2.0, 0.1]], dtype=torch.float64)
    a, b = f.hierarchical_threshold(torch.zeros(1, 2, dtype=torch.float64), u, 1.0, 1.0)
    assert_close(a, torch.tensor([[4 / 3, 0.0]], dtype=torch.float64))  # (0 - 1 + 3 + 2) / 3
    assert_close(b[:, 0], torch.tensor([4 / 3, -4 / 3], dtype=torch.float64))
    a, _ = f.hierarchical_threshold(torch.zeros(4, 2, dtype=torch.float64), u, 1.0, 1.0)
    assert_close(a[:, 0], torch.full((4,), 2 / 3, dtype=torch.float64))


def test_shapes_without_elements_and_complex_weights():
    for outputs, units, features in ((1, 0, 3), (0, 2, 3), (2, 3, 0)):
        a, b = f.hierarchical_threshold(torch.ones(outputs, features), torch.ones(units, features), 0.1, 1.0)
        assert (a.shape, b.shape) == ((outputs, features), (units, features))
        assert a.isfinite().all()
    v, u = matrices(1, 4, 5)
    real = f.hierarchical_threshold(v, u, 0.3, 0.5)
    turned = f.hierarchical_threshold(v * 1j, u * -1j, 0.3, 0.5)
    assert_close(turned, (real[0] * 1j, real[1] * -1j))


def test_what_is_not_finite_stays_visible_in_its_feature_alone():
    v, u = matrices(2, 4, 3)
    u[1, 0], v[0, 1] = torch.nan, torch.nan
    a, b = f.hierarchical_threshold(v, u, 0.1, 1.0)
    assert a[:, :2].isnan().all()
    assert b[:, :2].isnan().all()
    assert a[:, 2].isfinite().all()
    assert b[:, 2].isfinite().all()
    u[1, 0], v[0, 1] = torch.inf, -torch.inf
    for part in f.hierarchical_threshold(v, u, 0.1, 1.0):
        assert not part[:, 0].isfinite().all()
        assert part[:, 2].isfinite().all()


def test_tied_magnitudes_and_rows_in_another_order_change_nothing():
    v, u = matrices(1, 6, 9)
    u[3:] = -u[:3]
    a, b = f.hierarchical_threshold(v, u, 0.2, 0.7)
    assert_bit_equal(b[3:], -b[:3])
    order = torch.randperm(6)
    again = f.hierarchical_threshold(v, u[order], 0.2, 0.7)
    assert_bit_equal(again, (a, b[order]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_single_precision_rounded(dtype):
    v, u = (w.to(dtype) for w in matrices(2, 6, 40))
    a, b = f.hierarchical_threshold(v, u, 0.3, 2.0)
    exact = f.hierarchical_threshold(v.float(), u.float(), 0.3, 2.0)
    assert (a.dtype, b.dtype) == (dtype, dtype)
    assert_bit_equal(a, exact[0].to(dtype))
    assert_close(b.float(), exact[1], 4 * torch.finfo(dtype).eps)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGD", "momentum", "Adam"])
def test_a_training_is_the_loop_written_by_hand(kind):
    make = {
        "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
        "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        "Adam": lambda params: torch.optim.Adam(params, lr=0.1),
    }[kind]
    ours, theirs = net(), net()
    optimizer = make(ours.parameters())
    Regularizer(ours, LassoNet(0.5, M=0.6), mode="prox").attach(optimizer)
    steps(ours, optimizer, 6)
    other = make(theirs.parameters())
    for _ in range(6):
        steps(theirs, other, 1)
        skip, first = f.hierarchical_threshold(theirs.skip.weight.data, theirs.first.weight.data, 0.1 * 0.5, 0.6)
        theirs.skip.weight.data, theirs.first.weight.data = skip, first
    assert_bit_equal(dict(ours.named_parameters()), dict(theirs.named_parameters()))


def test_the_value_is_the_penalty_where_the_hierarchy_holds():
    model = net()
    regularizer = Regularizer(model, 2 * LassoNet(0.25, M=0.01), mode="prox")
    assert regularizer.value() == torch.inf
    model.first.weight.data.zero_()
    expected = 0.5 * torch.linalg.vector_norm(model.skip.weight, dim=0).sum()
    assert_close(regularizer.value(), expected.detach())
    regularizer.scale = 3.0
    assert_close(regularizer.terms(), {"LassoNet": 3 * expected.detach()})
    regularizer.scale = {"skip.weight": 2.0, "first.weight": 2.0}
    assert_close(regularizer.value(), 2 * expected.detach())
    model.first.weight.data[0, 0] = torch.nan
    assert regularizer.value().isnan()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: nn.ModuleDict({"net": model})])
def test_the_layers_are_found_under_wrappers_and_by_full_names(wrap):
    model = net()
    wrapped = wrap(model)
    prefix = "net." if isinstance(wrapped, nn.ModuleDict) else ""
    regularizer = Regularizer(wrapped, LassoNet(1.0, skip=f"{prefix}skip", first=f"{prefix}first"), mode="prox")
    assert [a.name.rpartition(".")[0].rpartition(".")[2] for a in regularizer.entries if a.penalty] == ["skip", "first"]


def test_a_schedule_a_state_and_a_copy():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(
        model, LassoNet(1.0, M=0.5), mode="prox", schedule=linear(steps=4, start=0.0, end=1.0)
    ).attach(optimizer)
    steps(model, optimizer, 2)
    saved = copy.deepcopy((model, optimizer, regularizer))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    steps(model, optimizer, 3)
    copied, its_optimizer, _ = saved
    steps(copied, its_optimizer, 3)
    assert_bit_equal(dict(copied.named_parameters()), dict(model.named_parameters()))
    other = net()
    its = torch.optim.SGD(other.parameters(), lr=0.1)
    Regularizer(other, LassoNet(1.0, M=0.5), mode="prox", schedule=linear(steps=4, start=0.0, end=1.0)).attach(its)
    other.load_state_dict(state[0])
    its.load_state_dict(state[1])
    steps(other, its, 3)
    assert_bit_equal(dict(other.named_parameters()), dict(model.named_parameters()))


def test_both_move_if_one_of_them_has_a_gradient_and_none_if_none_has():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, LassoNet(1.0, M=0.1), mode="prox").attach(optimizer)
    before = copy.deepcopy(model.state_dict())
    model.last.bias.sum().backward()
    optimizer.step()
    assert_bit_equal(model.first.weight.data, before["first.weight"])
    model.skip(torch.ones(1, 5, dtype=torch.float64)).sum().backward()
    optimizer.step()
    norms = f.row_norms(model.skip.weight.mT).mT
    assert (model.first.weight.abs() <= 0.1 * norms).all()
    assert_differs(model.first.weight.data, before["first.weight"])


def test_a_step_in_half_precision_acts():
    model = Net().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, LassoNet(0.1, M=0.1), mode="prox").attach(optimizer)
    steps(model, optimizer, 2)
    norms = f.row_norms(model.skip.weight.float().mT).mT
    assert (model.first.weight.float().abs() <= 0.1 * norms * (1 + 2**-7)).all()


def test_a_killed_feature_leaves_the_model():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    regularizer = Regularizer(model, LassoNet(1.6, M=0.5), mode="prox").attach(optimizer)
    steps(model, optimizer, 500)
    gone = ~model.skip.weight.any(0)
    assert 0 < gone.sum() < 5
    x = torch.randn(4, 5, dtype=torch.float64)
    assert_bit_equal(model(x), model(torch.where(gone, 7.0, x)))
    assert regularizer.value().isfinite()


@pytest.mark.parametrize("seed", range(3))
def test_a_path_of_strengths_removes_the_irrelevant_features_first(seed):
    torch.manual_seed(seed)
    x = torch.randn(300, 10)
    y = (x[:, 0] * x[:, 1] + (2 * x[:, 2]).sin() + x[:, 0])[:, None]  # features 0 and 1 also act together
    model = Net(10, 1, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    regularizer = Regularizer(model, LassoNet(0.2), mode="prox").attach(optimizer)
    last = torch.zeros(10, dtype=torch.long)  # at which strength a feature was still there
    for point in range(45):
        for _ in range(20):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        last[model.skip.weight.detach()[0] != 0] = point + 1
        regularizer.scale *= 1.2
    assert last[:3].min() > last[3:].max()
    assert last[3:].min() > 10  # not all at once
    assert last.max() < 45  # and all in the end


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strength": -1.0}, ValueError, "strength must be finite and >= 0, got -1.0"),
        ({"M": 0.0}, ValueError, "M must be positive and finite, got 0.0"),
        ({"M": "10"}, TypeError, "M must be a number, got '10'"),
        ({"skip": 3}, TypeError, "skip must be the name of a layer, got 3"),
        ({"skip": "first"}, ValueError, "skip and first must be two layers, got 'first' twice"),
    ],
)
def test_bad_input_gets_one_line(options, error, message):
    with pytest.raises(error, match=rf"\ALassoNet: {message}\Z"):
        LassoNet(**{"strength": 1.0} | options)


def test_a_model_that_does_not_fit_gets_one_line():
    model = net()
    for penalty, message in (
        (LassoNet(1.0, skip="other"), r"one weight other.weight and one first.weight, got first.weight: name the two"),
        (LassoNet(1.0, first="last"), r"must be linear layers of the same features, got weights of shape \(2, 5\)"),
        (LassoNet(1.0, skip="a", first="b"), r"got none of .*: LassoNet.* selects its parameters itself"),
        (L2(1.0) + LassoNet(1.0), "must not be part of a sum, got .*: make one Regularizer for each term"),
        ({"skip.*": LassoNet(1.0)}, r"one weight skip.weight and one first.weight, got skip.weight: name the two"),
    ):
        with pytest.raises(ValueError, match=message):
            Regularizer(model, penalty, mode="prox")
    for mode in ("loss", "grad", "decoupled"):
        with pytest.raises(ValueError, match=f"LassoNet.* cannot act in mode '{mode}': use mode 'prox'"):
            Regularizer(model, LassoNet(1.0), mode=mode)
    with pytest.raises(ValueError, match=r"cannot act on a stack of models: use it on each of its members"):
        Regularizer(Stacked([net(), net()]), LassoNet(1.0), mode="prox")
    for make in (ProxSGD, ProxAdam):
        with pytest.raises(ValueError, match=f"{make.__name__}: .* one parameter at a time, .* use a Regularizer"):
            make(model.parameters(), LassoNet(1.0))
    for method in (LassoNet(1.0).value, LassoNet(1.0).gradient, lambda w: LassoNet(1.0).prox(w, 1.0)):
        with pytest.raises(TypeError, match="function of two weights, not of one tensor: give it to a Regularizer"):
            method(torch.ones(2, 2))


def test_layers_that_are_not_trained_alike_get_one_line():
    model = net()
    model.first.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, LassoNet(1.0), mode="prox").attach(optimizer)
    with pytest.raises(ValueError, match=r"must be trained together, got skip.weight alone: call requires_grad_"):
        steps(model, optimizer, 1)
    regularizer.remove()
    model = net()
    rest = [param for name, param in model.named_parameters() if name != "first.weight"]
    groups = [{"params": rest}, {"params": [model.first.weight], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    Regularizer(model, LassoNet(1.0), mode="prox").attach(optimizer)
    with pytest.raises(ValueError, match=r"must have the same step lr \* scale, got 0.1 and 0.2: give their parameter"):
        steps(model, optimizer, 1)
    model = net()
    model.skip.requires_grad_(False)
    model.first.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="every penalized parameter is frozen"):
        Regularizer(model, LassoNet(1.0), mode="prox").attach(optimizer)
    before = model.skip.weight.clone()
    steps(model, optimizer, 1)
    assert_bit_equal(model.skip.weight, before)
