"""torch's own cases for its optimizers: each configuration, complex weights, schedulers and errors, on our classes."""

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal, assert_close
from tests.optimizers import COUPLINGS
from torchreg.optim import decoupled

pytest.importorskip("expecttest")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # whatever torch's private modules say of themselves
    cases = pytest.importorskip("torch.testing._internal.common_optimizers", exc_type=ImportError)
    # They forbid all later tests to set torch.backends' flags, which torch has no function to allow again.
    vars(torch.backends)["__allow_nonbracketed_mutation_flag"] = True

SAME_RULE = (torch.optim.AdamW, torch.optim.Adafactor, torch.optim.Muon)  # with a decay of this kind already
INPUTS = [
    (info, case)
    for info in cases.optim_db
    for case in cases._get_optim_inputs_including_global_cliquey_kwargs("cpu", torch.float64, info)
]
ERRORS = [(info, case) for info in cases.optim_db for case in info.optim_error_inputs_func("cpu", torch.float32)]
each_info = pytest.mark.parametrize("info", cases.optim_db, ids=lambda info: info.name)
each_input = pytest.mark.parametrize(
    ("info", "case"), INPUTS, ids=[f"{info.name}-{case.desc or 'default'}" for info, case in INPUTS]
)
each_error = pytest.mark.parametrize(
    ("info", "case"), ERRORS, ids=[f"{info.name}-{case.optimizer_error_input.desc}" for info, case in ERRORS]
)


def make_weights(kwargs, dtype=torch.float64):
    values = [torch.linspace(-1, 1, 6).reshape(2, 3), torch.linspace(2, -1, 4).reshape(4, 1)]
    values = [value.to(dtype) * (1 + 1j if dtype.is_complex else 1) for value in values]
    return values if kwargs.get("differentiable") else [nn.Parameter(value) for value in values]


def step(info, optimizer, weights, steps=2):
    def closure():
        for w in weights:
            gradient = 0.5 * w.detach() + 0.1
            w.grad = gradient.to_sparse(1) if info.only_supports_sparse_grads else gradient
        return sum((w.detach().abs() ** 2).sum() for w in weights)

    with torch.sparse.check_sparse_tensor_invariants():
        for _ in range(steps):
            if info.step_requires_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()


def ours_of(info, kwargs, weights, **options):
    kwargs = {key: value for key, value in copy.deepcopy(kwargs).items() if key != "decoupled_weight_decay"}
    return decoupled(info.optim_cls)(weights, **{**kwargs, **options})


def expected_after(info, kwargs, decay, steps, dtype):
    """The weights after the base's steps: with its own decay where that is ours, else multiplied by hand before."""
    cls, weights, kwargs = info.optim_cls, make_weights(kwargs, dtype), copy.deepcopy(kwargs)
    own = issubclass(cls, SAME_RULE) or kwargs.get("decoupled_weight_decay")
    if "weight_decay" in cls(make_weights(kwargs, dtype), **kwargs).defaults:
        kwargs["weight_decay"] = decay if own else 0
    optimizer = cls(weights, **kwargs)
    for _ in range(steps):
        step(info, _Decaying(optimizer, weights, 0 if own else decay), weights, steps=1)
    return [w.detach() for w in weights]


class _Decaying:
    """Multiplies the weights when the gradients are there, then makes the step."""

    def __init__(self, optimizer, weights, decay):
        self.optimizer, self.weights, self.decay = optimizer, weights, decay

    def step(self, closure=None):
        if self.decay:
            for w in self.weights:
                w.data.mul_(1 - self.optimizer.param_groups[0]["lr"] * self.decay)
        self.optimizer.step(*([closure] if closure else []))


@each_input
@pytest.mark.parametrize("decay", [None, 0.3], ids=["torch's decay", "decay 0.3"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_each_configuration_multiplies_then_makes_the_bases_step(info, case, decay, dtype):
    if dtype.is_complex and not (info.supports_complex and not case.kwargs.get("fused")):
        pytest.skip("not for complex weights")
    if decay is None:
        decay = case.kwargs.get("weight_decay", decoupled(info.optim_cls)(make_weights({})).defaults["weight_decay"])
    elif info.step_requires_closure:
        pytest.skip("its first evaluation comes before the decay")
    weights = make_weights(case.kwargs, dtype)
    step(info, ours_of(info, case.kwargs, weights, weight_decay=decay), weights, steps=4)
    assert_close([w.detach() for w in weights], expected_after(info, case.kwargs, decay, 4, dtype))


@each_input
@pytest.mark.parametrize("coupling", ["lr", "schedule"])
def test_each_configuration_is_saved_copied_and_joined_by_a_group(info, case, coupling):
    kwargs, weights = case.kwargs, make_weights(case.kwargs)
    optimizer = ours_of(info, kwargs, weights, coupling=coupling, weight_decay=0.1)
    step(info, optimizer, weights)
    # a copy of torch's own LBFGS forgets its parameters, and cannot step
    its_optimizer = copy.deepcopy(optimizer) if info.optim_cls is not torch.optim.LBFGS else optimizer
    twins = [w for group in its_optimizer.param_groups for w in group["params"]]
    fresh = [w.detach().clone().requires_grad_(w.requires_grad) for w in weights]
    resumed = ours_of(info, kwargs, fresh, coupling=coupling, weight_decay=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    held = {optimizer: weights, its_optimizer: twins, resumed: fresh}
    for holder, params in held.items():
        if info.supports_param_groups:
            params += (added := make_weights(kwargs)[:1])
            holder.add_param_group({"params": added, "weight_decay": 0.2})
        step(info, holder, params)
    assert_bit_equal([w.detach() for w in twins], [w.detach() for w in weights])
    # torch's NAdam keeps a product in single precision, and loads it in double
    tolerance = 1e-6 if info.optim_cls is torch.optim.NAdam else 1e-14
    assert_close([w.detach() for w in fresh], [w.detach() for w in weights], tolerance=tolerance)


@each_info
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_each_of_its_schedulers_is_taken_with_a_group_that_is_added_on_the_way(info, coupling):
    for constructors in info.scheduler_inputs:
        weights, added = make_weights({})
        group = {"params": [weights], "max_lr": 0.2}  # cyclic schedules raise lr above that of the start
        optimizer = decoupled(info.optim_cls)([group], lr=0.1, weight_decay=0.1, coupling=coupling)
        schedulers = [constructor(optimizer) for constructor in constructors]
        for number in range(4):
            if number == 2 and info.supports_param_groups:
                optimizer.add_param_group({"params": [added], "max_lr": 0.2})
            step(info, optimizer, [weights, added], steps=1)
            for scheduler in schedulers:
                scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        assert weights.isfinite().all()
        assert added.isfinite().all()


@each_error
def test_each_error_is_torchs_own(info, case):
    given = case.optimizer_error_input
    weights = given.params if given.params is not None else [nn.Parameter(torch.randn(2, 3))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if case.error_on is cases.OptimizerErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                ours_of(info, given.kwargs, weights)
        else:
            optimizer = ours_of(info, given.kwargs, weights)
            with pytest.raises(case.error_type, match=case.error_regex):
                optimizer.step()
