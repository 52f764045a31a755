"""A regularizer keeps a plan of what a step changes; whatever changes meanwhile is seen in the next step."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from torchreg import L1, L2, ElasticNet, Huber, Regularizer
from torchreg.steps.plan import Bundle

LR, STRENGTH = 0.5, 0.25
MANY = [(3, 4)] * 5 + [(7,)] * 2 + [(2, 3, 1)]  # of one penalty: they form a bundle


def weights_of(shapes, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    return nn.ParameterList([nn.Parameter(torch.randn(shape, generator=draw, dtype=dtype)) for shape in shapes])


def everything(place):
    return True


def attached(mode, shapes=MANY, penalty=None, optimizer=torch.optim.SGD, **options):
    params = weights_of(shapes)
    made = optimizer(params, lr=LR, **options)
    return params, made, Regularizer(params, penalty or L2(STRENGTH), mode=mode, select=everything).attach(made)


def step(optimizer, params, gradient=0.0):
    """A step with the same gradient everywhere; returns the weights before it."""
    before = [p.detach().clone() for p in params]
    for param in params:
        if param.grad is not None or not hasattr(param, "left_out"):
            param.grad = torch.full_like(param, gradient)
    optimizer.step()
    return before


def shrunk(mode, w):
    """A ridge after one step of SGD with gradient 0, by the formulas of the modes."""
    return w / (1 + LR * STRENGTH) if mode == "prox" else w * (1 - LR * STRENGTH)


each_mode = pytest.mark.parametrize("mode", ["grad", "decoupled", "prox"])


def assert_shrunk(mode, params, before, but=()):
    for i, (param, old) in enumerate(zip(params, before, strict=True)):
        expected = old if i in but else shrunk(mode, old)
        torch.testing.assert_close(param.detach(), expected, rtol=1e-14, atol=0, msg=f"parameter {i}")


@each_mode
def test_many_small_weights_take_the_step_that_each_takes_alone(mode):
    for penalty in (L1(0.1), L2(0.1), L1(0.1) + L2(0.2), ElasticNet(0.3), Huber(0.2)):
        params, optimizer, _ = attached(mode, penalty=penalty)
        alone = [attached(mode, [shape], penalty) for shape in MANY]
        for one, param in zip(alone, params, strict=True):
            one[0][0].data.copy_(param.data)
        for gradient in (0.0, 0.3, -0.1):
            step(optimizer, params, gradient)
            for own, other, _ in alone:
                step(other, own, gradient)
        for param, (own, _, _) in zip(params, alone, strict=True):
            assert param.equal(own[0])  # to the bit


@each_mode
def test_bundles_hold_each_weight_once_however_many_there_are(mode):
    params, optimizer, _ = attached(mode, [(100, 150)] * 11 + [(1, 1)])  # more than one bundle
    for _ in range(2):
        assert_shrunk(mode, params, step(optimizer, params))


@each_mode
def test_a_weight_that_loses_its_gradient_or_is_frozen_stays_and_moves_again_later(mode):
    params, optimizer, _ = attached(mode)
    assert_shrunk(mode, params, step(optimizer, params))
    params[2].grad, params[2].left_out = None, True
    assert_shrunk(mode, params, step(optimizer, params), but=[2])
    params[2].grad = torch.zeros_like(params[2])
    params[4].requires_grad_(False)
    assert_shrunk(mode, params, step(optimizer, params), but=[4])
    params[4].requires_grad_(True)
    assert_shrunk(mode, params, step(optimizer, params))


@each_mode
def test_weights_whose_memory_is_replaced_are_followed(mode):
    params, optimizer, _ = attached(mode)
    step(optimizer, params)
    for param in params:
        param.data = param.data.clone()
    assert_shrunk(mode, params, step(optimizer, params))
    params[0].data = torch.ones(5, 6, dtype=torch.float64)  # another shape
    params[1].data = params[1].data.t().contiguous().t()  # other strides
    assert_shrunk(mode, params, step(optimizer, params))
    params.float()
    before = step(optimizer, params)
    for param, old in zip(params, before, strict=True):
        assert param.dtype == torch.float32
        torch.testing.assert_close(param.detach(), shrunk(mode, old))


@each_mode
def test_another_shape_or_other_strides_at_the_same_place_are_seen(mode):
    shapes = [(4, 4)] * 6
    whole = torch.randn(32, dtype=torch.float64)
    changes = {
        "transposed": lambda w: w.t(),
        "fewer rows": lambda w: w[:2],
        "viewed": lambda w: w.view(2, 8),
        "more rows": lambda w: whole.view(8, 4),
    }
    for change in changes.values():
        params, optimizer, _ = attached(mode, shapes)
        params[0].data = whole[:16].view(4, 4)
        step(optimizer, params)
        params[0].grad = None
        params[0].data = change(params[0].data)
        assert_shrunk(mode, params, step(optimizer, params))


@pytest.mark.parametrize("mode", ["decoupled", "prox"])
def test_weights_in_the_same_memory_take_a_step_each(mode):
    params, optimizer, _ = attached(mode, [(4, 4)] * 6)
    whole = torch.ones(24, dtype=torch.float64)
    params[0].data, params[1].data = whole[:16].view(4, 4), whole[8:].view(4, 4)
    step(optimizer, params)
    once = shrunk(mode, torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(whole, torch.cat([once, shrunk(mode, once), once]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_that_are_kept_in_single_precision_are_not_rounded(dtype):
    params = weights_of([(3, 4)] * 5, dtype)
    optimizer = torch.optim.SGD(params, lr=LR)
    Regularizer(params, L2(STRENGTH), mode="grad", select=everything).attach(optimizer)
    step(optimizer, params)  # its plan has bundles
    for param in params:
        param.grad, param.grad_dtype = None, torch.float32
        param.grad = torch.full(param.shape, 1e6 + 0.25)  # float16 could not hold it
    before = [p.detach().float() for p in params]
    with contextlib.suppress(RuntimeError):  # SGD itself may refuse two dtypes, after the penalty
        optimizer.step()
    for param, old in zip(params, before, strict=True):
        torch.testing.assert_close(param.grad, 1e6 + 0.25 + STRENGTH * old, rtol=1e-7, atol=0)


@each_mode
def test_a_step_in_inference_mode_can_come_before_others(mode):
    params, optimizer, _ = attached(mode)
    with torch.inference_mode():
        before = [p.detach().clone() for p in params]
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert_shrunk(mode, params, before)
    assert_shrunk(mode, params, step(optimizer, params))


@each_mode
def test_weights_that_share_memory_with_a_larger_tensor_are_changed_there(mode):
    params, optimizer, _ = attached(mode)
    step(optimizer, params)
    whole = torch.ones(5 * 12, dtype=torch.float64)
    for param, part in zip(params[:5], whole.split(12), strict=True):
        param.data = part.view(3, 4)
    step(optimizer, params)
    torch.testing.assert_close(whole, shrunk(mode, torch.ones_like(whole)))


@each_mode
def test_a_group_that_is_added_and_a_learning_rate_that_changes_are_seen(mode):
    params = weights_of(MANY)
    optimizer = torch.optim.SGD(list(params)[:4], lr=LR)
    with pytest.raises(ValueError, match="must hold every penalized parameter"):
        Regularizer(params, L2(STRENGTH), mode=mode, select=everything).attach(optimizer)
    optimizer.add_param_group({"params": list(params)[4:]})
    Regularizer(params, L2(STRENGTH), mode=mode, select=everything).attach(optimizer)
    assert_shrunk(mode, params, step(optimizer, params))
    optimizer.param_groups[1]["lr"] = 0.0
    assert_shrunk(mode, params, step(optimizer, params), but=range(4, len(MANY)))
    optimizer.param_groups[0]["params"].append(optimizer.param_groups[1]["params"].pop())
    assert_shrunk(mode, params, step(optimizer, params), but=range(4, len(MANY) - 1))


@each_mode
def test_groups_that_a_checkpoint_replaced_are_the_ones_that_are_read(mode):
    params, optimizer, _ = attached(mode)
    step(optimizer, params)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["lr"] = 0.0
    optimizer.load_state_dict(state)
    assert_shrunk(mode, params, step(optimizer, params), but=range(len(MANY)))


@each_mode
def test_a_scale_for_all_and_scales_for_each_can_take_turns(mode):
    params, optimizer, regularizer = attached(mode)
    step(optimizer, params)
    names = [name for name, _ in params.named_parameters()]
    regularizer.scale = {name: float(i % 2) for i, name in enumerate(names)}
    assert_shrunk(mode, params, step(optimizer, params), but=range(0, len(MANY), 2))
    regularizer.scale = {name: float((i + 1) % 2) for i, name in enumerate(names)}
    assert_shrunk(mode, params, step(optimizer, params), but=range(1, len(MANY), 2))
    regularizer.scale = 1.0
    assert_shrunk(mode, params, step(optimizer, params))
    regularizer.scale = 0.0
    assert_shrunk(mode, params, step(optimizer, params), but=range(len(MANY)))


@each_mode
def test_a_copy_has_a_plan_of_its_own(mode):
    params, optimizer, regularizer = attached(mode)
    before = step(optimizer, params)
    after = [p.detach().clone() for p in params]
    own, its_optimizer, _ = copy.deepcopy((params, optimizer, regularizer))
    assert_shrunk(mode, own, step(its_optimizer, own))
    assert_shrunk(mode, params, before)
    assert all(param.equal(old) for param, old in zip(params, after, strict=True))


@each_mode
def test_gradients_of_other_strides_are_changed_as_they_lie(mode):
    params, optimizer, _ = attached(mode)
    for _ in range(2):
        before = [p.detach().clone() for p in params]
        for param in params:
            param.grad = torch.zeros(param.shape[::-1], dtype=param.dtype).permute(*range(param.ndim)[::-1])
        optimizer.step()
        assert_shrunk(mode, params, before)


def test_the_gradients_hold_the_penalty_after_the_step_in_mode_grad():
    params, optimizer, _ = attached("grad")
    for _ in range(2):
        before = step(optimizer, params, gradient=0.5)
        for param, old in zip(params, before, strict=True):
            torch.testing.assert_close(param.grad, 0.5 + STRENGTH * old)


def test_a_bundle_changes_the_versions_of_its_weights():
    w = nn.Parameter(torch.ones(2))
    bundle = Bundle([0, 1], [w, nn.Parameter(torch.ones(3))], takes_gradients=False)
    before = w._version
    with torch.no_grad():
        bundle.update(lambda flat, number: flat.mul_(number), 2.0, ())
    assert w._version > before  # so that autograd refuses to use the old values
    assert w.tolist() == [2.0, 2.0]


# -- the value, which few weights have by one formula -----------------------------------------------------------------

FEW = {L1(0.3): (0.3, 0.0), L2(0.7): (0.0, 0.7), ElasticNet(0.5): (0.25, 0.25), L1(0.3) + L2(0.7): (0.3, 0.7)}
each_few = pytest.mark.parametrize(("penalty", "parts"), FEW.items(), ids=map(repr, FEW))


def expected_value(params, parts):
    lasso, ridge = parts
    return sum(lasso * p.abs().sum() + ridge / 2 * p.square().sum() for p in params if p.requires_grad)


@each_few
def test_the_value_follows_what_happens_to_the_weights(penalty, parts):
    params = weights_of([*MANY, (), ()])
    regularizer = Regularizer(params, penalty, select=everything)

    def check(scale=1.0, tolerance=1e-13):
        value, theirs = regularizer.value(), scale * expected_value(params, parts)
        torch.testing.assert_close(value, theirs.to(value.dtype), rtol=tolerance, atol=0)
        trained = [p for p in params if p.requires_grad]
        for ours, other in zip(torch.autograd.grad(value, trained), torch.autograd.grad(theirs, trained), strict=True):
            torch.testing.assert_close(ours, other.to(ours.dtype), rtol=tolerance, atol=tolerance)

    check()
    regularizer.scale = 0.25
    check(scale=0.25)
    params[1].requires_grad_(False)
    check(scale=0.25)
    params[1].requires_grad_(True)
    with torch.no_grad():
        for param in params:
            param.mul_(-2).view(-1)[0] = 0.0
    check(scale=0.25)
    params[2].data = params[2].data.t()  # as many, in rows of another shape
    check(scale=0.25)
    params[0].data = torch.full((800, 800), 0.5, dtype=torch.float64)  # no longer few
    check(scale=0.25)
    regularizer.scale = torch.tensor(0.5)
    check(scale=0.5)
    params.float()
    check(scale=0.5, tolerance=1e-6)
    params[0].data = params[0].data[:2, :2].clone()
    params.half()
    check(scale=0.5, tolerance=2e-3)


@each_few
def test_the_value_of_few_weights_has_second_derivatives(penalty, parts):
    params = weights_of(MANY[:2])
    regularizer = Regularizer(params, penalty, select=everything)
    first = torch.autograd.grad(regularizer.value(), list(params), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), list(params), allow_unused=True)
    for param, own in zip(params, second, strict=True):
        expected = 2 * parts[1] * (parts[0] * param.sgn() + parts[1] * param)
        torch.testing.assert_close(torch.zeros_like(param) if own is None else own, expected)


@each_few
def test_at_scale_0_the_value_of_large_weights_is_0(penalty, parts):
    params = weights_of(MANY, torch.float32)
    params[0].data[0, 0] = 1e30 if parts[1] == 0 else 1.0  # its square is infinite, but it is not in R
    regularizer = Regularizer(params, penalty, select=everything)
    regularizer.scale = 0.0
    assert regularizer.value() == 0


@each_few
def test_few_weights_that_are_not_finite_stay_visible(penalty, parts):
    for bad in (float("nan"), float("inf"), -float("inf")):
        params = weights_of(MANY)
        params[0].data[0, 0] = bad
        value = Regularizer(params, penalty, select=everything).value()
        assert not value.isfinite()


@pytest.mark.cuda
@each_mode
def test_a_captured_step_uses_no_memory_of_a_plan_that_may_go(mode):
    params = weights_of(MANY, torch.float32).cuda()
    optimizer = torch.optim.SGD(params, lr=LR)
    regularizer = Regularizer(params, L2(STRENGTH), mode=mode, select=everything).attach(optimizer)
    for param in params:
        param.grad = torch.zeros_like(param)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        optimizer.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    regularizer._plans.clear()
    filler = [torch.full((1 << 16,), 7.0, device="cuda") for _ in range(64)]  # what was freed is used again
    before = [p.detach().clone() for p in params]
    graph.replay()
    torch.cuda.synchronize()
    assert all(bool((x == 7.0).all()) for x in filler)
    for param, old in zip(params, before, strict=True):
        torch.testing.assert_close(param.detach(), shrunk(mode, old))
