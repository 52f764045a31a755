"""TargetSparsity: the share of zeros that was asked for, however wrong the strength."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from tests.helpers import assert_bit_equal, assert_close, make_model, resume, weights_of
from tests.unit.sparsifying import a_net, batches, fit, zero_groups, zeros
from torchreg import L1, L2, GroupLasso, LogSum, MaxNorm, Regularizer, Stacked, diagnostics, linear
from torchreg.optim import AdamW, ProxAdam, ProxSGD, TargetSparsity

STEPS = 300


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("strength", [1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "LogSum"])
def test_the_share_of_zeros_is_the_one_asked_for_from_any_strength(kind, strength, target):
    net = a_net()
    if kind == "SGD":
        optimizer = ProxSGD(net.parameters(), L1(strength), lr=0.05, momentum=0.9)
    else:
        penalty = L1(strength) if kind == "Adam" else LogSum(strength, epsilon=0.1)
        optimizer = ProxAdam(net.parameters(), penalty, lr=5e-3)
    controller = TargetSparsity(optimizer, target, steps=STEPS)
    fit(net, optimizer, STEPS)
    assert abs(zeros(net) - target) <= 0.005
    assert abs(controller.sparsity.item() - target) <= 0.005


def test_it_can_steer_to_the_end_without_fixing_the_support():
    net = a_net()
    optimizer = ProxAdam(net.parameters(), L1(1e-4), lr=5e-3)
    TargetSparsity(optimizer, 0.8, steps=1000, fix_at=1)
    scheduler = CosineAnnealingLR(optimizer, 1000)
    data = batches()
    for _ in range(1000):
        fit(net, optimizer, 1, data)
        scheduler.step()
    assert abs(zeros(net) - 0.8) <= 0.02
    assert not optimizer.param_groups[0]["support_fixed"]


def test_what_is_zero_when_the_support_is_fixed_stays_so_and_the_rest_goes_on():
    net = a_net()
    optimizer = ProxAdam(net.parameters(), L1(1e-3), lr=5e-3)
    TargetSparsity(optimizer, 0.8, steps=100, fix_at=0.5)
    data = batches()
    fit(net, optimizer, 50, data)
    assert optimizer.param_groups[0]["support_fixed"]
    before = [w.detach().clone() for w in diagnostics.weights_of(net).values()]
    fit(net, optimizer, 50, data)
    for old, new in zip(before, diagnostics.weights_of(net).values(), strict=True):
        assert torch.equal(old == 0, new == 0)
        assert not torch.equal(old, new)


def test_groups_keep_the_proportion_of_their_scales():
    net = a_net()
    groups = [{"params": net[0].parameters(), "scale": 0.5}, {"params": [*net[2].parameters(), *net[4].parameters()]}]
    optimizer = ProxAdam(groups, L1(1e-3), lr=5e-3)
    TargetSparsity(optimizer, 0.8, steps=200)
    fit(net, optimizer, 100)
    first, second = (group["scale"] for group in optimizer.param_groups)
    assert torch.equal(2 * first, second)
    assert first != 0.5


def test_whole_groups_go_as_well():
    net = a_net()
    optimizer = ProxAdam(net.parameters(), GroupLasso(1e-4, groups="input"), lr=5e-3)
    TargetSparsity(optimizer, 0.7, steps=500)
    fit(net, optimizer, 500)
    assert abs(zeros(net) - 0.7) <= 0.005


@pytest.mark.parametrize("half", [40, 100])  # while it steers, and when the support is fixed
def test_training_resumes_from_a_file_to_the_bit(half):
    def setting():
        net = a_net()
        optimizer = ProxAdam(net.parameters(), L1(1e-3), lr=5e-3)
        return net, optimizer, TargetSparsity(optimizer, 0.8, steps=120)

    whole, broken, resumed = setting(), setting(), setting()
    data = batches()
    fit(*whole[:2], half, data)
    fit(*whole[:2], 120 - half, data)
    data = batches()
    fit(*broken[:2], half, data)
    resume(resumed, broken)
    fit(*resumed[:2], 120 - half, data)
    assert_bit_equal(weights_of(resumed[0]), weights_of(whole[0]))


def test_parameters_without_elements_alone_are_refused():
    with pytest.raises(ValueError, match="a penalized parameter must be trained, got no elements"):
        TargetSparsity(ProxSGD([nn.Parameter(torch.empty(0, 3))], L1(1e-3), lr=0.1), 0.5, steps=9)


TIED = {
    "equal": torch.ones(10, 10),
    "zero": torch.zeros(10, 10),
    "rounded": (4 * torch.linspace(-1, 1, 100).view(10, 10)).round() / 4,
    "bfloat16": torch.linspace(-1, 1, 100).view(10, 10).bfloat16(),
}


def fixed(*weights, target, **options):
    """The weights when the support is fixed, without gradients."""
    params = [nn.Parameter(w.clone()) for w in weights]
    optimizer = ProxSGD(params, L1(1e-30), lr=1e-9)
    controller = TargetSparsity(optimizer, target, steps=2, fix_at=0.5, **options)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    return params, controller.sparsity.item()


@pytest.mark.parametrize("target", [0.01, 0.37, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("w", TIED.values(), ids=TIED)
def test_the_share_is_exact_although_weights_are_equal(w, target):
    (param,), sparsity = fixed(w, target=target)
    assert param.count_nonzero() == 100 - round(100 * target)
    assert sparsity == pytest.approx(round(100 * target) / 100)


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
def test_the_share_of_equal_groups_is_exact(target):
    (param,), sparsity = fixed(torch.ones(10, 4), target=target, groups=0)
    assert (~param.any(1)).sum() == round(10 * target)
    assert sparsity == pytest.approx(target)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e6])
def test_the_smallest_weights_of_all_parameters_become_zero(scale):
    (large, small), _ = fixed(torch.tensor([[1.0, 0.5]]), scale * torch.tensor([[0.02, 0.01]]), target=0.5)
    whole = torch.cat([torch.tensor([1.0, 0.5]), scale * torch.tensor([0.02, 0.01])])
    assert_bit_equal(torch.cat([large, small], 1).detach()[0], whole.where(whole >= whole.sort().values[2], 0))


def test_zeros_come_back_by_their_gradients_whatever_their_size():
    param = nn.Parameter(torch.zeros(1, 6))
    optimizer = ProxSGD([param], L1(1e-30), lr=1e-30)
    TargetSparsity(optimizer, 0.5, steps=2, fix_at=0.5)
    param.grad = torch.tensor([[1e-25, 3e-25, 2e-25, 0.0, 5e-25, 0.0]])
    optimizer.step()
    assert param.detach().bool().tolist() == [[False, True, True, False, True, False]]


@pytest.mark.parametrize("groups", [None, "input"])
def test_weights_without_elements_are_no_obstacle(groups):
    full, empty = nn.Parameter(torch.linspace(1, 2, 10).view(5, 2)), nn.Parameter(torch.empty(0, 2))
    optimizer = ProxSGD([full, empty], L1(1e-6), lr=1e-3)
    controller = TargetSparsity(optimizer, 0.4, steps=2, fix_at=0.5, groups=None if groups is None else 0)
    full.grad, empty.grad = torch.zeros_like(full), torch.zeros_like(empty)
    optimizer.step()
    assert controller.sparsity == 0.4
    assert full.count_nonzero() == 6


# -- a Regularizer ------------------------------------------------------------------------------------------------


def regularized(penalty, *, lr=0.05, **options):
    net = a_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    return net, optimizer, Regularizer(net, penalty, mode="prox", **options).attach(optimizer)


@pytest.mark.parametrize("target", [0.5, 0.9])
@pytest.mark.parametrize("strength", [1e-7, 1e-3])
@pytest.mark.parametrize(
    ("kind", "options"), [(torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}), (torch.optim.Adam, {"lr": 5e-3})]
)
def test_a_regularizer_is_steered_to_the_same_share(kind, options, strength, target):
    net = a_net()
    optimizer = kind(net.parameters(), **options)
    regularizer = Regularizer(net, L1(strength), mode="prox").attach(optimizer)
    controller = TargetSparsity(regularizer, target, steps=STEPS)
    data = batches()
    fit(net, optimizer, 200, data)
    assert regularizer.scale > 0
    fit(net, optimizer, 10, data)
    assert regularizer.scale == 0  # 70 % of the steps are made
    before = [w.detach().clone() for w in diagnostics.weights_of(net).values()]
    fit(net, optimizer, STEPS - 210, data)
    assert abs(zeros(net) - target) <= 0.005
    assert abs(controller.sparsity.item() - target) <= 0.005
    for old, new in zip(before, diagnostics.weights_of(net).values(), strict=True):
        assert torch.equal(old == 0, new == 0)
        assert not torch.equal(old, new)


def test_the_scales_of_a_regularizer_keep_their_proportions():
    net, optimizer, regularizer = regularized(L1(1e-4))
    regularizer.scale = {"0.weight": 0.5, "2.weight": 1.0, "4.weight": 2.0}
    TargetSparsity(regularizer, 0.8, steps=200)
    fit(net, optimizer, 100)
    assert_close(regularizer.scale["4.weight"], 4 * regularizer.scale["0.weight"])
    assert regularizer.scale["2.weight"] != 1.0


@pytest.mark.parametrize(("groups", "dim"), [("output", 0), ("input", 1)])
@pytest.mark.parametrize("kind", ["regularizer", "optimizer"])
def test_the_share_may_be_that_of_groups(kind, groups, dim):
    net, penalty = a_net(), GroupLasso(1e-5, groups=groups)
    if kind == "regularizer":
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        steered = Regularizer(net, penalty, mode="prox").attach(optimizer)
    else:
        optimizer = steered = ProxSGD(net.parameters(), penalty, lr=0.05)
    controller = TargetSparsity(steered, 0.5, steps=400, groups=groups)
    fit(net, optimizer, 400)
    assert abs(zero_groups(net, dim) - 0.5) <= 0.02
    assert abs(controller.sparsity.item() - 0.5) <= 0.02


def test_groups_are_those_of_the_module():
    net = nn.Sequential(nn.ConvTranspose1d(6, 10, 3), nn.Flatten(), nn.Linear(10 * 7, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    regularizer = Regularizer(net, GroupLasso(1e-3), mode="prox").attach(optimizer)
    controller = TargetSparsity(regularizer, 0.5, steps=60, groups="output")
    x, y = torch.randn(64, 6, 5), torch.randint(4, (64,))
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    gone = (~net[0].weight.any(2).any(0)).sum() + (~net[2].weight.any(1)).sum()  # of 10 channels and 4 classes
    assert gone == 7
    assert controller.sparsity == 0.5


@pytest.mark.parametrize("half", [40, 100])  # while it steers, and when the support is fixed
@pytest.mark.parametrize("groups", [None, "input"])
def test_a_training_with_a_steered_regularizer_resumes_from_a_file_to_the_bit(half, groups):
    def setting():
        net, optimizer, regularizer = regularized(L1(1e-4) if groups is None else GroupLasso(1e-4, groups=groups))
        return net, optimizer, TargetSparsity(regularizer, 0.6, steps=120, groups=groups)

    whole, broken, resumed = setting(), setting(), setting()
    data = batches()
    fit(*whole[:2], half, data)
    fit(*whole[:2], 120 - half, data)
    data = batches()
    fit(*broken[:2], half, data)
    resume(resumed, broken)
    fit(*resumed[:2], 120 - half, data)
    assert_bit_equal(weights_of(resumed[0]), weights_of(whole[0]))
    assert zeros(whole[0]) > 0.3


def test_frozen_weights_are_not_counted():
    net, optimizer, regularizer = regularized(L1(1e-4))
    net[0].weight.requires_grad_(False)
    TargetSparsity(regularizer, 0.5, steps=200)
    fit(net, optimizer, 200)
    assert net[0].weight.all()
    many = net[2].weight.numel() + net[4].weight.numel()
    assert abs((net[2].weight == 0).sum() + (net[4].weight == 0).sum() - many / 2) <= 1


def test_a_regularizer_that_cannot_be_steered_gets_one_line():
    net = a_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    stack = Stacked([a_net(), a_net(1)])
    cases = {
        "must have mode 'prox', which makes zeros, got 'grad'": lambda: Regularizer(net, L1(0.1), mode="grad"),
        "must be attached to one optimizer, got none: attach it first": lambda: Regularizer(net, L1(0.1), mode="prox"),
        "must have no schedule, which sets the same scale": lambda: Regularizer(
            net, L1(0.1), mode="prox", schedule=linear(9)
        ).attach(optimizer),
        "a constraint has no strength to be steered: use Sparsest": lambda: Regularizer(
            net, L2(0.1) + MaxNorm(1.0), mode="prox"
        ).attach(optimizer),
        "a stack of models has no common share of zeros": lambda: Regularizer(stack, L1(0.1), mode="prox").attach(
            torch.optim.SGD(stack.parameters())
        ),
    }
    for message, make in cases.items():
        regularizer = make()
        with pytest.raises(ValueError, match=f"TargetSparsity: .*{message}"):
            TargetSparsity(regularizer, 0.5, steps=9)
        regularizer.remove()
    with pytest.raises(ValueError, match=r"TargetSparsity: groups must be .*, got 'rows'"):
        TargetSparsity(ProxSGD(net.parameters(), L1(0.1)), 0.5, steps=9, groups="rows")
    with pytest.raises(ValueError, match=r"TargetSparsity: groups 'filter' needs a convolution"):
        TargetSparsity(ProxSGD(net.parameters(), L1(0.1)), 0.5, steps=9, groups="filter")
    net.requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen"):
        regularizer = Regularizer(net, L1(0.1), mode="prox").attach(optimizer)
    with pytest.raises(ValueError, match="TargetSparsity: a penalized parameter must be trained, got none"):
        TargetSparsity(regularizer, 0.5, steps=9)


def test_removed_it_no_longer_steers():
    net = a_net()
    optimizer = ProxSGD(net.parameters(), L1(1e-3), lr=0.05)
    controller = TargetSparsity(optimizer, 0.8, steps=100)
    controller.remove()
    fit(net, optimizer, 100)
    assert optimizer.param_groups[0]["scale"] == 1.0


def test_a_foreign_state_is_refused():
    optimizer = ProxSGD(make_model().parameters(), L1(1e-3))
    with pytest.raises(ValueError, match=r"TargetSparsity: state must have the keys made, scales, .*, got \['steps'\]"):
        TargetSparsity(optimizer, 0.8, steps=100).load_state_dict({"steps": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.0}, r"target must be in \(0, 1\), got 1.0"),
        ({"target": float("nan")}, r"target must be in \(0, 1\), got nan"),
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"steps": 10.0}, "steps must be a whole number >= 1, got 10.0"),
        ({"fix_at": 0.0}, r"fix_at must be in \(0, 1\], got 0.0"),
        ({"schedule": "square"}, "schedule must be one of cubic, linear, constant, or a function .*, got 'square'"),
        ({"span": (0.5, 0.5)}, r"span must be two increasing shares in \[0, 1\], got \(0.5, 0.5\)"),
        ({"span": (0.0, 1.1)}, "span must be two increasing shares"),
        ({"schedule": ["cubic"]}, "schedule must be one of .*, got .'cubic'."),
        ({"fix_at": "0.7"}, "fix_at must be .*, got '0.7'"),
        ({"span": 0.6}, "span must be two increasing shares in .*, got 0.6"),
        ({"span": "ab"}, "span must be two increasing shares in .*, got 'ab'"),
        ({"span": (0, "1")}, "span must be two increasing shares in .*, got .0, '1'."),
    ],
    ids=str,
)
def test_a_wrong_number_gets_one_line(options, message):
    optimizer = ProxSGD(make_model().parameters(), L1(1e-3))
    with pytest.raises(ValueError, match=f"TargetSparsity: {message}"):
        TargetSparsity(optimizer, **{"target": 0.9, "steps": 10, **options})


def test_another_optimizer_is_refused():
    for other, got in ((AdamW(make_model().parameters()), "an AdamW"), (AdamW, "the class AdamW"), (None, "None")):
        with pytest.raises(TypeError, match=rf"optimizer must be a ProxSGD, a ProxAdam or a Regularizer, got {got}\Z"):
            TargetSparsity(other, 0.9, steps=10)


@pytest.mark.parametrize(
    ("target", "advice"), [(95, ": a share, 0.95 for 95 %"), (1.5, ": .* 1.5 %"), (200, ""), (0, "")]
)
def test_a_target_in_percent_is_told_as_a_share(target, advice):
    with pytest.raises(ValueError, match=rf"\ATargetSparsity: target must be in \(0, 1\), got {target}{advice}\Z"):
        TargetSparsity(ProxSGD(make_model().parameters(), L1(1e-3)), target, steps=10)
