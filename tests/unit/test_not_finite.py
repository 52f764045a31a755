"""A weight that is not finite stays visible: in values, gradients and proximal steps of everything there is."""

import math

import pytest
import torch
from torch import nn

from tests.cases import CONSTRAINTS, PENALTIES, SHAPED, STEP_MODES
from tests.unit.training import set_gradients
from torchreg import (
    L1,
    L1SP,
    L2,
    MCP,
    SCAD,
    SRIP,
    ConvolutionNorm,
    ElasticNet,
    GroupLasso,
    LogSum,
    Lp,
    MaxNorm,
    Nuclear,
    ProximalPenalty,
    Regularizer,
    SparseGroupLasso,
    SpectralNorm,
    Stacked,
)
from torchreg.optim import ProxAdam, ProxSGD
from torchreg.penalties import Constraint
from torchreg.steps.kernels import kernel_for

NAN, INF = math.nan, math.inf
CORNERS = [  # where a formula is short of a term
    L1(0.0),
    L1SP(0.0, reference=torch.tensor(0.2)),
    Lp(0.3, p=1.0),
    Lp(0.0, p=0.5),
    Lp(0.3, p=2.0),
    LogSum(0.0),
    MCP(0.0),
    MCP(0.3, gamma=0.1),  # hard thresholding
    SCAD(0.0),
    ElasticNet(0.3, l1_ratio=1.0),
    SparseGroupLasso(0.3, l1_ratio=1.0),
    SparseGroupLasso(0.3, l1_ratio=0.0),
    0.5 * Nuclear(0.0),
    SpectralNorm(0.0),
]
EVERYTHING = [*(case.penalty for case in PENALTIES + SHAPED), *(case.constraint for case in CONSTRAINTS), *CORNERS]
each = pytest.mark.parametrize("penalty", EVERYTHING, ids=repr)
each_separable = pytest.mark.parametrize("penalty", [p for p in EVERYTHING if p.is_separable], ids=repr)
each_of_a_mode = pytest.mark.parametrize(
    ("penalty", "mode"),
    [
        (penalty, mode)
        for penalty in EVERYTHING
        for mode in STEP_MODES
        if (isinstance(penalty, ProximalPenalty) if mode == "prox" else not isinstance(penalty, Constraint))
    ],
    ids=repr,
)


def spoilt(bad, place=(1, 2), **options):
    w = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), **options)
    w[place] = bad
    return w


def is_seen(before, after):
    """Whether each element that is not a number is none afterwards either."""
    return bool(after.isnan()[before.isnan()].all()) and after.shape == before.shape


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_nan_in_nan_out(penalty, dtype):
    w = spoilt(NAN, dtype=dtype)
    assert penalty.value(w).isnan()
    assert is_seen(w, penalty.gradient(w))
    if isinstance(penalty, ProximalPenalty):
        for step in (0.5, 0.0, torch.tensor(0.5)):
            assert is_seen(w, penalty.prox(w, step))
            assert is_seen(w, penalty._prox_(w.clone(), step))
        if penalty._takes_steps:
            assert is_seen(w, penalty.prox(w, torch.full(w.shape, 0.5)))
    assert is_seen(w, penalty._descend_(w.clone(), 0.1))


@each
@pytest.mark.parametrize("bad", [INF, -INF])
def test_an_infinite_weight_stays_not_finite_but_where_its_nearest_point_is_clear(penalty, bad):
    w = spoilt(bad, dtype=torch.float64)
    assert not penalty.value(w).isfinite() or (isinstance(penalty, Constraint) and penalty.value(w) == 0)
    if not isinstance(penalty, ProximalPenalty):
        return
    after = penalty.prox(w, 0.5)[1, 2]
    if isinstance(penalty, Constraint) and after.isfinite():
        assert after == penalty.project(spoilt(math.copysign(1e300, bad), dtype=torch.float64))[1, 2]
    else:
        assert after.isnan() or after == bad


