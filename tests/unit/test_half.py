"""Half-precision weights under a loss scale, or with tensors as numbers: the step of single precision, rounded."""

import pytest
import torch
from torch import nn

from tests.cases import PENALTIES, SHAPED
from torchreg import L1, L2, Huber, Regularizer, Stacked
from torchreg.regularizer.value import penalty_value

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
each = pytest.mark.parametrize("penalty", [case.penalty for case in PENALTIES + SHAPED if not case.is_steep], ids=repr)
SIZES = {"small ones": [(4, 3)] * 3, "large and small": [(4, 3), (600, 600), (4, 3)]}


def weights(shapes, dtype):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


def stepped(penalty, mode, dtype, log_scale, shapes, optimizer=torch.optim.SGD, gradient=0.25, **options):
    """The weights after a step from half-representable weights; without a scale with an optimizer that knows none."""
    model = nn.ParameterList(weights(shapes, torch.bfloat16)).to(dtype)
    made = optimizer(model.parameters(), **{"lr": 0.5, "fused": log_scale is not None} | options)
    if penalty is not None:
        Regularizer(model, penalty, mode=mode, select=lambda info: True).attach(made)
    for param in model:
        param.grad = torch.full_like(param, gradient)
    if log_scale is None:
        made.step()
    else:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**log_scale)
        scaler.scale(torch.ones(1))
        for param in model:
            param.grad = torch.full_like(param, gradient * 2.0**log_scale)
        scaler.step(made)
        assert not hasattr(made, "grad_scale")
    return [param.detach() for param in model]


def assert_rounded(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        eps = torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours.float(), theirs, rtol=4 * eps, atol=2 * eps)


@each
@HALF
@pytest.mark.parametrize("mode", ["grad", "decoupled"])
@pytest.mark.parametrize("log_scale", [16, 24])
def test_under_a_fused_scaler_every_penalty_acts_as_in_single_precision(penalty, mode, dtype, log_scale):
    gradient = 2.0**-12  # so that the loss's own gradient can be scaled
    shapes = [(4, 3)] * 2
    ours = stepped(penalty, mode, dtype, log_scale, shapes, gradient=gradient)
    assert_rounded(ours, stepped(penalty, mode, torch.float32, None, shapes, gradient=gradient))


@HALF
@pytest.mark.parametrize("shapes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.1), L1(0.1) + L2(0.1), Huber(0.1)], ids=repr)
def test_in_lists_and_in_chunks_too(penalty, mode, shapes, dtype):
    ours = stepped(penalty, mode, dtype, 20, shapes, gradient=2.0**-12)
    assert_rounded(ours, stepped(penalty, mode, torch.float32, None, shapes, gradient=2.0**-12))


@HALF
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=lambda make: make.__name__)
@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("log_scale", [0, 16, 24])
def test_a_ridge_is_the_weight_decay_of_torch(make, strength, log_scale, dtype):
    options = {"optimizer": make, "gradient": 2.0**-12, "lr": 0.05}
    ours = stepped(L2(strength), "grad", dtype, log_scale, [(4, 3)] * 2, **options)
    theirs = stepped(None, "grad", dtype, log_scale, [(4, 3)] * 2, weight_decay=strength, **options)
    assert_rounded(ours, [w.float() for w in theirs])


def test_gradients_that_have_room_are_scaled_by_what_the_scaler_says():
    model = nn.ParameterList([torch.full((2, 2), 0.5, dtype=torch.float16), torch.ones(2, 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
    Regularizer(model, L2(0.1), mode="grad").attach(optimizer)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.extend([optimizer.grad_scale, model[0].grad, model[1].grad]))
    for scale, left in ((2.0**16, 2.0**16), (2.0**24, 2.0**20)):
        seen.clear()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(1))
        for param in model:
            param.grad = torch.zeros_like(param)
        scaler.step(optimizer)
        assert seen[0] == left
    # What the fused kernel leaves behind are the unscaled gradients of both.
    torch.testing.assert_close(model[0].grad, torch.full((2, 2), 0.05, dtype=torch.float16))
    torch.testing.assert_close(model[1].grad, torch.full((2, 2), 0.1))


def test_an_overflow_of_the_loss_itself_still_skips_the_step():
    model = nn.ParameterList([torch.ones(2, 2, dtype=torch.float16), torch.ones(2, 2, dtype=torch.float16)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    Regularizer(model, L2(0.1), mode="grad").attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    scaler.scale(torch.ones(1))
    for param, value in zip(model, (torch.inf, 1.0), strict=True):
        param.grad = torch.full_like(param, value)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**23
    assert all((param == 1).all() for param in model)


@each
@HALF
@pytest.mark.parametrize("log_scale", [16, 24])
@pytest.mark.parametrize("twice", [False, True], ids=["", "create_graph"])
def test_a_factor_of_the_loss_does_not_overflow_where_the_gradient_does_not(penalty, dtype, log_scale, twice):
    given = [0.02 * w for w in weights([(4, 3)] * 2, torch.float32)]
    results = []
    for kind in (dtype, torch.float32):
        params = [nn.Parameter(w.to(dtype).to(kind)) for w in given]
        value = penalty_value([penalty] * 2, params)
        factor = torch.tensor(2.0**log_scale)
        results.append(torch.autograd.grad(factor * value, params, create_graph=twice))
    limit = torch.finfo(dtype).max
    for ours, theirs in zip(*results, strict=True):
        eps = torch.finfo(dtype).eps
        size = float(theirs.detach().abs().max())
        kept = theirs.abs() < limit / 2
        torch.testing.assert_close(ours.float()[kept], theirs[kept], rtol=4 * eps, atol=eps * min(size, limit))


@HALF
@pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])
def test_a_scale_and_a_learning_rate_that_are_tensors_lose_no_digits(mode, dtype):
    results = []
    for kind, number in ((dtype, torch.tensor), (torch.float32, float)):
        model = nn.ParameterList(weights([(40, 30)] * 2, torch.bfloat16)).to(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=number(0.37), foreach=False)
        regularizer = Regularizer(model, L1(0.013) + L2(0.41), mode=mode)
        regularizer.scale = number(0.91)
        regularizer.attach(optimizer)
        for param in model:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        results.append([param.detach() for param in model])
    assert_rounded(*results)


@HALF
def test_a_stack_under_a_fused_scaler(dtype):
    stack = Stacked([nn.Linear(3, 4, bias=False, dtype=dtype) for _ in range(2)])
    before = next(stack.parameters()).detach().float()
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.5, fused=True)
    regularizer = Regularizer(stack, L2(1.0), mode="grad")
    regularizer.scale = torch.tensor([0.1, 0.4])
    regularizer.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    scaler.scale(torch.ones(1))
    next(stack.parameters()).grad = torch.zeros(2, 4, 3, dtype=dtype)
    scaler.step(optimizer)
    assert_rounded([next(stack.parameters()).detach()], [before * torch.tensor([0.95, 0.8]).view(2, 1, 1)])
