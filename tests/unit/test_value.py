"""The value of a regularizer is one node of the graph, with the derivatives of the formulas it stands for."""

import pytest
import torch
from torch import nn

from tests.cases import each_penalty
from tests.helpers import assert_close, make_model
from torchreg import L1, L2, GroupLasso, Nuclear, Regularizer, SoftOrthogonality
from torchreg.regularizer.value import penalty_value


def parameters(count=3):
    return [nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(count)]


def nodes_of(tensor):
    """The names of all nodes behind a tensor, those that accumulate into leaves aside."""
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return [node.name() for node in seen if "AccumulateGrad" not in node.name()]


@pytest.mark.parametrize("count", [1, 5, 500])
def test_many_values_are_one_node_however_many_parameters_there_are(count):
    params = [nn.Parameter(torch.randn(600_000 // count + 1)) for _ in range(count)]
    assert nodes_of(penalty_value([L1(0.1) + L2(0.2)] * count, params)) == ["PenaltySumBackward"]
    assert nodes_of(penalty_value([GroupLasso(0.1)] * count, parameters(count))) == ["PenaltySumBackward"]


def test_few_values_need_no_node_in_python():
    params = parameters(5)
    nodes = nodes_of(penalty_value([L1(0.1) + L2(0.2)] * 5, params, scale=0.5))
    assert len(nodes) == 4  # their concatenation, a slope, a product, a sum
    assert "PenaltySumBackward" not in nodes
    params += [nn.Parameter(torch.randn(5, dtype=torch.float64)), nn.Parameter(torch.randn((), dtype=torch.float64))]
    others = nodes_of(penalty_value([L1(0.1) + L2(0.2)] * 7, params, scale=0.5))
    assert others.count("ViewBackward0") == 3  # what has rows of another shape is made flat first
    assert len(others) == 4 + 3 + 1


def test_a_weight_for_which_there_are_kernels_is_not_among_few_values(monkeypatch):
    monkeypatch.setattr("torchreg.regularizer.value.kernel_for", lambda *_: None)  # compiling takes seconds
    model = nn.Linear(512, 512)
    for compile in (False, True):
        found = Regularizer(model, L1(0.1) + L2(0.2), compile=compile).value()
        again = penalty_value([L1(0.1) + L2(0.2)], [model.weight], compile=compile)
        for each in (found, again):
            assert (nodes_of(each) == ["PenaltySumBackward"]) is compile


def test_the_value_of_a_model_adds_a_node_for_its_scale_only():
    model = nn.Linear(800, 800)
    regularizer = Regularizer(model, L1(0.1) + L2(0.2))
    assert nodes_of(regularizer.value()) == ["PenaltySumBackward"]
    regularizer.scale = 0.5
    assert sorted(nodes_of(regularizer.value())) == ["MulBackward0", "PenaltySumBackward"]


@pytest.mark.shows("loss")
@each_penalty
def test_value_and_gradients_are_those_of_the_formulas(case):
    params, weights = parameters(), (2.0, -1.0)
    penalties = [case.penalty, L2(0.3), case.penalty]
    ours = penalty_value(penalties, params)
    assert_close(ours, case.formula(params[0]) + 0.15 * params[1].square().sum() + case.formula(params[2]))
    for weight in weights:  # the loss may come with any factor, and none is taken for 1
        found = torch.autograd.grad(weight * ours, params, retain_graph=True)
        by_hand = weight * (case.formula(params[0]) + 0.15 * params[1].square().sum() + case.formula(params[2]))
        assert_close(found, torch.autograd.grad(by_hand, params))


@pytest.mark.shows("loss")
@each_penalty
def test_a_second_derivative_goes_through(case):
    params = parameters(1)
    (first,) = torch.autograd.grad(penalty_value([case.penalty], params), params, create_graph=True)
    (expected,) = torch.autograd.grad(case.formula(params[0]), params, create_graph=True)
    for gradient in (first, expected):
        assert_close(gradient, expected)
    if expected.requires_grad:
        second, reference = (
            torch.autograd.grad(g.square().sum(), params, allow_unused=True)[0] for g in (first, expected)
        )
        zero = torch.zeros_like(params[0])
        assert_close(zero if second is None else second, zero if reference is None else reference, tolerance=1e-9)


def test_frozen_parameters_get_no_gradient():
    params = parameters(2)
    params[0].requires_grad_(False)
    penalty_value([L2(1.0)] * 2, params).backward()
    assert params[0].grad is None
    assert_close(params[1].grad, params[1].detach())


def test_a_parameter_changed_between_value_and_backward_is_noticed_as_autograd_does():
    params = parameters(1)
    value = penalty_value([L2(1.0)], params)
    with torch.no_grad():
        params[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_the_transforms_of_torch_func_see_the_formulas(transform):
    w = torch.randn(5, 4, 3, dtype=torch.float64)
    penalty = L1(0.1) + L2(0.2)

    def value(w):
        return penalty_value([penalty], [w])

    if transform == "grad":
        assert_close(torch.func.grad(value)(w), penalty.gradient(w))
    else:
        assert_close(torch.func.vmap(value)(w), torch.stack([penalty.value(member) for member in w]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_many_weights_of_all_sizes_are_penalized_as_one_by_one(dtype):
    shared, other = L1(0.1) + L2(0.2), Nuclear(0.3)
    sizes = [3, 5, 0, 600, 7, 1, 700, 8]  # squared: two are larger than a piece
    penalties = [other if i == 4 else shared for i in range(len(sizes))]
    params = [nn.Parameter(torch.randn(n, n).to(dtype)) for n in sizes]
    params[1].requires_grad_(False)
    value = penalty_value(penalties, params)
    precise = sum(p.value(w.double()) for p, w in zip(penalties, params, strict=True))
    assert_close(value.double(), precise, tolerance=1e-2 if dtype == torch.bfloat16 else 1e-5)
    value.backward()
    for penalty, w in zip(penalties, params, strict=True):
        assert_close(
            w.grad,
            penalty.gradient(w.detach()) if w.requires_grad else None,
            tolerance=1e-2 if dtype == torch.bfloat16 else 1e-6,
        )


def test_gradients_of_a_bundle_do_not_share_memory_with_each_other():
    params = parameters(4)
    penalty_value([L2(1.0)] * 4, params).backward()
    params[0].grad.zero_()
    assert all(p.grad.any() for p in params[1:])


def test_many_small_values_do_not_outgrow_half_precision():
    params = [nn.Parameter(torch.ones(1, 1, dtype=torch.bfloat16)) for _ in range(1000)]
    assert penalty_value([GroupLasso(1.0)] * 1000, params) == 1000


def test_a_batch_of_gradients_goes_through():
    params = parameters(1)
    value = torch.stack([penalty_value([L1(0.1) + L2(0.2)], params), 2 * penalty_value([L1(0.1) + L2(0.2)], params)])
    (batch,) = torch.autograd.grad(value, params, torch.eye(2, dtype=torch.float64), is_grads_batched=True)
    gradient = (L1(0.1) + L2(0.2)).gradient(params[0].detach())
    assert_close(batch, torch.stack([gradient, 2 * gradient]))


def test_autocast_does_not_take_digits_from_the_penalty():
    w = nn.Parameter(torch.linalg.qr(torch.randn(64, 64)).Q)
    with torch.autocast("cpu", torch.bfloat16):
        assert penalty_value([SoftOrthogonality(1.0)], [w]) < 1e-8


class Penalized(nn.Module):
    """A loss that contains the value, as a forward pass under ``functional_call`` may."""

    def __init__(self, penalty, scale=1.0):
        super().__init__()
        self.model = make_model()
        self.regularizer = Regularizer(self.model, penalty)
        self.regularizer.scale = scale

    def forward(self, x):
        return self.model(x).square().mean() + self.regularizer.value()


@pytest.mark.parametrize("scale", [0.5, {"0.weight": 0.5, "2.weight": 2.0}], ids=["one scale", "scales"])
@pytest.mark.parametrize("penalty", [L1(0.1) + L2(0.2), GroupLasso(0.3), Nuclear(0.2)], ids=repr)
def test_in_a_functional_call_the_value_is_that_of_its_tensors(penalty, scale):
    module = Penalized(penalty, scale)
    params = {name: param.detach() + 0.3 for name, param in module.named_parameters()}
    x = torch.randn(3, 6, dtype=torch.float64)
    given = {name: param.clone().requires_grad_() for name, param in params.items()}
    scales = scale if isinstance(scale, dict) else dict.fromkeys(("0.weight", "2.weight"), scale)
    expected = []
    for one in x:
        loss = (
            torch.func.functional_call(module.model, {n[6:]: p for n, p in given.items()}, (one[None],)).square().mean()
        )
        loss = loss + sum(own * penalty.value(given[f"model.{name}"]) for name, own in scales.items())
        expected.append(torch.autograd.grad(loss, list(given.values())))

    def loss_of(params, one):
        return torch.func.functional_call(module, params, (one[None],))

    for transform in (torch.func.grad, torch.func.jacrev):
        found = torch.func.vmap(transform(loss_of), in_dims=(None, 0))(params, x)
        for name, each in zip(params, zip(*expected, strict=True), strict=True):
            assert_close(found[name], torch.stack(each), tolerance=1e-10)
    before = module.regularizer.value()
    functions = torch.func.functional_call(module, params, (x,))
    assert functions != module(x)
    assert_close(module.regularizer.value(), before)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # of torch's own forward mode
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.jacfwd])
def test_a_derivative_by_other_tensors_than_the_models_own_is_told(transform):
    model = make_model()
    regularizer = Regularizer(model, L2(0.2))
    params = {name: param.detach() for name, param in model.named_parameters()}

    def loss_of(params, x):
        return torch.func.functional_call(model, params, (x[None],)).square().mean() + regularizer.value()

    with pytest.warns(
        RuntimeWarning, match="by which torch.func takes no derivative here: call it in the forward pass"
    ):
        torch.func.vmap(transform(loss_of), in_dims=(None, 0))(params, torch.randn(3, 6, dtype=torch.float64))


@pytest.mark.parametrize("twice", [False, True])
def test_a_gradient_goes_through_vmap(twice):
    params = parameters(2)
    penalty = L2(0.2) + L2(0.3)
    value = penalty_value([penalty] * 2, params)
    scales = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = torch.func.vmap(
        lambda scale: torch.autograd.grad(value, params, scale, retain_graph=True, create_graph=twice)
    )(scales)
    for gradient, param in zip(found, params, strict=True):
        assert_close(gradient, torch.stack([scale * penalty.gradient(param.detach()) for scale in scales]))