@each_separable
def test_an_elementwise_penalty_spoils_no_other_weight(penalty):
    bad, good = spoilt(NAN, dtype=torch.float64), spoilt(1.0, dtype=torch.float64)
    beside = ~bad.isnan()
    assert torch.equal(penalty.gradient(bad)[beside], penalty.gradient(good)[beside])
    if isinstance(penalty, ProximalPenalty):
        assert torch.equal(penalty.prox(bad, 0.5)[beside], penalty.prox(good, 0.5)[beside])


@pytest.mark.parametrize("penalty", [L1(0.3), L2(0.3), LogSum(0.3), MCP(0.3), SCAD(0.3), Nuclear(0.3)], ids=repr)
def test_complex_weights_too(penalty):
    w = spoilt(complex(NAN, 1.0), dtype=torch.complex128)
    assert penalty.value(w).isnan()
    assert penalty.gradient(w)[1, 2].isnan()
    assert penalty.prox(w, 0.5)[1, 2].isnan()


@pytest.mark.parametrize("penalty", [L1(0.3), LogSum(0.3)], ids=repr)
@pytest.mark.parametrize("form", ["value", "descend", "prox"])
def test_compiled_kernels_too(penalty, form):
    w = torch.ones(1 << 18)
    w[12345], w[-1] = NAN, NAN
    kernel = kernel_for(penalty, form, 0.5, w)
    assert kernel is not None
    with torch.no_grad():
        result = kernel(w)
    assert (result if form == "value" else w[[12345, -1]]).isnan().all()


@each_of_a_mode
def test_a_step_that_spoils_a_weight_leaves_it_spoilt(penalty, mode):
    model = nn.ParameterList([torch.ones(4, 3), torch.ones(4, 3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, penalty, mode=mode).attach(optimizer)
    for gradient in (NAN, 1.0):
        set_gradients(model, 1.0)
        model[1].grad[1, 2] = gradient
        optimizer.step()
        assert model[1][1, 2].isnan()
        assert model[0].isfinite().all()


MATRICES = [Nuclear(0.3), SpectralNorm(0.3), SRIP(0.3), ConvolutionNorm(0.3, input_size=(4, 4))]


@pytest.mark.parametrize("penalty", MATRICES, ids=repr)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_decomposition_of_what_is_not_finite_is_nan(penalty, bad):
    w = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    w[1, 2, 0, 1] = bad
    param = nn.Parameter(w)
    penalty.value(param).backward()
    assert penalty.value(w).isnan()
    assert penalty.gradient(w)[1, 2, 0, 1].isnan()
    assert not penalty.optimality(w, torch.ones_like(w)).isfinite()
    if isinstance(penalty, ProximalPenalty):
        assert penalty.prox(w, 0.1)[1, 2, 0, 1].isnan()
        assert not penalty.optimality(torch.ones_like(w), w).isfinite()


@pytest.mark.parametrize(
    "penalty", [Nuclear(0.1), SpectralNorm(0.1), LogSum(0.1), GroupLasso(0.1), MaxNorm(1.0)], ids=repr
)
@pytest.mark.parametrize("make", [ProxSGD, ProxAdam])
def test_proximal_optimizers_leave_it_spoilt(penalty, make):
    w = nn.Parameter(torch.ones(4, 3))
    optimizer = make([w], penalty, lr=0.1)
    w.grad = torch.ones(4, 3)
    w.grad[1, 2] = NAN
    optimizer.step()
    assert w[1, 2].isnan()


@pytest.mark.parametrize("penalty", [Nuclear(0.1), LogSum(0.1), L1(0.1)], ids=repr)
def test_a_member_of_a_stack_that_is_spoilt_spoils_no_other(penalty):
    stack = Stacked([nn.Linear(3, 4, bias=False) for _ in range(2)])
    with torch.no_grad():
        stack.members()
        next(stack.parameters())[1, 2, 0] = NAN
    regularizer = Regularizer(stack, penalty, mode="prox")
    value = regularizer.value()
    assert value[0].isfinite()
    assert value[1].isnan()
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
    regularizer.attach(optimizer)
    set_gradients(stack, 1.0)
    optimizer.step()
    (w,) = stack.parameters()
    assert w[0].isfinite().all()
    assert w[1, 2, 0].isnan()
