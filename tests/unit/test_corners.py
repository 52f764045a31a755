"""Zero, empty, frozen, tied, sparse, half: the corners in which a penalty must do no harm."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import PENALTIES, SHAPED, each_case_and_mode, each_step_mode
from tests.helpers import (
    assert_bit_equal,
    assert_close,
    assert_differs,
    engaged,
    make_data,
    make_model,
    train,
    weights_of,
)
from tests.optimizers import each_fused
from tests.unit.training import PENALTY, run, set_gradients, sgd
from torchreg import L2, Regularizer
from torchreg.nn import ConcreteDropout


@each_case_and_mode
@pytest.mark.parametrize(("scale", "lr"), [(1.0, 0.1), (0.0, 0.1), (1.0, 0.0)], ids=["", "strength 0", "lr 0"])
def test_zero_weights_strengths_and_learning_rates_make_no_nan(case, mode, scale, lr):
    model = make_model()
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    regularizer = Regularizer(model, case.penalty, mode=mode)
    regularizer.scale = scale
    criterion = engaged(regularizer, optimizer)
    for weights in train(model, optimizer, 3, criterion=criterion).values():
        assert weights.isfinite().all()
        assert lr > 0 or not weights.any()


@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_a_later_reader_of_the_gradient_sees_that_of_the_loss(mode):
    model, (x, y) = make_model(), make_data()
    optimizer = sgd(model)
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    F.mse_loss(model(x), y).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert_bit_equal([p.grad for p in model.parameters()], gradients)


@each_step_mode
def test_an_empty_weight_is_no_trouble(mode):
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(0, 3))
    model.weight.grad = torch.empty(0, 3)
    optimizer = sgd(model)
    regularizer = Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    optimizer.step()
    assert regularizer.value().item() == 0


@each_step_mode
def test_weights_of_all_sizes_are_penalized_once_in_a_step(mode):
    model = nn.ParameterList(torch.randn(n, n, dtype=torch.float64) for n in (3, 400, 600, 400, 5))  # squared
    before = weights_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    set_gradients(model, 0.0)
    optimizer.step()
    moved = {
        name: PENALTY.prox(w, 0.1) if mode == "prox" else w - 0.1 * PENALTY.gradient(w) for name, w in before.items()
    }
    assert_close(weights_of(model), moved)


@each_step_mode
def test_without_a_learning_rate_nothing_moves(mode):
    before = weights_of(make_model())
    assert_bit_equal(run(mode, lambda params: torch.optim.SGD(params, lr=0.0)), before)


@each_step_mode
@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05, dtype=torch.float64)], ids=["number", "tensor"])
def test_a_learning_rate_may_be_a_tensor(mode, lr):
    make = lambda params: torch.optim.SGD(params, lr=lr, momentum=0.9, foreach=False)  # noqa: E731
    assert_close(run(mode, make), run(mode))


@pytest.mark.parametrize("maximize", [True, False])
def test_a_maximizing_optimizer_still_shrinks_the_weights(maximize):
    ours, theirs = make_model(), make_model()
    optimizer = sgd(ours, maximize=maximize)
    Regularizer(ours, {"*": L2(0.3)}, mode="grad", select=lambda info: True).attach(optimizer)
    reference = sgd(theirs, maximize=maximize, weight_decay=0.3)
    assert_close(train(ours, optimizer, steps=5), train(theirs, reference, steps=5))


@each_step_mode
def test_weights_without_a_gradient_are_left_alone(mode):
    model = make_model()
    model.head = nn.Linear(4, 4)
    optimizer = sgd(model)
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    before = weights_of(model)
    after = train(model[:3], optimizer, steps=2)
    assert_bit_equal(model.head.weight.data, before["head.weight"])
    assert_differs(after["0.weight"], before["0.weight"])


@each_step_mode
def test_frozen_weights_are_left_alone_even_with_a_stale_gradient(mode):
    model = make_model()
    optimizer = sgd(model)
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    model[0].weight.requires_grad_(False)
    grad, before = model[0].weight.grad.clone(), model[0].weight.clone()
    optimizer.step()
    assert_bit_equal(model[0].weight, before)
    assert_bit_equal(model[0].weight.grad, grad)


def test_a_tied_weight_counts_once():
    results = []
    for decay in (0.3, 0.0):
        layer = nn.Linear(3, 3, dtype=torch.float64, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(3))
        model = nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 3, dtype=torch.float64, bias=False))
        model[2].weight = layer.weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
        regularizer = Regularizer(model, L2(0.3), mode="grad")
        if not decay:
            regularizer.attach(optimizer)
        assert_close(regularizer.value().detach(), torch.tensor(0.45, dtype=torch.float64))
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
            optimizer.step()
        results.append(weights_of(model))
    assert_close(*results)


def test_sparse_gradients_are_refused_in_mode_grad_and_served_in_the_others():
    for mode in ("grad", "decoupled", "prox"):
        model = nn.Embedding(5, 2, sparse=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Regularizer(model, L2(1.0), mode=mode).attach(optimizer)
        before = model.weight.detach().clone()
        model(torch.tensor([0])).sum().mul(0).backward()
        if mode == "grad":
            with pytest.raises(ValueError, match="needs dense gradients"):
                optimizer.step()
        else:
            optimizer.step()
            shrunk = 0.9 * before if mode == "decoupled" else before / 1.1
            assert_close(model.weight.detach(), shrunk, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_fused
@each_step_mode
def test_half_precision_weights_keep_their_dtype_and_stay_finite(mode, make_optimizer, dtype):
    model = make_model(dtype=dtype)
    optimizer = make_optimizer(model.parameters())
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    for value in train(model, optimizer, 3).values():
        assert value.dtype == dtype
        assert value.isfinite().all()


@pytest.mark.parametrize("penalty", [case.penalty for case in PENALTIES + SHAPED if case.is_proximal], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_proximal_step_of_size_0_changes_no_weight_however_small(penalty, dtype):
    tiny = torch.finfo(dtype).smallest_normal
    w = torch.tensor([[tiny, -tiny, 0.0], [1.0, -3.0, tiny], [0.0, 0.0, 0.0], [2.0, 2.0, -tiny]], dtype=dtype)
    assert_bit_equal(penalty.prox(w, 0.0), w)
    assert_bit_equal(penalty.prox(w, torch.tensor(0.0)), w)


def test_a_learned_rate_near_1_is_no_nan_in_half_precision():
    layer = ConcreteDropout(nn.Linear(4, 1), 1 - 1e-9).half()
    output = layer(torch.ones(64, 4, dtype=torch.float16))
    output.sum().backward()
    assert output.isfinite().all()
    assert layer.logit_p.grad.isfinite()
