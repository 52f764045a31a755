"""Decoupled decay of weights of every kind: half, empty, huge, tied, frozen, without gradients or with sparse ones."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal, assert_close
from tests.optimizers import COUPLINGS, KERNELS, each_coupling, each_decoupled, each_decoupled_or_made, each_form
from tests.unit.training import a_weight, one_step


@each_decoupled_or_made
@each_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_decay_as_those_of_double_do(ours, base, options, form, dtype):
    if isinstance(base([a_weight()]).defaults.get("eps"), float):
        options = {**options, "eps": 1e-3}  # torch's own divide 0 by 0 if it rounds to 0
    results = []
    for kind in (dtype, torch.float64):
        groups = [
            {"params": [nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=kind))], "coupling": coupling}
            for coupling in COUPLINGS
        ]
        optimizer = ours(groups, **options, **form, weight_decay=0.25)
        for group in groups:
            group["params"][0].data.add_(1)
        one_step(optimizer)
        results.append([group["params"][0].detach() for group in groups])
    assert {w.dtype for w in results[0]} == {dtype}
    assert_close([w.double() for w in results[0]], results[1], tolerance=torch.finfo(dtype).eps)


@each_decoupled_or_made
@each_form
def test_empty_and_dimensionless_weights_are_taken(ours, base, options, form):
    for coupling in COUPLINGS:
        empty, single = (nn.Parameter(torch.full(shape, 2.0)) for shape in ((0, 3), ()))
        optimizer = ours([empty, single], **options, **form, coupling=coupling, weight_decay=0.5)
        single.data.add_(1)
        if base is torch.optim.Adafactor:  # torch's own takes no empty ones
            empty.requires_grad_(False)
            single.grad = torch.zeros(())
            optimizer.step()
        else:
            one_step(optimizer)
        assert 0 < single.item() < 3
        assert empty.shape == (0, 3)


@each_decoupled_or_made
@each_form
def test_a_huge_decay_stays_finite_and_a_rate_of_zero_moves_nothing(ours, base, options, form):
    w, still = a_weight(2.0), a_weight(2.0)
    huge = ours([w], **options, **form, weight_decay=1e30)
    idle = ours([still], **{**options, "lr": 0.0}, **form, weight_decay=0.5)
    w.data.add_(1)
    still.data.add_(1)
    one_step(huge)
    one_step(idle, 0.0 if base in (torch.optim.Rprop, torch.optim.Adafactor) else 1.0)
    assert math.isfinite(w.item())
    assert still.item() == 3.0


@each_decoupled
@each_coupling
def test_tied_weights_decay_once_and_frozen_ones_not_at_all(ours, base, options, coupling):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    tied, frozen = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    optimizer = ours(model.parameters(), **options, coupling=coupling, weight_decay=0.5)
    (model(torch.ones(1, 3)).sum() * 0).backward()
    optimizer.step()
    kept = 1 - 0.5 * {"lr": options["lr"], "corrected": options["lr"]}.get(coupling, 1.0)
    assert_close(model[0].weight.detach(), tied * kept, tolerance=1e-6)
    assert_bit_equal(model[2].weight.detach(), frozen)


@each_decoupled_or_made
@each_form
def test_weights_without_a_gradient_do_not_decay(ours, base, options, form):
    for coupling in COUPLINGS:
        still, moving = a_weight(), a_weight()
        optimizer = ours([still, moving], **options, coupling=coupling, **form, weight_decay=0.1)
        with torch.no_grad():  # away from the start
            still.add_(1)
            moving.add_(1)
        moving.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()
        assert still.item() == 2.0
        assert moving.item() < 2.0


@pytest.mark.parametrize("closure", [False, True], ids=["", "closure"])
@pytest.mark.parametrize("kind", sorted({row[0] for row in KERNELS.values()}, key=str), ids=lambda it: it.__name__)
def test_a_sparse_gradient_is_refused_before_anything_has_changed_or_is_taken(kind, closure):
    w, other = (nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    optimizer = kind([other, w], lr=0.1, weight_decay=0.1)
    before = str(optimizer.state_dict())
    with torch.sparse.check_sparse_tensor_invariants():
        other.grad, w.grad = torch.ones(3, 2), torch.eye(3, 2).to_sparse()
    step = partial(optimizer.step, (lambda: 1.0) if closure else None)
    if issubclass(kind, (torch.optim.SGD, torch.optim.Adagrad)):
        with torch.sparse.check_sparse_tensor_invariants():
            step()
        assert_close(w[2].detach(), torch.full((2,), 0.99), tolerance=1e-6)  # the whole weight decays
        return
    with pytest.raises(ValueError, match=r"\A\w+: gradients must be dense, got a sparse one .* shape \(3, 2\).*\Z"):
        step()
    assert_bit_equal([w.detach(), other.detach()], [torch.ones(3, 2)] * 2)
    assert str(optimizer.state_dict()) == before
