"""The coupled group lasso: its value, gradient and proximal operator, and what it does in an optimizer."""

import copy

import pytest
import torch

from tests.helpers import assert_bit_equal, assert_close
from tests.unit.test_compress_graphs import IMAGES, Block, randomized
from torchreg import CoupledGroupLasso, compress

# What makes the channels of the stream, and those of the bottleneck.
GROUPS = (
    ["stem.weight", "stem.bias", "up.weight", "up.bias"],
    ["down.weight", "down.bias", "norm.weight", "norm.bias"],
)


def groups_of(model):
    """The elements of each unit as one vector."""
    held = dict(model.named_parameters())
    for names in GROUPS:
        for unit in range(len(held[names[0]])):
            yield torch.cat([held[name][unit].reshape(-1) for name in names])


def lasso(model, strength=0.3, **options):
    return CoupledGroupLasso(model, IMAGES, strength, **options)


def test_value_and_gradient_are_those_of_the_vectors():
    model = randomized(Block())
    penalty = lasso(model, mode="loss")
    expected = 0.3 * sum(len(w) ** 0.5 * w.norm() for w in groups_of(model))
    assert_close(penalty.value(), expected)
    penalty.value().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = None
    expected.backward()
    assert_close(
        {n: g for n, g in found.items() if g is not None},
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
    )
    assert found["head.weight"] is None
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    penalty.add_gradients()
    assert_close(
        {n: model.get_parameter(n).grad for names in GROUPS for n in names},
        {n: found[n] for names in GROUPS for n in names},
    )


def test_the_gradient_of_a_zero_group_is_zero():
    model = randomized(Block())
    with torch.no_grad():
        for name in GROUPS[0]:
            model.get_parameter(name)[2] = 0
    lasso(model, mode="loss").value().backward()
    assert not model.stem.weight.grad[2].any()
    assert model.stem.weight.grad.isfinite().all()


@pytest.mark.parametrize("step", [0.1, 3.3])
def test_prox_is_the_minimum(step):
    model = randomized(Block())
    before = [w.detach().clone() for w in groups_of(model)]
    head = model.head.weight.detach().clone()
    penalty = lasso(model)
    penalty.prox(step)
    assert_bit_equal(model.head.weight.detach(), head)
    is_zero = []
    for w, u in zip(before, groups_of(model), strict=True):
        threshold = step * 0.3 * len(w) ** 0.5
        is_zero.append(not u.any())
        if is_zero[-1]:
            assert w.norm() <= threshold
        else:  # u - w + threshold * u / |u| = 0
            assert_close(u - w + threshold * u / u.norm(), torch.zeros_like(u))
    assert any(is_zero) == (step == 3.3)
    assert [bool(n == 0) for norms in penalty.norms().values() for n in norms] == is_zero


def test_of_a_group_that_is_zero_a_residual_network_loses_the_channel():
    model = randomized(Block())
    penalty = lasso(model)
    norms = torch.cat(list(penalty.norms().values()))
    sizes = torch.tensor([len(w) for w in groups_of(model)]).sqrt()
    penalty.strength = float((norms / sizes).sort().values[4:6].mean())
    penalty.prox(1.0)
    small = compress(model, IMAGES)
    assert small.stem.out_channels + small.down.out_channels == 10 - 5
    assert_close(small(IMAGES), model(IMAGES))


@pytest.mark.parametrize("mode", ["grad", "prox"])
def test_in_an_optimizer_it_is_the_step_written_out(mode):
    model, other = randomized(Block()), randomized(Block())
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, other))
    penalty, same = lasso(model, mode=mode), lasso(other, mode="loss")
    with penalty.attach(optimizer):
        for _ in range(3):
            for m, o in ((model, optimizer), (other, plain)):
                o.zero_grad()
                loss = m(IMAGES).square().mean() + (same.value() if m is other and mode == "grad" else 0)
                loss.backward()
                o.step()
            if mode == "prox":
                same.prox(0.01)
    assert_close(dict(model.named_parameters()), dict(other.named_parameters()), tolerance=1e-9)
    before = model.stem.weight.detach().clone()
    plain_step = before - 0.01 * model.stem.weight.grad
    optimizer.step()
    assert_close(model.stem.weight.detach(), plain_step)  # removed


def test_a_fixed_support_stays_without_further_shrinkage():
    model, other = randomized(Block()), randomized(Block())
    penalty = lasso(model)
    for m in (model, other):
        (penalty if m is model else lasso(m)).prox(3.3)
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, other))
    penalty.attach(optimizer)
    penalty.fix_support()
    zero = [not w.any() for w in groups_of(model)]
    assert 0 < sum(zero) < len(zero)
    for m, o in ((model, optimizer), (other, plain)):
        m(IMAGES).square().mean().backward()
        o.step()
    for is_zero, ours, theirs in zip(zero, groups_of(model), groups_of(other), strict=True):
        assert_close(ours, torch.zeros_like(ours) if is_zero else theirs)


def test_frozen_parameters_are_left_alone():
    model = randomized(Block())
    model.stem.requires_grad_(False)
    before = model.stem.weight.clone()
    lasso(model).prox(1e3)
    assert_bit_equal(model.stem.weight.detach(), before)
    assert not model.up.weight.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength must be finite and >= 0, got -1.0"),
        ({"strength": float("nan")}, "strength must be finite and >= 0, got nan"),
        ({"mode": "decoupled"}, "mode must be one of loss, grad, prox, got 'decoupled'"),
        ({"select": lambda units: False}, "no units are selected that could go"),
    ],
    ids=["negative", "nan", "mode", "select"],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lasso(Block().double(), **options)


def test_optimizers_that_do_not_fit_are_refused():
    model = randomized(Block())
    with pytest.raises(ValueError, match="the optimizer lacks some of the parameters"):
        lasso(model).attach(torch.optim.SGD(model.stem.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="in mode 'loss' add value"):
        lasso(model, mode="loss").attach(torch.optim.SGD(model.parameters(), lr=0.1))
    groups = [{"params": m.parameters(), "lr": 0.1 * k} for k, m in enumerate(model.children(), 1)]
    optimizer = torch.optim.SGD(groups)
    penalty = lasso(model).attach(optimizer)
    with pytest.raises(ValueError, match="already attached"):
        penalty.attach(optimizer)
    model(IMAGES).sum().backward()
    with pytest.raises(ValueError, match="needs one learning rate for all its parameters"):
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_is_unscaled_under_a_scaler(fused):
    results = []
    for scale in (None, 1024.0):
        model = randomized(Block())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
        penalty = lasso(model, mode="grad").attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(IMAGES).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        penalty.remove()
        results.append({name: p.detach() for name, p in model.named_parameters()})
    assert_close(*results, tolerance=1e-6)  # the kernel unscales in single precision


def test_a_checkpoint_of_the_optimizer_holds_the_fixed_support():
    model, other = randomized(Block()), randomized(Block())
    optimizer, resumed = (torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (model, other))
    penalty = lasso(model).attach(optimizer)
    penalty.prox(3.3)
    penalty.fix_support()
    penalty.strength = 0.5
    step(model, optimizer)
    other.load_state_dict(model.state_dict())
    twin = lasso(other).attach(resumed)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert twin.strength == 0.5
    for _ in range(2):
        step(model, optimizer)
        step(other, resumed)
    assert_bit_equal(dict(model.state_dict()), dict(other.state_dict()))
    assert any(not w.any() for w in groups_of(other))


def step(model, optimizer):
    optimizer.zero_grad()
    model(IMAGES).square().mean().backward()
    optimizer.step()


def test_a_state_of_other_units_and_a_maximizing_optimizer_are_refused():
    model = randomized(Block())
    with pytest.raises(ValueError, match=r"CoupledGroupLasso: state must hold the units of .*, got other"):
        lasso(model).load_state_dict({"strength": 1.0, "alive": {"other": torch.ones(1, dtype=torch.bool)}})
    with pytest.raises(ValueError, match="the optimizer must minimize, got maximize=True"):
        lasso(model).attach(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True))
